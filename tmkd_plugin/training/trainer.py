"""Trains distillers: epochs, validation, the choice of the weights, and the test split at the very end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tmkd_plugin.data.batches import Batch, batch_bounds, training_batches
from tmkd_plugin.data.dataset import ImageDataset
from tmkd_plugin.errors import InputError
from tmkd_plugin.sample_ids import tell_samples
from tmkd_plugin.training.acceleration import Acceleration
from tmkd_plugin.training.arm import Arm
from tmkd_plugin.training.checkpoint import Checkpoints
from tmkd_plugin.training.distributed import Processes
from tmkd_plugin.training.epoch_log import EpochLog
from tmkd_plugin.training.lockstep import failing_alone, train_arms
from tmkd_plugin.training.metrics import evaluate
from tmkd_plugin.training.progress import Progress
from tmkd_plugin.training.run_folder import RunFolder
from tmkd_plugin.training.settings import TrainingSettings
from tmkd_plugin.training.sharding import sharded_networks
from tmkd_plugin.training.teacher_cache import TeacherCache, TeacherCacheFolder


@dataclass(frozen=True)
class EpochScores:
    """The student after one epoch, in percent.

    Attributes:
        epoch: From 1.
        val_top1: Top-1 on the validation split.
        top1: Top-1 on the test split.
        top5: Top-5 there; see :class:`~tmkd_plugin.training.metrics.Scores`.
        recall: Macro recall there.
    """

    epoch: int
    val_top1: float
    top1: float
    top5: float
    recall: float


@dataclass(frozen=True)
class ArmResult:
    """What training one arm gave.

    Attributes:
        best: The epoch with the highest validation top-1, the earliest of equals.
        last: The last epoch.
        history: One record an epoch, as in ``history.jsonl``.
        seconds: Wall time of the arm's own steps and evaluations, and of the making of the batches, which all arms share. What
            arms that train side by side share in a step, such as the teacher's passes, counts for the first one that needs it.
            It is no function of the seed, and stands in no file that a run writes.
    """

    best: EpochScores
    last: EpochScores
    history: list[dict[str, Any]]
    seconds: float


def train_distiller(
    distiller: nn.Module,
    dataset: ImageDataset,
    settings: TrainingSettings,
    *,
    seed: int,
    folder: Path,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
    name: str = "student",
    checkpoints: Checkpoints | None = None,
    tensorboard: bool = False,
    acceleration: Acceleration | None = None,
    processes: Processes | None = None,
    augmentation_variants: int | None = None,
    teacher_cache: TeacherCacheFolder | None = None,
) -> ArmResult:
    """Trains one distiller; the case of one arm of :func:`train_distillers`.

    Args:
        distiller: See :class:`~tmkd_plugin.training.arm.Arm`. It ends with the weights of the best epoch.
        dataset: The weights are chosen on its validation split; its test split is touched at the end only.
        settings: The recipe.
        seed: Order, augmentation and dropout are functions of it. The same seed gives the same bits in every file on the
            same machine type, version of torch and number of threads.
        folder: Where the files of the run go; see :class:`~tmkd_plugin.training.run_folder.RunFolder`.
        progress: What shows how far it is; None for nothing.
        device: Where to train.
        name: What messages and the progress call it.
        checkpoints: Where the state of the unfinished run is kept; a checkpoint that is there is gone on from, with the same
            bits in the end. None for no checkpoints.
        tensorboard: Whether to write TensorBoard events beside the log.
        acceleration: How a batch is computed; None for everything off.
        processes: Those that train it together, each of which calls this function with the same arguments; the first one
            writes the files. None for this process alone.
        augmentation_variants: K: epoch e has the augmentation of epoch ``(e-1) % K + 1``, in an order of its own. None for
            another augmentation in each epoch.
        teacher_cache: Where the teacher's answers are kept, so that it runs once for each image and view and not in each
            step; results agree with those without it up to rounding. None runs the teacher.

    Returns:
        The scores of the best and the last epoch.

    Raises:
        InputError: Data set, settings and student don't fit each other; nothing was trained.
        NonFiniteLossError: A loss became NaN or infinite; the best weights so far are in the folder.
    """
    results = train_distillers(
        {name: distiller},
        dataset,
        settings,
        seed=seed,
        folders={name: folder},
        progress=progress,
        device=device,
        checkpoints=None if checkpoints is None else {name: checkpoints},
        tensorboard=tensorboard,
        acceleration=acceleration,
        processes=processes,
        augmentation_variants=augmentation_variants,
        teacher_cache=teacher_cache,
    )
    return results[name]


def train_distillers(
    distillers: Mapping[str, nn.Module],
    dataset: ImageDataset,
    settings: TrainingSettings,
    *,
    seed: int,
    folders: Mapping[str, Path],
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
    checkpoints: Mapping[str, Checkpoints] | None = None,
    tensorboard: bool = False,
    acceleration: Acceleration | None = None,
    processes: Processes | None = None,
    on_failure: Callable[[str, Exception], None] | None = None,
    augmentation_variants: int | None = None,
    teacher_cache: TeacherCacheFolder | None = None,
) -> dict[str, ArmResult]:
    """Trains several distillers side by side on the same batches; on a CPU each gives the same bits as alone.

    Distillers whose teachers hold the same tensors share what their teacher says of a batch and of its views; see
    :func:`~tmkd_plugin.training.shared_teacher.shared_teachers`.

    Args:
        distillers: By name; no two may share a student.
        dataset: See :func:`train_distiller`, also for the arguments that follow.
        settings: One recipe for all.
        seed: One seed for all.
        folders: The folder of each name.
        progress: ...
        device: ...
        checkpoints: Those of each name.
        tensorboard: ...
        acceleration: ...
        processes: ...
        on_failure: Called with the name and the error of one that failed, while the others go on; None raises the error.
        augmentation_variants: ...
        teacher_cache: ...

    Returns:
        The result of each name that did not fail.
    """
    acceleration = acceleration or Acceleration()
    acceleration.check(device)
    train = dataset.train.to(device)
    steps = check_splits(dataset, settings)
    cache = None
    if teacher_cache is not None:
        cache = TeacherCache(
            teacher_cache,
            dataset,
            train,
            seed=seed,
            variants=augmentation_variants,
            batch_size=settings.batch_size,
            device=torch.device(device),
            acceleration=acceleration,
            processes=processes,
        )
    arms: list[Arm] = []
    for name, distiller in distillers.items():
        with failing_alone(name, on_failure):
            tell_samples(distiller, dataset.train.labels, dataset.train.ids)
            acceleration.apply(distiller.to(device))
            arm = Arm(
                name,
                distiller,
                settings,
                seed=seed,
                steps_per_epoch=steps,
                device=device,
                acceleration=acceleration,
                processes=processes,
            )
            arm.check(dataset)
            if cache is not None:
                cache.know(distiller)
            found = checkpoints[name].load() if checkpoints else None
            if found is not None:
                arm.restore(found)
            arms.append(arm)
    if processes is not None:
        processes.barrier()  # all have loaded before the first one writes
    writes = processes is None or processes.is_main
    files = {arm.name: RunFolder(folders[arm.name]) for arm in arms if writes}
    logs = {arm.name: EpochLog(folders[arm.name], len(train), tensorboard=tensorboard) for arm in arms if writes}
    for arm in arms if writes else []:
        files[arm.name].begin(arm)
        logs[arm.name].begin(arm)

    def batches(epoch: int) -> Iterable[Batch]:
        return training_batches(
            train,
            dataset.augmentation,
            dataset.mean,
            dataset.std,
            batch_size=settings.batch_size,
            seed=seed,
            epoch=epoch,
            variants=augmentation_variants,
        )

    def save(arm: Arm, record: dict[str, Any]) -> None:
        # Weights before history: a line in the history means that its weights, if they are the best, are on disk.
        if not writes:
            return
        if arm.best_epoch == arm.epoch:
            files[arm.name].save_best(arm.epoch, arm.best_student, arm.best_heads)
        files[arm.name].save_epoch(record)
        logs[arm.name].epoch(arm, record)

    kept = checkpoints if writes else None
    with contextlib.ExitStack() as stack:
        for log in logs.values():
            stack.callback(log.close)
        for arm in arms:
            stack.enter_context(sharded_networks(arm.distiller, processes))
        batch_seconds = train_arms(
            arms,
            batches,
            dataset,
            after_epoch=save,
            progress=progress,
            checkpoints=kept,
            on_failure=on_failure,
            teacher_cache=cache,
        )
        results = {}
        for arm in list(arms):
            with failing_alone(arm.name, on_failure):
                results[arm.name] = _finish(arm, dataset, files.get(arm.name), batch_seconds)
        return results


def check_splits(dataset: ImageDataset, settings: TrainingSettings) -> int:
    """Refuses a data set with an empty split; returns the number of steps in an epoch."""
    for name in ("train", "validation", "test"):
        if len(getattr(dataset, name)) == 0:
            raise InputError(
                f"The {name} split of the data set '{dataset.name}' is empty: training needs images to train on, to choose the "
                "weights by (validation_fraction=) and to report."
            )
    return len(batch_bounds(len(dataset.train), settings.batch_size))


def _finish(arm: Arm, dataset: ImageDataset, files: RunFolder | None, batch_seconds: float) -> ArmResult:
    """Evaluates the last and the best weights on the test split, which nothing has touched before."""
    start = time.perf_counter()
    if files is not None:
        files.save_last(arm.epoch, arm.student.state_dict())
    last, logits = _test_scores(arm, dataset, arm.epoch)
    best = last
    if arm.best_epoch != arm.epoch:
        arm.restore_best()
        best, logits = _test_scores(arm, dataset, arm.best_epoch)
    if files is not None:
        files.save_predictions(dataset.test.ids, dataset.test.labels, logits)
    seconds = arm.seconds + batch_seconds + time.perf_counter() - start
    return ArmResult(best=best, last=last, history=arm.history, seconds=seconds)


def _test_scores(arm: Arm, dataset: ImageDataset, epoch: int) -> tuple[EpochScores, Tensor]:
    scores, logits = evaluate(arm.student, dataset.test, dataset.mean, dataset.std, arm.settings.batch_size)
    val_top1 = arm.history[epoch - 1]["val_top1"]
    return EpochScores(epoch, val_top1, scores.top1, scores.top5, scores.recall), logits
