"""How long a group's runs take and how much they write, measured on a few steps of every arm."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from tmkd_plugin.bench.arms import ArmSpec, Plan
from tmkd_plugin.bench.cell import acceleration_of
from tmkd_plugin.bench.configuration import SMALL_CLIP, Configuration
from tmkd_plugin.bench.distillers import build_distiller
from tmkd_plugin.bench.paper_tables.messages import first_sentence
from tmkd_plugin.bench.paper_tables.schema import DatasetFacts
from tmkd_plugin.bench.preparation import Preparation
from tmkd_plugin.data import Augmentation, ImageDataset, ImageSplit, Split, load_dataset, make_dataset, training_batches
from tmkd_plugin.data.batches import Batch, batch_bounds
from tmkd_plugin.errors import InputError
from tmkd_plugin.randomness import generator_for
from tmkd_plugin.text_teacher import TextEmbeddings
from tmkd_plugin.training.acceleration import Acceleration
from tmkd_plugin.training.arm import Arm, head_weights
from tmkd_plugin.training.metrics import evaluate
from tmkd_plugin.training.settings import TrainingSettings
from tmkd_plugin.training.shared_teacher import shared_teachers
from tmkd_plugin.training.teacher_store import holds_teacher, loading_of, teacher_folder, teacher_identity
from tmkd_plugin.training.teachers import Classifier
from tmkd_plugin.training.view_training import with_random_views
from tmkd_plugin.views import VIEW_NAMES, ViewSettings
from tmkd_plugin.zoo import build_network

TEXT_WIDTH = 512  # of CLIP ViT-B/32
SMALL_TEXT_WIDTH = 64  # of the small CLIP
SPLITS = ("train", "validation", "test")
MEASURED_STEPS = 3  # the last counts; the first ones allocate
LONG_STEP = 0.5  # seconds; a step this long is no longer a matter of allocation, and counts at once
VALIDATION_SHARE = 0.1  # of the training images, where a data set that is not on disk has no validation part


@dataclass(frozen=True)
class Sizes:
    """The numbers of images that a run goes through."""

    train: int
    validation: int
    test: int


@dataclass
class Measurement:
    """What a group costs.

    Attributes:
        teacher_seconds: Training its teacher; 0 if that is done.
        teacher_bytes: The teacher's file in the cache; 0 if it is there.
        run_seconds: One run, by arm.
        run_bytes: What one run leaves, by arm.
        on: ``the data set``, or ``random images`` and why that can't be loaded.
    """

    teacher_seconds: float = 0.0
    teacher_bytes: int = 0
    run_seconds: dict[str, float] = field(default_factory=dict)
    run_bytes: dict[str, int] = field(default_factory=dict)
    on: str = "the data set"


def measure(
    configuration: Configuration, arms: list[ArmSpec], facts: DatasetFacts | None, cache_dir: Path
) -> Measurement:
    """Takes the arms through a few steps side by side and times the last.

    What they share, the batch, its views and the teacher's passes, counts for the first arm that needs it. Nothing is
    downloaded: weights start at random, and text embeddings are blank, which costs the same.

    Args:
        configuration: Of a group; which arms it names does not matter.
        arms: What to measure.
        facts: The official sizes, for a data set that is not on disk.
        cache_dir: Where teachers are kept.

    Raises:
        InputError: The data set can't be loaded and its sizes are not known, or an arm refuses the networks.
    """
    dataset, sizes, on = _data(configuration, facts)
    found = Measurement(on=on)
    experiment, training = configuration.experiment, configuration.recipe("training")
    _measure_teacher(found, configuration, dataset, sizes, cache_dir)
    preparation = Preparation(_without_downloads(configuration), dataset, Plan([], [], []), None)
    width = SMALL_TEXT_WIDTH if experiment.text == SMALL_CLIP else TEXT_WIDTH
    blank = torch.ones(len(VIEW_NAMES), dataset.num_classes, width)
    text = TextEmbeddings(blank, "per view", "blank", views=VIEW_NAMES)
    teacher = build_network(experiment.teacher, dataset.num_classes, image_size=dataset.image_size).eval()
    teacher.to(experiment.device)  # before it is copied: moving a copy would give it tensors of its own
    shared, distillers, building = experiment.arms_at_once != 1 and experiment.compile is None, {}, {}
    for arm in arms:
        start = time.perf_counter()
        shares = shared and arm.control != "rgb_teacher"
        distillers[arm.name] = build_distiller(preparation, arm, teacher, text, seed=0, side_by_side=shares)
        building[arm.name] = time.perf_counter() - start
    # Not compiled: that takes minutes for each arm, and none of them says how long a step is.
    acceleration = dataclasses.replace(acceleration_of(experiment), compile=None)
    acceleration.check(experiment.device)
    seconds = _steps_seconds(distillers, dataset, sizes, training, experiment.device, acceleration=acceleration)
    evaluation: float | None = None  # of a student, alike in every arm
    for name, distiller in distillers.items():
        student = distiller.student
        if not isinstance(student, nn.Module):
            raise InputError(f"The arm {name} has no student to measure.")
        if evaluation is None:
            evaluation = _evaluation_seconds(student, dataset, sizes, training)
        # Built once more for the trial step before a comparison.
        found.run_seconds[name] = 2 * building[name] + seconds[name] + evaluation
        written = 2 * _bytes(student.state_dict()) + _bytes(head_weights(distiller, student))
        found.run_bytes[name] = written + sizes.test * (16 + 2 * dataset.num_classes)
    return found


def _without_downloads(configuration: Configuration) -> Configuration:
    experiment = configuration.experiment.model_copy(update={"student_pretrained": False, "download": False})
    return dataclasses.replace(
        configuration, resolved=dataclasses.replace(configuration.resolved, experiment=experiment)
    )


def _data(configuration: Configuration, facts: DatasetFacts | None) -> tuple[ImageDataset, Sizes, str]:
    experiment = configuration.experiment
    try:
        dataset = load_dataset(**loading_of(experiment), workers=experiment.workers, download=False)
    except InputError as error:
        if facts is None:
            raise
        return *_random_data(configuration, facts), f"random images: {first_sentence(error)}"
    return dataset, Sizes(*(len(getattr(dataset, split)) for split in SPLITS)), "the data set"


def _random_data(configuration: Configuration, facts: DatasetFacts) -> tuple[ImageDataset, Sizes]:
    """Returns two batches of noise in the shape of a data set, and the sizes that it would have."""
    experiment = configuration.experiment
    size = experiment.image_size or facts.image_size
    batch = max(configuration.recipe(name).batch_size for name in ("training", "teacher_training"))
    generator = generator_for(0, "measured images")
    splits = {}
    for name, count in (("train", 2 * batch), ("validation", batch), ("test", batch)):
        pixels = torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
        splits[name] = ImageSplit(pixels, torch.arange(count) % facts.classes, torch.arange(count))
    validation = facts.validation or round(VALIDATION_SHARE * facts.train)
    train = facts.train if facts.validation else facts.train - validation
    names = [f"class {number}" for number in range(facts.classes)]
    dataset = make_dataset(experiment.dataset, names, **splits, augmentation=Augmentation(size // 8, flip=True))
    return dataset, Sizes(train, validation, facts.test)


def _measure_teacher(
    found: Measurement, configuration: Configuration, dataset: ImageDataset, sizes: Sizes, cache_dir: Path
) -> None:
    experiment, settings = configuration.experiment, configuration.recipe("teacher_training")
    if experiment.teacher_checkpoint is not None:
        return
    views, seed, pretrained = experiment.teacher_views, experiment.teacher_seed, experiment.teacher_pretrained
    identity = teacher_identity(experiment.teacher, dataset, settings, views, seed, ViewSettings(), pretrained)
    if holds_teacher(teacher_folder(cache_dir / "teachers", identity)):
        return
    network = build_network(experiment.teacher, dataset.num_classes, image_size=dataset.image_size)
    found.teacher_bytes = _bytes(network.state_dict())
    seconds = _steps_seconds(
        {"teacher": Classifier(network)}, dataset, sizes, settings, experiment.device, views=experiment.teacher_views
    )
    found.teacher_seconds = seconds["teacher"] + _evaluation_seconds(network, dataset, sizes, settings)


def _steps_seconds(
    distillers: Mapping[str, nn.Module],
    dataset: ImageDataset,
    sizes: Sizes,
    settings: TrainingSettings,
    device: str,
    *,
    views: str = "rgb",
    acceleration: Acceleration | None = None,
) -> dict[str, float]:
    """Returns the seconds of all steps of each distiller's training, side by side with the others."""
    steps = len(batch_bounds(sizes.train, settings.batch_size))
    acceleration, arms = acceleration or Acceleration(), []
    for name, distiller in distillers.items():
        acceleration.apply(distiller.to(device))
        arms.append(
            Arm(name, distiller, settings, seed=0, steps_per_epoch=steps, device=device, acceleration=acceleration)
        )
        arms[-1].begin_epoch(1)
    batches, seconds = _batches(dataset, settings, views), dict.fromkeys(distillers, 0.0)
    with shared_teachers(list(distillers.values())) as forget:
        for _ in range(MEASURED_STEPS):
            start = time.perf_counter()
            batch = next(batches)
            images, labels, ids = batch.images.to(device), batch.labels.to(device), batch.ids.to(device)
            for arm in arms:
                arm.step(images, labels, ids)
                _wait_for(device)
                seconds[arm.name], start = time.perf_counter() - start, time.perf_counter()
            forget()
            if sum(seconds.values()) > LONG_STEP * len(arms):
                break
    return {name: settings.epochs * steps * each for name, each in seconds.items()}


