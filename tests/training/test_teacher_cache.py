"""Training from a teacher's kept answers: those of the very images, close to what the teacher says, the same bits each time."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from tmkd_plugin.baselines import build_baseline
from tmkd_plugin.clip_teacher import ClipAnswers
from tmkd_plugin.data.batches import training_batches
from tmkd_plugin.data.dataset import Augmentation, ImageDataset, ImageSplit
from tmkd_plugin.enhancer import TMKDEnhancer
from tmkd_plugin.errors import InputError, NonFiniteLossError
from tmkd_plugin.richkd import RichKDEnhancer
from tmkd_plugin.training import teacher_cache_fill
from tmkd_plugin.training.acceleration import Acceleration
from tmkd_plugin.training.checkpoint import Checkpoints
from tmkd_plugin.training.settings import TrainingSettings
from tmkd_plugin.training.teacher_cache import TeacherCacheFolder
from tmkd_plugin.training.trainer import train_distillers
from tmkd_plugin.zoo import build_network

NAMES = ["blue", "green", "red"]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CROPS = Augmentation(crop_padding=2, flip=True)
SETTINGS = TrainingSettings(epochs=3, batch_size=8, warmup_epochs=0, decay_epochs=(), learning_rate=0.05)
IMAGES = 22


def split(count: int, seed: int, first_id: int) -> ImageSplit:
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 16, 16), generator=draw, dtype=torch.uint8)
    # Ids in another order than the images: who takes one for the other trains on answers to other images.
    ids = first_id + torch.randperm(count, generator=draw)
    return ImageSplit(images, torch.arange(count) % 3, ids)


def made(augmentation: Augmentation = CROPS) -> ImageDataset:
    splits = {"train": split(IMAGES, 1, 5), "validation": split(6, 2, 40), "test": split(6, 3, 60)}
    return ImageDataset(
        name="noise", class_names=NAMES, mean=MEAN, std=STD, augmentation=augmentation, fingerprint="0" * 64, **splits
    )


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return build_network("resnet14", 3, seed=9).eval()


@pytest.fixture
def folder(tmp_path) -> TeacherCacheFolder:
    return TeacherCacheFolder(tmp_path / "answers", lambda line: None)


class Counted(nn.Module):
    """Counts the images that a network sees."""

    seen = 0

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images):
        type(self).seen += len(images)
        return self.network(images)


def distiller(name: str, teacher: nn.Module) -> nn.Module:
    baseline, *enhancers = name.split("+")
    settings = {"seed": 3} if baseline == "tekap" else {}
    built = build_baseline(baseline, build_network("resnet8", 3, seed=3), teacher, **settings)
    for enhancer in enhancers:
        if enhancer == "tmkd":
            text = torch.randn(3, 3, 8, generator=torch.Generator().manual_seed(4))
            built = TMKDEnhancer(built, NAMES, text=text, mean=MEAN, std=STD, seed=3, input_size=16)
        else:
            draw, train = torch.Generator().manual_seed(6), made().train
            features, cosines = torch.randn(IMAGES, 6, generator=draw), torch.rand(IMAGES, 3, generator=draw)
            clip = ClipAnswers(nn.functional.normalize(features, dim=1), cosines, train.ids, "tiny")
            small = {"projection_width": 4, "negatives": 5, "queue_size": 20}
            built = RichKDEnhancer(built, NAMES, clip=clip, mean=MEAN, std=STD, seed=3, input_size=16, **small)
    return built


def train(names, teacher, root: Path, cache=None, variants=2, dataset=None, settings=SETTINGS, arms=None, **options):
    arms = arms or {name: distiller(name, copy.deepcopy(teacher)) for name in names}
    folders = {name: root / name for name in arms}
    return train_distillers(
        arms, dataset or made(), settings, seed=3, folders=folders, augmentation_variants=variants, teacher_cache=cache,
        **options,
    )  # fmt: skip


def content(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith(("log", "checkpoint")))
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


ARMS = ["kd", "rkd", "tekap", "kd+tmkd", "rkd+tmkd", "kd+tmkd+richkd", "kd+richkd+tmkd"]


def test_results_agree_with_those_of_a_teacher_that_runs(teacher, tmp_path, folder):
    kept = train(ARMS, teacher, tmp_path / "kept", folder)
    ran = train(ARMS, teacher, tmp_path / "ran")
    for name in ARMS:
        for first, second in zip(kept[name].history, ran[name].history, strict=True):
            assert first["losses"].keys() == second["losses"].keys()
            for term, value in second["losses"].items():
                assert first["losses"][term] == pytest.approx(value, rel=2e-4, abs=1e-6), f"{name}: {term}"


def test_the_same_bits_alone_beside_others_and_from_files_that_are_there(teacher, tmp_path, folder):
    names = ["kd", "rkd+tmkd", "tekap"]
    train(names, teacher, tmp_path / "filled", folder)
    train(names, teacher, tmp_path / "found", folder)
    for name in names:
        train([name], teacher, tmp_path / "alone", folder)
    first = content(tmp_path / "filled")
    assert len(first) >= 4 * len(names)
    assert first == content(tmp_path / "found") == content(tmp_path / "alone")


class Cutout(nn.Module):
    """Somebody else's distiller, which cuts a part out of the images once its teacher has seen them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.student, self.teacher = inner, inner.student, inner.teacher

    def forward(self, images, labels):
        with torch.no_grad():
            said = self.teacher(images)
        images[:, :, 4:12, 4:12] = 0
        return nn.functional.cross_entropy(self.student(images), labels) + said.square().mean()


