"""Arms side by side: the same bits as alone, one pass of the teacher, and failures that stay with their arm."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from tmkd_plugin.baselines import BASELINES, build_baseline
from tmkd_plugin.data.dataset import Augmentation, ImageDataset, ImageSplit
from tmkd_plugin.enhancer import TMKDEnhancer
from tmkd_plugin.errors import NonFiniteLossError, RunError
from tmkd_plugin.training.acceleration import Acceleration
from tmkd_plugin.training.arm_memory import arm_bytes, fits, free_bytes
from tmkd_plugin.training.settings import TrainingSettings
from tmkd_plugin.training.shared_teacher import shared_teachers
from tmkd_plugin.training.trainer import train_distillers
from tmkd_plugin.zoo import build_network

NAMES = ["blue", "green", "red"]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
FILES = ("student.safetensors", "student_last.safetensors", "heads.safetensors", "predictions.npz", "history.jsonl")


def split(count: int, seed: int) -> ImageSplit:
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 16, 16), generator=draw, dtype=torch.uint8)
    return ImageSplit(images, torch.arange(count) % 3, torch.arange(count))


@pytest.fixture(scope="module")
def dataset() -> ImageDataset:
    splits = {"train": split(22, 1), "validation": split(6, 2), "test": split(6, 3)}
    return ImageDataset(
        name="noise", class_names=NAMES, mean=MEAN, std=STD, augmentation=Augmentation(crop_padding=2, flip=True),
        fingerprint="0" * 64, **splits,
    )  # fmt: skip


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return build_network("resnet14", 3, seed=9).eval()


class Counted(nn.Module):
    """Counts the passes of a network and of its copies."""

    passes = 0

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images):
        type(self).passes += 1
        return self.network(images)


def sharing_copy(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network, {id(t): t for t in (*network.parameters(), *network.buffers())})


def text() -> torch.Tensor:
    return torch.randn(3, 3, 8, generator=torch.Generator().manual_seed(4))


def distiller(name: str, teacher: nn.Module) -> nn.Module:
    baseline, _, enhancer = name.partition("+")
    settings = {"seed": 3} if baseline == "tekap" else {}
    built = build_baseline(baseline, build_network("resnet8", 3, seed=3), teacher, **settings)
    if enhancer == "tmkd":
        built = TMKDEnhancer(built, NAMES, text=text(), mean=MEAN, std=STD, seed=3, input_size=16)
    return built


TEN = [name + enhancer for name in BASELINES for enhancer in ("", "+tmkd")]


def train(names, teachers, dataset, root: Path, **options):
    arms = {name: distiller(name, teacher) for name, teacher in zip(names, teachers, strict=True)}
    settings = TrainingSettings(epochs=2, batch_size=8, warmup_epochs=0, decay_epochs=(), learning_rate=0.05)
    folders = {name: root / name for name in names}
    return train_distillers(arms, dataset, settings, seed=3, folders=folders, **options)


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


def test_copies_that_differ_share_nothing(dataset, teacher):
    other = copy.deepcopy(teacher)
    distillers = [distiller("kd", teacher), distiller("kd", other)]
    images = torch.rand(4, 3, 16, 16)
    with shared_teachers(distillers), torch.no_grad():
        other.fc.bias += 1
        assert not torch.equal(teacher(images), other(images))


def step(arm: nn.Module, images, labels) -> torch.Tensor:
    return arm(images, labels)["loss"].detach()


def batch(seed: int = 0):
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1), torch.tensor([0, 1, 2, 0])


def test_nothing_of_a_batch_stays_when_it_is_over(teacher):
    first, second = (distiller("kd+tmkd", sharing_copy(teacher)) for _ in range(2))
    images, labels = batch()
    alive = weakref.ref(images)
    with shared_teachers([first, second]) as forget:
        step(first, images, labels)
        step(second, images, labels)
        del images
        gc.collect()
        assert alive() is not None, "a batch is remembered while it lasts"
        forget()
        gc.collect()
        assert alive() is None


def test_arms_that_read_other_maps_of_the_teacher_get_their_own():
    wide = build_network("wrn_16_1", 3, seed=9).eval()

    def arm(sp_map: str, teacher: nn.Module) -> nn.Module:
        return build_baseline("sp", build_network("wrn_16_1", 3, seed=3), teacher, sp_map=sp_map)

    images, labels = batch()
    maps = ("mdistiller", "pre_pool", "mdistiller")
    alone = [step(arm(sp_map, copy.deepcopy(wide)), images, labels) for sp_map in maps]
    assert alone[0] != alone[1]
    together = [arm(sp_map, sharing_copy(wide)) for sp_map in maps]
    with shared_teachers(together) as forget:
        for _ in range(2):
            assert [step(each, images, labels) for each in together] == alone
            forget()


def test_somebody_who_listens_inside_the_teacher_hears_every_pass(teacher):
    first, second = (distiller("kd", sharing_copy(teacher)) for _ in range(2))
    heard = []
    second.teacher.fc.register_forward_hook(lambda *_: heard.append(1))
    images, labels = batch()
    with shared_teachers([first, second]) as forget:
        step(first, images, labels)
        expected = step(second, images, labels)
        assert len(heard) == 1
        forget()
    assert torch.equal(step(second, images, labels), expected)


def test_what_a_distiller_writes_into_an_answer_no_other_sees(teacher):
    first, second = (sharing_copy(teacher) for _ in range(2))
    images, _ = batch()
    arms = [nn.Module(), nn.Module()]
    arms[0].teacher, arms[1].teacher = first, second
    with torch.no_grad(), shared_teachers(arms):
        assert not first(images).requires_grad, "no_grad holds, although nobody has frozen this teacher"
        expected = first(images).clone()
        first(images).zero_()
        assert torch.equal(second(images), expected)


class Switched(nn.Module):
    """A network whose answer depends on an attribute."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.doubled = network, False

    def forward(self, images):
        logits = self.network(images)
        return 2 * logits if self.doubled else logits