def _evaluation_seconds(student: nn.Module, dataset: ImageDataset, sizes: Sizes, settings: TrainingSettings) -> float:
    """Returns the seconds of all evaluations of a training: validation after every epoch, the test split twice."""
    part = _part(dataset.validation, settings.batch_size)
    start = time.perf_counter()
    evaluate(student, part, dataset.mean, dataset.std, settings.batch_size)
    images = settings.epochs * sizes.validation + 2 * sizes.test
    return images * (time.perf_counter() - start) / len(part)


def _batches(dataset: ImageDataset, settings: TrainingSettings, views: str) -> Iterator[Batch]:
    """Yields batches without end."""
    epoch = 0
    while True:
        epoch += 1
        plain = training_batches(
            dataset.train,
            dataset.augmentation,
            dataset.mean,
            dataset.std,
            batch_size=min(settings.batch_size, len(dataset.train)),
            seed=0,
            epoch=epoch,
        )
        if views == "rgb":
            yield from plain
        else:
            count = int(dataset.train.ids.max()) + 1
            yield from with_random_views(plain, dataset.mean, dataset.std, images=count, seed=0, epoch=epoch)


def _part(split: Split, count: int) -> Split:
    """Returns the first images of a split."""
    if isinstance(split, ImageSplit):
        return ImageSplit(split.images[:count], split.labels[:count], split.ids[:count])
    return dataclasses.replace(split, paths=split.paths[:count], labels=split.labels[:count], ids=split.ids[:count])


def _wait_for(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(math.prod(tensor.shape) * tensor.element_size() for tensor in tensors.values())
