"""The command ``tmkd teachers``: the store of trained teachers, shown, added to and verified.

A teacher is configured exactly as ``tmkd bench`` configures it, so that a comparison finds what was trained here.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tmkd_plugin.bench.configuration import Configuration, configure
from tmkd_plugin.config import parse_assignments
from tmkd_plugin.data import ImageDataset, load_dataset
from tmkd_plugin.errors import InputError, unknown_name
from tmkd_plugin.text_cache import default_cache_dir
from tmkd_plugin.training.progress import training_progress
from tmkd_plugin.training.recipes import describe_recipe, recipe_name_of, recipe_names, recipe_values
from tmkd_plugin.training.settings import TrainingSettings
from tmkd_plugin.training.teacher_check import verify_teacher
from tmkd_plugin.training.teacher_store import WEIGHTS, StoredTeacher, find_teachers, loading_of, stored_teachers
from tmkd_plugin.training.teachers import TrainedTeacher, trained_teacher
from tmkd_plugin.training.view_training import AVERAGE
from tmkd_plugin.views import VIEW_NAMES, ViewSettings
from tmkd_plugin.zoo import build_network

if TYPE_CHECKING:
    from rich.table import Table

DONE, NO, BAD_INPUT = 0, 1, 2
LOG_WIDTH = 140

VIEW_SETTINGS = tuple(field.name for field in dataclasses.fields(ViewSettings))
DATA_SETTINGS = (
    "image_size", "train_limit", "validation_limit", "test_limit", "validation_fraction", "augmentation", "workers", "download",
)  # fmt: skip


def store() -> Path:
    """Returns the folder of teachers."""
    return default_cache_dir() / "teachers"


def list_recipes() -> int:
    """Prints every recipe that comes with the package, with its values."""
    for name in recipe_names():
        values = (f"{key}={json.dumps(value, separators=(',', ':'))}" for key, value in recipe_values(name).items())
        print(f"{name}: {describe_recipe(name)}\n    {' '.join(values)}")
    return DONE


def list_teachers() -> int:
    """Prints a table of the stored teachers, and those that can't be used below it."""
    teachers = stored_teachers(store())
    if not teachers:
        print(f"No teachers in {store()}. `tmkd teachers train --help` says how to train one.")
        return DONE
    usable = [teacher for teacher in teachers if teacher.problem is None]
    if usable:
        from rich.console import Console

        print(
            f"Teachers in {store()}; top-1 in %: validation; test for each view and for the plain average of their logits"
        )
        console = Console()
        # A log file has no width of its own.
        (console if console.is_terminal else Console(width=LOG_WIDTH, color_system=None)).print(_table(usable))
    for teacher in teachers:
        if teacher.problem is not None:
            print(f"{teacher.title} can't be used: {teacher.problem}")
    return DONE


def _table(teachers: Sequence[StoredTeacher]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.ASCII2)
    for head in ("hash", "network", "data set", "views", "recipe"):
        table.add_column(head, overflow="fold")
    for head in ("val", "RGB", "edge", "high-fr.", "average", "MB", "date"):
        table.add_column(head, justify="right", no_wrap=True)
    for teacher in teachers:
        record, identity = teacher.record, teacher.record["identity"]
        table.add_row(
            teacher.short_hash,
            teacher.network + (", pretrained" if identity["pretrained"] else ""),
            record["dataset"]["name"],
            identity["views"],
            record["recipe_name"] or f"{identity['settings']['epochs']} epochs",
            *(f"{top1:.2f}" for top1 in (record["val_top1"]["rgb"], *_in_order(record["test_top1"]).values())),
            *_size_and_date(teacher.folder / WEIGHTS),
        )
    return table


def _in_order(by_view: Mapping[str, float]) -> dict[str, float]:
    """Returns accuracies as views are listed everywhere; JSON has sorted them by name."""
    return {view: by_view[view] for view in (*VIEW_NAMES, AVERAGE)}


def _size_and_date(weights: Path) -> tuple[str, str]:
    if not weights.is_file():
        return "none", ""
    status = weights.stat()
    return f"{status.st_size / 1e6:.1f}", datetime.date.fromtimestamp(status.st_mtime).isoformat()


def train_teacher(
    flags: Mapping[str, Any],
    *,
    assignments: Sequence[str] = (),
    recipe: str | None = None,
    preset: str | None = None,
    threads: int | None = None,
    quiet: bool = False,
    checkpoint_seconds: float,
) -> int:
    """Trains a teacher, or finds it in the store, and prints what it can do.

    Args:
        flags: Values of the configuration, as ``tmkd bench`` has them: ``dataset``, ``teacher``, ``teacher_views``, ...
        assignments: ``key=value`` of the recipe, of the views or of the data; they win over the flags.
        recipe: Name or file of the recipe; ``None`` for what the preset says.
        preset: Name or file of the preset; ``None`` for the data set's.
        threads: Number of CPU threads; ``None`` for torch's choice.
        quiet: Whether to print the outcome only.
        checkpoint_seconds: The least time between two checkpoints.

    Raises:
        InputError: Something that was given can't be used; nothing has been trained.
        RunError: Training diverged.
    """
    given = dict(flags) if recipe is None else {**flags, "teacher_training": recipe_values(recipe)}
    configuration = configure(given, _in_sections(parse_assignments(assignments)), preset)
    experiment, settings = configuration.experiment, configuration.recipe("teacher_training")
    _set_up(experiment.device, threads)
    build_network(experiment.teacher, 2)  # a name is cheap to check, and reading a data set is not
    say = _silent if quiet else print
    loading = loading_of(experiment)
    dataset = load_dataset(**loading, workers=experiment.workers, download=experiment.download, say=say)
    for line in _plan_lines(configuration, dataset):
        say(line)
    teacher = trained_teacher(
        experiment.teacher,
        dataset,
        settings,
        views=experiment.teacher_views,
        seed=experiment.teacher_seed,
        cache_dir=store(),
        progress=training_progress("silent" if quiet else "auto"),
        device=experiment.device,
        view_settings=_view_settings(configuration),
        pretrained=experiment.teacher_pretrained,
        loading=loading,
        checkpoint_seconds=checkpoint_seconds,
    )
    _print_outcome(teacher)
    return DONE


