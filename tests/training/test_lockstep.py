"""Arms side by side: the same bits as alone, one pass of the teacher, and failures that stay with their arm."""

from __future__ import annotations

import contextlib
import copy
import gc
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tmkd_plugin.baselines import BASELINES, build_baseline
from tmkd_plugin.baselines.kd import KD
from tmkd_plugin.data.dataset import Augmentation, ImageDataset, ImageSplit
from tmkd_plugin.enhancer import TMKDEnhancer
from tmkd_plugin.errors import NonFiniteLossError, RunError
from tmkd_plugin.training.acceleration import Acceleration
from tmkd_plugin.training.arm_memory import arm_bytes, fits, free_bytes
from tmkd_plugin.training.isolation import shares_teacher
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


@pytest.mark.parametrize("does", DEEDS)
def test_what_somebody_elses_distiller_does_stays_with_it(does, dataset, teacher, tmp_path):
    def arms(names: list[str], original: nn.Module) -> dict[str, nn.Module]:
        build = {
            "own": lambda: OwnKD(build_network("resnet8", 3, seed=3), copy.deepcopy(original), does),
            "kd": lambda: distiller("kd", sharing_copy(original)),
            "kd+tmkd": lambda: distiller("kd+tmkd", sharing_copy(original)),
        }
        return {name: build[name]() for name in names}

    def trained(names: list[str], root: str):
        settings = TrainingSettings(epochs=2, batch_size=8, warmup_epochs=0, decay_epochs=(), learning_rate=0.05)
        folders = {name: tmp_path / root / name for name in names}
        return train_distillers(arms(names, copy.deepcopy(teacher)), dataset, settings, seed=3, folders=folders)

    together = trained(["own", "kd", "kd+tmkd"], "together")
    assert together["own"].history != together["kd"].history
    for name in together:
        assert trained([name], "alone")[name].history == together[name].history, name


def test_others_share_nothing_with_somebody_elses_distiller_of_the_same_network(dataset, teacher, tmp_path):
    class AsksTwice(OwnKD):
        def forward(self, images, labels):
            with torch.no_grad():
                self.teacher(images)
            return super().forward(images, labels)

    def arms(names: list[str], network: nn.Module) -> dict[str, nn.Module]:
        build = {
            "own": lambda: AsksTwice(build_network("resnet8", 3, seed=3), network, "switches a part for a call"),
            "kd": lambda: distiller("kd", network),
            "rkd": lambda: distiller("rkd", network),
        }
        return {name: build[name]() for name in names}

    def trained(names: list[str], root: str):
        settings = TrainingSettings(epochs=1, batch_size=8, warmup_epochs=0, decay_epochs=(), learning_rate=0.05)
        folders = {name: tmp_path / root / name for name in names}
        return train_distillers(arms(names, copy.deepcopy(teacher)), dataset, settings, seed=3, folders=folders)

    together = trained(["kd", "own", "rkd"], "together")
    for name in together:
        assert trained([name], "alone")[name].history == together[name].history, name


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

    def arms(names: list[str]) -> dict[str, nn.Module]:
        students = {"first": InPlace(), "second": build_network("resnet8", 3, seed=3)}
        return {name: build_baseline("kd", students[name], sharing_copy(teacher)) for name in names}

    def trained(names: list[str], root: str):
        settings = TrainingSettings(epochs=1, batch_size=8, warmup_epochs=0, decay_epochs=(), learning_rate=0.05)
        return train_distillers(
            arms(names), dataset, settings, seed=3, folders={name: tmp_path / root / name for name in names}
        )

    together = trained(["first", "second"], "together")
    for name in together:
        assert trained([name], "alone")[name].history == together[name].history, name


class Noisy(nn.Module):
    """A network that draws noise in eval mode too."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images) + torch.randn(len(images), 3)


class Wrapped(nn.Module):
    """A network that returns an object of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images):
        return SimpleNamespace(logits=self.network(images))


@pytest.mark.parametrize("kind", [Noisy, Wrapped])
def test_answers_that_are_no_function_of_the_images_or_no_nest_are_not_shared(kind, teacher):
    arms, (images, _) = two_arms(kind(teacher).eval()), batch()
    calls = []
    with torch.no_grad(), shared_teachers(arms):
        torch.manual_seed(0)
        calls.append(arms[0].teacher(images))
        calls.append(arms[1].teacher(images))
    assert calls[0] is not calls[1]
    if kind is Noisy:
        torch.manual_seed(0)
        assert torch.equal(calls[0], arms[0].teacher(images))
        assert torch.equal(calls[1], arms[1].teacher(images)), "the second one draws its own noise"
    else:
        calls[0].logits.zero_()
        assert calls[1].logits.any()


def test_a_hook_on_all_modules_hears_every_pass(teacher):
    arms, (images, _) = two_arms(teacher), batch()
    heard = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: heard.append(type(module).__name__))
    try:
        with torch.no_grad(), shared_teachers(arms):
            for arm in arms:
                arm.teacher(images)
    finally:
        handle.remove()
    assert heard.count("Linear") == 2


@pytest.mark.parametrize("change", ["mapping", "tensor", "forward"])
def test_copies_with_other_attributes_share_nothing(change, teacher):
    mine = copy.deepcopy(teacher)
    mine.options, mine.scale = {"scale": [1.0]}, torch.tensor(1.0)
    arms, (images, _) = two_arms(mine), batch()
    changed = arms[1].teacher
    if change == "mapping":
        changed.options["scale"][0] = 2.0
    elif change == "tensor":
        changed.scale = torch.tensor(2.0)
    else:
        arms[0].teacher.fc.forward = lambda x: torch.ones(len(x), 3)
        changed.fc.forward = lambda x: torch.zeros(len(x), 3)
    with torch.no_grad(), shared_teachers(arms):
        assert arms[0].teacher(images).data_ptr() != changed(images).data_ptr()
        assert changed(images).any() == (change != "forward")


def test_a_teacher_that_was_built_in_inference_mode():
    with torch.inference_mode():
        arms, (images, _) = two_arms(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3)).eval()), batch()
    with torch.no_grad(), shared_teachers(arms):
        assert arms[0].teacher(images).data_ptr() == arms[1].teacher(images).data_ptr()


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
    of_teacher = sum(t.numel() * t.element_size() for t in (*teacher.parameters(), *teacher.buffers()))
    own = OwnKD(build_network("resnet8", 3, seed=3), teacher, "")
    assert arm_bytes(own) == arm_bytes(arm) + of_teacher, "a teacher of its own"
    assert 0 < free_bytes("cpu") < 1e15
    assert fits(50.0, 100.0)
    assert not fits(51.0, 100.0)
