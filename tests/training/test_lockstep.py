"""Arms side by side: the same bits as alone, one pass of the teacher, and failures that stay with their arm."""

from __future__ import annotations

import copy

import pytest
from arm_cases import Counted, distiller, noise, sharing_copy, train
from torch import nn

from tmkd_plugin.baselines import BASELINES
from tmkd_plugin.data.dataset import ImageDataset
from tmkd_plugin.errors import NonFiniteLossError
from tmkd_plugin.training.acceleration import Acceleration
from tmkd_plugin.training.settings import TrainingSettings
from tmkd_plugin.training.trainer import train_distillers
from tmkd_plugin.zoo import build_network

FILES = ("student.safetensors", "student_last.safetensors", "heads.safetensors", "predictions.npz", "history.jsonl")


@pytest.fixture(scope="module")
def dataset() -> ImageDataset:
    return noise()


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return build_network("resnet14", 3, seed=9).eval()


TEN = [name + enhancer for name in BASELINES for enhancer in ("", "+tmkd")]


def test_ten_arms_in_lockstep_end_with_the_bits_that_each_has_alone(dataset, teacher, tmp_path):
    together = train(TEN, [sharing_copy(teacher) for _ in TEN], dataset, tmp_path / "together")
    for name in TEN:
        alone = train([name], [copy.deepcopy(teacher)], dataset, tmp_path / "alone")
        assert alone[name].best == together[name].best
        for file in FILES:
            both = [tmp_path / how / name / file for how in ("alone", "together")]
            assert both[0].exists() == both[1].exists()
            if both[0].exists():
                assert both[0].read_bytes() == both[1].read_bytes(), f"{name}: {file}"


def test_the_teacher_sees_each_view_of_a_batch_once(dataset, teacher, tmp_path):
    counted = Counted(teacher).eval()
    names = ["kd", "rkd", "sp", "kd+tmkd", "sp+tmkd", "tekap+tmkd"]
    copies = [sharing_copy(counted) for _ in names]
    arms = {name: distiller(name, each) for name, each in zip(names, copies, strict=True)}
    Counted.passes = 0
    train_distillers(
        arms,
        dataset,
        TrainingSettings(epochs=2, batch_size=8, warmup_epochs=0, decay_epochs=(), learning_rate=0.05),
        seed=3,
        folders={name: tmp_path / name for name in names},
    )
    batches = 2 * 3  # of 8, 8 and 6 images
    # Once more in an epoch: not before the second arm asks is it known that its place is to be recorded too.
    assert Counted.passes <= 3 * batches + 2 * 2
    assert Counted.passes >= 3 * batches


def test_one_network_may_be_the_teacher_of_all(dataset, teacher, tmp_path):
    counted = Counted(teacher).eval()
    names = ["kd", "kd+tmkd", "tekap"]
    Counted.passes = 0
    together = train(names, [counted] * 3, dataset, tmp_path / "one")
    built = Counted.passes
    assert built <= 3 * 6 + 4 + 10, "a few probes besides"
    alone = train(["kd"], [copy.deepcopy(teacher)], dataset, tmp_path / "alone")
    assert alone["kd"].history == together["kd"].history


class Breaking(nn.Module):
    """A KD whose loss becomes infinite at one step."""

    def __init__(self, inner: nn.Module, at: int) -> None:
        super().__init__()
        self.inner, self.student, self.teacher, self.at, self.done = inner, inner.student, inner.teacher, at, 0

    def forward(self, images, labels):
        result = self.inner(images, labels)
        self.done += 1
        if self.done == self.at:
            result["loss"] = result["loss"] * float("inf")
        return result


def test_an_arm_that_fails_stops_alone(dataset, teacher, tmp_path):
    names = ["kd", "broken", "kd+tmkd"]
    arms = {
        "kd": distiller("kd", sharing_copy(teacher)),
        "broken": Breaking(distiller("kd", sharing_copy(teacher)), at=4),
        "kd+tmkd": distiller("kd+tmkd", sharing_copy(teacher)),
    }
    failures: dict[str, Exception] = {}
    results = train_distillers(
        arms, dataset, TrainingSettings(epochs=2, batch_size=8, warmup_epochs=0, decay_epochs=(), learning_rate=0.05), seed=3,
        folders={name: tmp_path / name for name in names}, on_failure=failures.__setitem__,
    )  # fmt: skip
    assert set(results) == {"kd", "kd+tmkd"}
    assert isinstance(failures.pop("broken"), NonFiniteLossError)
    assert not failures
    alone = train(["kd+tmkd"], [copy.deepcopy(teacher)], dataset, tmp_path / "alone")
    assert alone["kd+tmkd"].history == results["kd+tmkd"].history
    assert len((tmp_path / "broken" / "history.jsonl").read_text().splitlines()) == 1, "its first epoch stays"


def test_when_all_have_failed_nothing_more_is_run(dataset, teacher, tmp_path):
    failures: dict[str, Exception] = {}
    arms = {name: Breaking(distiller("kd", sharing_copy(teacher)), at=2) for name in ("one", "two")}
    results = train_distillers(
        arms, dataset, TrainingSettings(epochs=3, batch_size=8, warmup_epochs=0, decay_epochs=(), learning_rate=0.05), seed=3,
        folders={name: tmp_path / name for name in arms}, on_failure=failures.__setitem__,
    )  # fmt: skip
    assert results == {}
    assert set(failures) == {"one", "two"}
    assert {arm.done for arm in arms.values()} == {2}


def test_parts_of_a_batch_are_shared_too(dataset, teacher, tmp_path):
    names, acceleration = ["kd", "kd+tmkd", "tekap"], Acceleration(accumulation_steps=2)
    together = train(
        names, [sharing_copy(teacher) for _ in names], dataset, tmp_path / "together", acceleration=acceleration
    )
    for name in names:
        alone = train([name], [copy.deepcopy(teacher)], dataset, tmp_path / "alone", acceleration=acceleration)
        assert alone[name].history == together[name].history