def _in_sections(assignments: Mapping[str, Any]) -> dict[str, Any]:
    """Puts values of the recipe and of the views into the sections that they have in a configuration.

    Raises:
        InputError: A key has nothing to do with a teacher.
    """
    sections = dict.fromkeys(TrainingSettings.SETTINGS, "teacher_training") | dict.fromkeys(VIEW_SETTINGS, "tmkd")
    values: dict[str, Any] = {}
    for key, value in assignments.items():
        if key in sections:
            values.setdefault(sections[key], {})[key] = value
        elif key in sections.values() and isinstance(value, Mapping):
            values.setdefault(key, {}).update(value)
        elif key in DATA_SETTINGS:
            values[key] = value
        else:
            raise unknown_name("setting of a teacher", key, (*sections, *DATA_SETTINGS))
    return values


def _view_settings(configuration: Configuration) -> ViewSettings:
    given = configuration.settings_of("tmkd")
    return ViewSettings(**{name: given[name] for name in VIEW_SETTINGS if name in given})


def _plan_lines(configuration: Configuration, dataset: ImageDataset) -> list[str]:
    experiment, settings = configuration.experiment, configuration.recipe("teacher_training")
    sizes = (
        f"{len(dataset.train):,} training, {len(dataset.validation):,} validation, {len(dataset.test):,} test images"
    )
    start = ", pretrained" if experiment.teacher_pretrained else ""
    recipe = recipe_name_of(settings)
    return [
        f"Data set {dataset.name}: {sizes} of {dataset.image_size} px, {dataset.num_classes} classes",
        f"Teacher {experiment.teacher}{start}, trained on {'RGB' if experiment.teacher_views == 'rgb' else 'all views'}, "
        f"seed {experiment.teacher_seed}; {f'recipe {recipe}' if recipe else 'a recipe without a name'}, {settings.epochs} "
        f"epochs; CPU threads: {torch.get_num_threads()}",
    ]


def _print_outcome(teacher: TrainedTeacher) -> None:
    if teacher.from_cache:
        print("This teacher is there already; its weights and its validation accuracy are those of its record.")
    print(f"{teacher.source}: {_accuracies(teacher.val_top1, teacher.per_view_top1)}")
    print(f"Weights sha256 {teacher.weights_sha256}; in {teacher.folder}")


def _accuracies(validation: float, test: Mapping[str, float]) -> str:
    by_view = ", ".join(f"{view} {top1:.2f}" for view, top1 in _in_order(test).items())
    return f"top-1 in %: validation {validation:.2f}; test {by_view}"


def verify_teachers(
    wanted: Sequence[str], *, data_dir: str | None = None, device: str = "cpu", threads: int | None = None
) -> int:
    """Measures stored teachers again and prints a line for each.

    Args:
        wanted: Which; see :func:`~tmkd_plugin.training.teacher_store.find_teachers`.
        data_dir: Where data sets known by name lie; ``None`` for where they lay.
        device: Where to measure.
        threads: Number of CPU threads; ``None`` for torch's choice.

    Returns:
        0 if all are what their records say, 1 if one is not, 2 if one can't be measured here.

    Raises:
        InputError: There is no such teacher.
    """
    _set_up(device, threads)
    teachers = find_teachers(store(), wanted)
    datasets: dict[str, ImageDataset] = {}
    code = DONE
    for teacher in teachers:
        problems = [] if teacher.problem is None else [teacher.problem]
        try:
            if not problems:
                problems = verify_teacher(teacher, _dataset_of(teacher, data_dir, datasets), device)
        except InputError as error:
            print(f"can't say  {teacher.title}: {error}")
            code = code or BAD_INPUT
            continue
        if problems:
            print(f"FAILED     {teacher.title}: {'; '.join(problems)}", flush=True)
            code = NO
        else:
            accuracies = _accuracies(teacher.record["val_top1"]["rgb"], teacher.record["test_top1"])
            print(f"ok         {teacher.title} on {teacher.record['dataset']['name']}: {accuracies}", flush=True)
    if not teachers:
        print(f"No teachers in {store()}.")
    return code


def _dataset_of(teacher: StoredTeacher, data_dir: str | None, datasets: dict[str, ImageDataset]) -> ImageDataset:
    """Loads what a teacher was trained on, once for all teachers of the same images; nothing is downloaded."""
    loading = teacher.record["dataset"]["loading"]
    if loading is None:
        raise InputError("its record does not say how its data set was loaded, so it can't be measured again.")
    loading = loading if data_dir is None else {**loading, "data_dir": data_dir}
    key = json.dumps(loading, sort_keys=True)
    if key not in datasets:
        datasets[key] = load_dataset(**loading, download=False)
    return datasets[key]


def _set_up(device: str, threads: int | None) -> None:
    """Sets the number of threads and refuses a device that is not there."""
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises AssertionError
        reason = str(error).partition("\n")[0]
        raise InputError(f"device={device!r} can't be used: {reason}. Expected cpu, cuda or cuda:N.") from None


def _silent(_: str) -> None:
    """Says nothing."""