def two_arms(teacher: nn.Module) -> list[nn.Module]:
    arms = [nn.Module(), nn.Module()]
    for arm in arms:
        arm.teacher = sharing_copy(teacher)
    return arms


def test_a_teacher_that_is_switched_in_the_middle_of_a_batch_answers_for_itself(teacher):
    arms, (images, _) = two_arms(Switched(teacher).eval()), batch()
    with torch.no_grad(), shared_teachers(arms):
        once = arms[0].teacher(images)
        assert arms[1].teacher(images).data_ptr() == once.data_ptr(), "until then it is shared"
        arms[1].teacher.doubled = True
        assert torch.equal(arms[1].teacher(images), 2 * once)
        arms[1].teacher.doubled = False
        assert torch.equal(arms[1].teacher(images), once)


def test_teachers_with_other_switches_inside_share_nothing(teacher):
    arms, (images, _) = two_arms(Switched(Switched(teacher)).eval()), batch()
    arms[1].teacher.network.doubled = True
    with torch.no_grad(), shared_teachers(arms):
        assert torch.equal(arms[1].teacher(images), 2 * arms[0].teacher(images))
        assert torch.equal(arms[1].teacher(images), 2 * arms[0].teacher(images))


def test_images_that_are_written_to_are_other_images(teacher):
    arms = [nn.Module(), nn.Module()]
    for arm in arms:
        arm.teacher = sharing_copy(teacher)
    images, _ = batch()
    with torch.no_grad(), shared_teachers(arms):
        before = arms[0].teacher(images)
        images.mul_(0.5)
        assert not torch.equal(arms[1].teacher(images), before)
        assert torch.equal(arms[1].teacher(images), teacher(images))


def test_a_teacher_in_training_mode_answers_for_itself(teacher):
    arms = [nn.Module(), nn.Module()]
    for arm in arms:
        arm.teacher = sharing_copy(teacher)
    images, _ = batch()
    with torch.no_grad(), shared_teachers(arms):
        before = arms[0].teacher(images)
        arms[1].teacher.layer1.train() if hasattr(arms[1].teacher, "layer1") else arms[1].teacher.train()
        assert not torch.equal(arms[1].teacher(images), before)


def test_a_distiller_that_changes_the_shared_teacher_is_told(teacher):
    mine = copy.deepcopy(teacher)
    arms = [nn.Module(), nn.Module()]
    for arm in arms:
        arm.teacher = sharing_copy(mine)
    images, _ = batch()
    with torch.no_grad(), shared_teachers(arms):
        arms[0].teacher(images)
        mine.fc.bias += 1
        with pytest.raises(RunError, match="--arms-at-once 1"):
            arms[1].teacher(images)


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


def test_the_memory_of_an_arm(teacher):
    arm = distiller("kd", teacher)
    weights = sum(4 * parameter.numel() for parameter in arm.student.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in arm.student.buffers())
    assert arm_bytes(arm) == 4 * weights + 2 * buffers
    assert 0 < free_bytes("cpu") < 1e15
    assert fits(50.0, 100.0)
    assert not fits(51.0, 100.0)