def test_somebody_elses_distiller_beside_others(teacher, tmp_path, folder):
    def arms(*names: str) -> dict[str, nn.Module]:
        built = {name: distiller("kd", copy.deepcopy(teacher)) for name in names}
        return {name: Cutout(inner) if name == "own" else inner for name, inner in built.items()}

    together = train([], teacher, tmp_path / "together", folder, arms=arms("own", "kd"))
    one_network = arms("own", "kd")
    one_network["own"].teacher = one_network["own"].inner.teacher = one_network["kd"].teacher
    of_one = train([], teacher, tmp_path / "of one", folder, arms=one_network)
    for name in together:
        assert of_one[name].history == together[name].history
        alone = train([], teacher, tmp_path / "alone", folder, arms=arms(name))
        assert alone[name].history == together[name].history


def test_the_teacher_runs_once_for_each_image_view_and_variant(teacher, tmp_path, folder, monkeypatch):
    made_views = []
    original = teacher_cache_fill.normalised_views
    monkeypatch.setattr(
        "tmkd_plugin.multi_view_teacher.normalised_views", lambda *a: pytest.fail("a view of a batch was made")
    )
    monkeypatch.setattr(teacher_cache_fill, "normalised_views", lambda *a: made_views.append(a[1]) or original(*a))
    arms = {name: distiller(name, Counted(teacher).eval()) for name in ("kd", "kd+tmkd", "tekap+tmkd")}
    Counted.seen = 0
    train((), teacher, tmp_path, folder, arms=arms)
    probes = 2 * len(arms)
    variants, views, asked_first, checked = 2, 3, 2, 8
    assert Counted.seen == probes + variants * (views * (IMAGES + checked) + asked_first)
    Counted.seen = 0
    arms = {name: distiller(name, Counted(teacher).eval()) for name in ("kd", "kd+tmkd")}
    Counted.seen = 0
    train((), teacher, tmp_path / "again", folder, arms=arms)
    assert Counted.seen == 2 * len(arms) + variants * views * checked, "the second time it is only checked"


