"""What somebody else's distiller or network does to a batch or a teacher, and that it stays with it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from arm_cases import MEAN, NAMES, STD, distiller, noise, sharing_copy, text
from torch import nn

from tmkd_plugin.baselines import build_baseline
from tmkd_plugin.baselines.kd import KD
from tmkd_plugin.data.dataset import ImageDataset
from tmkd_plugin.enhancer import TMKDEnhancer
from tmkd_plugin.training.arm_memory import arm_bytes, fits, free_bytes
from tmkd_plugin.training.isolation import shares_teacher
from tmkd_plugin.training.settings import TrainingSettings
from tmkd_plugin.training.trainer import ArmResult, train_distillers
from tmkd_plugin.zoo import build_network


@pytest.fixture(scope="module")
def dataset() -> ImageDataset:
    return noise()


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return build_network("resnet14", 3, seed=9).eval()


class OwnKD(KD):
    """Somebody else's KD, which does to its batch or its teacher whatever it likes."""

    def __init__(self, student, teacher, does: str) -> None:
        super().__init__(student, teacher)
        self.does = does
        if does == "scales its teacher at first":
            with torch.no_grad():
                teacher.fc.weight.mul_(0.1)

    def train(self, mode=True):
        if self.does == "fails between its epochs" and mode and getattr(self, "has_run", False):
            raise RuntimeError("no second epoch")
        return super().train(mode)

    def forward(self, images, labels):
        self.has_run = True
        if self.does == "cuts a part of the images out":
            images.data[:, :, 4:12, 4:12] = 0
        elif self.does == "draws other labels":
            labels[:2] = 0
        elif self.does == "trains its teacher":
            self.teacher.train()
        elif self.does == "writes past the count of writes":
            self.teacher.fc.bias.data += 0.1
        elif self.does == "switches a part for a call":
            with switched(self.teacher):
                return super().forward(images, labels)
        elif self.does == "replaces a forward":
            self.teacher.layer1.forward = lambda x: 0.5 * type(self.teacher.layer1).forward(self.teacher.layer1, x)
        return super().forward(images, labels)


@contextlib.contextmanager
def switched(teacher: nn.Module):
    before, teacher.bn1.eps = teacher.bn1.eps, 1.0
    try:
        yield
    finally:
        teacher.bn1.eps = before


DEEDS = [
    "cuts a part of the images out", "draws other labels", "trains its teacher", "writes past the count of writes",
    "switches a part for a call", "replaces a forward", "scales its teacher at first",
]  # fmt: skip


Arms = dict[str, Callable[[nn.Module], nn.Module]]
"""By name, what builds an arm around the comparison's teacher."""


def compared(arms: Arms, dataset: ImageDataset, teacher: nn.Module, root: Path) -> dict[str, ArmResult]:
    """Trains arms together and each alone, and finds the same; returns the results."""

    def trained(names: Iterable[str], folder: str) -> dict[str, ArmResult]:
        original = copy.deepcopy(teacher)
        settings = TrainingSettings(epochs=2, batch_size=8, warmup_epochs=0, decay_epochs=(), learning_rate=0.05)
        built = {name: arms[name](original) for name in names}
        return train_distillers(
            built, dataset, settings, seed=3, folders={name: root / folder / name for name in built}
        )

    together = trained(arms, "together")
    for name in arms:
        assert trained([name], "alone")[name].history == together[name].history, name
    return together


@pytest.mark.parametrize("does", DEEDS)
def test_what_somebody_elses_distiller_does_stays_with_it(does, dataset, teacher, tmp_path):
    arms = {
        "own": lambda original: OwnKD(build_network("resnet8", 3, seed=3), copy.deepcopy(original), does),
        "kd": lambda original: distiller("kd", sharing_copy(original)),
        "kd+tmkd": lambda original: distiller("kd+tmkd", sharing_copy(original)),
    }
    together = compared(arms, dataset, teacher, tmp_path)
    assert together["own"].history != together["kd"].history


def test_others_share_nothing_with_somebody_elses_distiller_of_the_same_network(dataset, teacher, tmp_path):
    class AsksTwice(OwnKD):
        def forward(self, images, labels):
            with torch.no_grad():
                self.teacher(images)
            return super().forward(images, labels)

    arms = {
        "kd": lambda original: distiller("kd", original),
        "own": lambda original: AsksTwice(build_network("resnet8", 3, seed=3), original, "switches a part for a call"),
        "rkd": lambda original: distiller("rkd", original),
    }
    compared(arms, dataset, teacher, tmp_path)


def test_an_arm_that_fails_between_its_epochs_stops_alone(dataset, teacher, tmp_path):
    arms = {
        "own": OwnKD(build_network("resnet8", 3, seed=3), copy.deepcopy(teacher), "fails between its epochs"),
        "kd": distiller("kd", sharing_copy(teacher)),
    }
    failures: dict[str, Exception] = {}
    results = train_distillers(
        arms, dataset, TrainingSettings(epochs=2, batch_size=8, warmup_epochs=0, decay_epochs=(), learning_rate=0.05), seed=3,
        folders={name: tmp_path / name for name in arms}, on_failure=failures.__setitem__,
    )  # fmt: skip
    assert set(results) == {"kd"}
    assert str(failures["own"]) == "no second epoch"


class Promises(OwnKD):
    shares_teacher = True


def test_who_shares(teacher):
    own = OwnKD(build_network("resnet8", 3, seed=3), teacher, "")
    promising = Promises(build_network("resnet8", 3, seed=3), teacher, "")
    ours = distiller("kd+tmkd", teacher)
    enhanced = [TMKDEnhancer(each, NAMES, text=text(), mean=MEAN, std=STD, input_size=16) for each in (own, promising)]
    function = TMKDEnhancer(
        lambda images, labels: None,
        NAMES,
        student=own.student,
        teacher=teacher,
        text=text(),
        logit_weight=0,
        input_size=16,
    )
    assert [shares_teacher(each) for each in (ours, own, promising, *enhanced, function)] == [
        True, False, True, False, True, False,
    ]  # fmt: skip
    assert [shares_teacher(each) for each in (KD, OwnKD, Promises)] == [True, False, True]


def test_a_student_that_writes_into_the_images_leaves_the_next_arm_its_own(dataset, teacher, tmp_path):
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = build_network("resnet8", 3, seed=3)

        def forward(self, images):
            return self.network(images.mul_(0.5))

    students = {"first": InPlace, "second": lambda: build_network("resnet8", 3, seed=3)}
    arms = {
        name: lambda original, student=student: build_baseline("kd", student(), sharing_copy(original))
        for name, student in students.items()
    }
    compared(arms, dataset, teacher, tmp_path)


def test_the_memory_of_an_arm(teacher):
    arm = distiller("kd", teacher)
    weights = sum(4 * parameter.numel() for parameter in arm.student.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in arm.student.buffers())
    assert arm_bytes(arm) == 4 * weights + 2 * buffers
    of_teacher = sum(t.numel() * t.element_size() for t in (*teacher.parameters(), *teacher.buffers()))
    own = OwnKD(build_network("resnet8", 3, seed=3), teacher, "")
    assert arm_bytes(own) == arm_bytes(arm) + of_teacher, "a teacher of its own"
    assert 0 < free_bytes("cpu") < 1e15
    assert fits(50.0, 100.0)
    assert not fits(51.0, 100.0)
