"""Trains distillers: epochs, validation, the choice of the weights, and the test split at the very end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tmkd_plugin.data.batches import Batch, batch_bounds, training_batches
from tmkd_plugin.data.dataset import ImageDataset
from tmkd_plugin.errors import InputError
from tmkd_plugin.training.acceleration import Acceleration
from tmkd_plugin.training.arm import Arm
from tmkd_plugin.training.checkpoint import Checkpoints
from tmkd_plugin.training.distributed import Processes
from tmkd_plugin.training.epoch_log import EpochLog
from tmkd_plugin.training.metrics import evaluate
from tmkd_plugin.training.progress import Progress, SilentProgress
from tmkd_plugin.training.run_folder import RunFolder
from tmkd_plugin.training.settings import TrainingSettings
from tmkd_plugin.training.sharding import sharded_networks


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
        seconds: Wall time that the arm takes alone: its own steps and evaluations, and the making of the batches. It is
            no function of the seed, and stands in no file that a run writes.
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
) -> dict[str, ArmResult]:
    """Trains several distillers side by side on the same batches; each gives the same bits as alone.

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

    Returns:
        The result of each name.
    """
    acceleration = acceleration or Acceleration()
    acceleration.check(device)
    train = dataset.train.to(device)
    steps = check_splits(dataset, settings)
    arms = []
    for name, distiller in distillers.items():
        acceleration.apply(distiller.to(device))
        arms.append(
            Arm(
                name,
                distiller,
                settings,
                seed=seed,
                steps_per_epoch=steps,
                device=device,
                acceleration=acceleration,
                processes=processes,
            )
        )
    for arm in arms:
        arm.check(dataset)
        found = checkpoints[arm.name].load() if checkpoints else None
        if found is not None:
            arm.restore(found)
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
        batch_seconds = train_arms(arms, batches, dataset, after_epoch=save, progress=progress, checkpoints=kept)
        return {arm.name: _finish(arm, dataset, files.get(arm.name), batch_seconds) for arm in arms}


def train_arms(
    arms: Sequence[Arm],
    batches: Callable[[int], Iterable[Batch]],
    dataset: ImageDataset,
    *,
    after_epoch: Callable[[Arm, dict[str, Any]], None],
    progress: Progress | None = None,
    checkpoints: Mapping[str, Checkpoints] | None = None,
) -> float:
    """Runs every epoch of arms that share a recipe, from wherever each of them is.

    Args:
        arms: At least one, fresh or restored from a checkpoint.
        batches: The batches of an epoch, which counts from 1.
        dataset: Where the validation split is taken from.
        after_epoch: Called with each arm and its record when its epoch is done.
        progress: What shows how far it is; None for nothing.
        checkpoints: Where the state of each arm is kept, by name; None for nowhere.

    Returns:
        The seconds that the making of the batches took.
    """
    progress = progress or SilentProgress()
    epochs, device = arms[0].settings.epochs, next(arms[0].student.parameters()).device
    batch_seconds = 0.0
    try:
        for arm in arms:
            progress.begin(arm.name, arm.seed, epochs, arm.steps_per_epoch)
        for epoch in range(1, epochs + 1):
            behind = [arm for arm in arms if len(arm.history) < epoch]
            if not behind:
                continue
            for arm in behind:
                arm.begin_epoch(epoch)
            start = time.perf_counter()
            for step, batch in enumerate(batches(epoch)):
                images, labels = batch.images.to(device), batch.labels.to(device)
                batch_seconds += time.perf_counter() - start
                for arm in behind:
                    if arm.steps_done > step:  # before its checkpoint
                        continue
                    arm.step(images, labels)
                    progress.step(arm.name)
                    _save_if_due(arm, checkpoints)
                start = time.perf_counter()
            for arm in behind:
                record = arm.end_epoch(dataset)
                after_epoch(arm, record)
                progress.epoch(arm.name, epoch, record["losses"]["loss"], record["val_top1"])
                _save_if_due(arm, checkpoints)
    finally:
        for arm in arms:
            progress.end(arm.name)
    return batch_seconds


def _save_if_due(arm: Arm, checkpoints: Mapping[str, Checkpoints] | None) -> None:
    if checkpoints and checkpoints[arm.name].due:
        snapshot = arm.snapshot()
        checkpoints[arm.name].save(snapshot.tensors, snapshot.state)


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