class Comparing(nn.Module):
    """Asks its teacher, and a copy of it that nobody answers for."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = build_network("resnet8", 3, seed=3), copy.deepcopy(teacher)
        self.__dict__["honest"] = copy.deepcopy(teacher)
        self.off: list[float] = []
        self.dtypes: set[torch.dtype] = set()

    def forward(self, images, labels):
        with torch.no_grad():
            said, true = self.teacher(images), self.honest(images)
        self.dtypes.add(said.dtype)
        self.off.append(float((said - true).abs().max() / true.abs().max()))
        loss = nn.functional.cross_entropy(self.student(images), labels)
        return {"loss": loss, "ce": loss}


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("augmentation", [CROPS, Augmentation()])
def test_answers_are_those_to_the_very_images_in_every_epoch(parts, augmentation, teacher, tmp_path, folder):
    arm = Comparing(teacher)
    acceleration = Acceleration(accumulation_steps=parts)
    variants = 2 if augmentation is CROPS else None
    dataset = made(augmentation)
    train((), teacher, tmp_path, folder, variants, dataset, arms={"arm": arm}, acceleration=acceleration)
    assert len(arm.off) == 3 * 3 * parts
    assert max(arm.off) < 1e-5


def test_a_stopped_run_goes_on_to_the_same_bits(teacher, tmp_path, folder):
    train(["kd+tmkd"], teacher, tmp_path / "whole", folder)
    for steps in (1, 4):
        arm = distiller("kd+tmkd", copy.deepcopy(teacher))
        left = iter(range(steps))

        def stop(*_, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt

        arm.register_forward_pre_hook(stop)
        root = tmp_path / f"stopped{steps}"
        kept = {"kd+tmkd": Checkpoints(root / "kd+tmkd", every_seconds=0)}
        with pytest.raises(KeyboardInterrupt):
            train((), teacher, root, folder, arms={"kd+tmkd": arm}, checkpoints=kept)
        train(["kd+tmkd"], teacher, root, folder, checkpoints={"kd+tmkd": Checkpoints(root / "kd+tmkd")})
        assert content(root) == content(tmp_path / "whole"), steps


class Breaking(nn.Module):
    """A distiller whose loss becomes infinite at one step."""

    def __init__(self, inner: nn.Module, at: int) -> None:
        super().__init__()
        self.inner, self.student, self.teacher, self.left = inner, inner.student, inner.teacher, at

    def forward(self, images, labels):
        result = self.inner(images, labels)
        self.left -= 1
        return result if self.left else {**result, "loss": result["loss"] * float("inf")}


def test_an_arm_that_fails_stops_alone(teacher, tmp_path, folder):
    arms = {"kd": distiller("kd", teacher), "broken": Breaking(distiller("rkd+tmkd", copy.deepcopy(teacher)), 4)}
    failures: dict[str, Exception] = {}
    results = train((), teacher, tmp_path, folder, arms=arms, on_failure=failures.__setitem__)
    assert isinstance(failures.pop("broken"), NonFiniteLossError)
    assert not failures
    assert results["kd"].history == train(["kd"], teacher, tmp_path / "alone", folder)["kd"].history


def test_the_teacher_answers_for_itself_afterwards(teacher, tmp_path, folder):
    mine = copy.deepcopy(teacher)
    before = set(mine.__dict__)
    train((), teacher, tmp_path, folder, arms={"kd": distiller("kd", mine)})
    assert set(mine.__dict__) == before
    with torch.no_grad():
        assert torch.equal(mine(torch.ones(2, 3, 16, 16)), teacher(torch.ones(2, 3, 16, 16)))


def test_other_weights_are_another_teacher(teacher, tmp_path, folder):
    train(["kd"], teacher, tmp_path / "one", folder)
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        other.fc.bias += 1
    arms = {"kd": distiller("kd", copy.deepcopy(teacher)), "other": Comparing(other)}
    train((), teacher, tmp_path / "two", folder, arms=arms)
    assert max(arms["other"].off) < 1e-5
    assert len(list(folder.path.iterdir())) == 2 * 2, "two variants of two teachers"


def test_a_teacher_that_is_changed_in_training_is_told(teacher, tmp_path, folder):
    mine = copy.deepcopy(teacher)
    arm = distiller("kd", mine)
    steps = iter(range(9))

    def change(*_):
        if next(steps) == 2:
            with torch.no_grad():
                mine.fc.bias += 1

    arm.register_forward_pre_hook(change)
    with pytest.raises(InputError, match=r"changed since its answers were kept.*without --teacher-cache"):
        train((), teacher, tmp_path, folder, arms={"kd": arm})


def test_bfloat16_answers_are_kept_as_they_are(teacher, tmp_path, folder):
    acceleration = Acceleration(precision="bf16")
    kept = train(["kd+tmkd"], teacher, tmp_path / "kept", folder, acceleration=acceleration)
    ran = train(["kd+tmkd"], teacher, tmp_path / "ran", acceleration=acceleration)
    for first, second in zip(kept["kd+tmkd"].history, ran["kd+tmkd"].history, strict=True):
        assert first["losses"]["loss"] == pytest.approx(second["losses"]["loss"], rel=2e-2)
    arm = Comparing(teacher)
    train((), teacher, tmp_path / "arm", folder, arms={"arm": arm}, acceleration=acceleration)
    assert arm.dtypes == {torch.bfloat16}


def test_a_compiled_teacher(teacher, tmp_path, folder):
    arms = {"kd+tmkd": distiller("kd+tmkd", copy.deepcopy(teacher))}
    kept = train((), teacher, tmp_path / "kept", folder, arms=arms, acceleration=Acceleration(compile="eager"))
    assert arms["kd+tmkd"].teacher._compiled_call_impl is not None
    ran = train(["kd+tmkd"], teacher, tmp_path / "ran")
    for first, second in zip(kept["kd+tmkd"].history, ran["kd+tmkd"].history, strict=True):
        assert first["losses"]["loss"] == pytest.approx(second["losses"]["loss"], rel=2e-4)


def batches(epoch, variants, augmentation=CROPS):
    train = made().train
    found = training_batches(train, augmentation, MEAN, STD, batch_size=8, seed=3, epoch=epoch, variants=variants)
    images = {int(id_): image for batch in found for id_, image in zip(batch.ids, batch.images, strict=True)}
    assert len(images) == IMAGES
    return images


def same(first, second) -> bool:
    return all(torch.equal(first[id_], second[id_]) for id_ in first)


def test_epochs_replay_the_variants_in_an_order_of_their_own():
    first, second, third = (batches(epoch, 2) for epoch in (1, 2, 3))
    assert same(first, third)
    assert list(first) != list(third)
    assert list(third) == list(batches(3, None))
    assert not same(first, second)
    assert same(second, batches(2, None))
    assert same(batches(3, 5), batches(3, None))
    assert same(batches(7, 1), first)


@pytest.mark.parametrize("variants", [0, -1, 1.5, True])
def test_a_number_of_variants_that_is_none(variants):
    with pytest.raises(InputError, match=r"augmentation_variants=.*expected a whole number, 1 or more"):
        batches(1, variants)


def test_augmented_anew_in_each_epoch_both_ways_out_are_said(teacher, tmp_path, folder):
    with pytest.raises(
        InputError, match=r"crop_padding=2.*Either give --augmentation-variants K.*or leave --teacher-cache out"
    ):
        train(["kd"], teacher, tmp_path, folder, variants=None)
    assert not folder.path.exists()
