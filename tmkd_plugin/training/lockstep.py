"""Several arms on one stream of batches: each batch is made once, and the teacher sees it once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tmkd_plugin.data.batches import Batch
from tmkd_plugin.data.dataset import ImageDataset
from tmkd_plugin.training.arm import Arm
from tmkd_plugin.training.checkpoint import Checkpoints
from tmkd_plugin.training.progress import Progress, SilentProgress
from tmkd_plugin.training.shared_teacher import shared_teachers
from tmkd_plugin.training.teacher_cache import TeacherCache

OnFailure = Callable[[str, Exception], None]
"""Is told the name and the error of an arm that failed."""


def train_arms(
    arms: list[Arm],
    batches: Callable[[int], Iterable[Batch]],
    dataset: ImageDataset,
    *,
    after_epoch: Callable[[Arm, dict[str, Any]], None],
    progress: Progress | None = None,
    checkpoints: Mapping[str, Checkpoints] | None = None,
    on_failure: OnFailure | None = None,
    teacher_cache: TeacherCache | None = None,
) -> float:
    """Runs every epoch of arms that share a recipe, from wherever each of them is.

    Args:
        arms: Fresh or restored from a checkpoint; one that fails is taken out.
        batches: The batches of an epoch, which counts from 1.
        dataset: Where the validation split is taken from.
        after_epoch: Called with each arm and its record when its epoch is done.
        progress: What shows how far it is; None for nothing.
        checkpoints: Where the state of each arm is kept, by name; None for nowhere.
        on_failure: See :func:`failing_alone`.
        teacher_cache: What answers for the teachers, which it has to know; None lets the teachers themselves answer.

    Returns:
        The seconds that the making of the batches took.
    """
    progress = progress or SilentProgress()
    everybody, batch_seconds = list(arms), 0.0
    try:
        for arm in arms:
            progress.begin(arm.name, arm.seed, arm.settings.epochs, arm.steps_per_epoch)
        for epoch in range(1, max((arm.settings.epochs for arm in arms), default=0) + 1):
            behind = [arm for arm in arms if len(arm.history) < epoch]
            if not behind:
                continue
            batch_seconds += _run_epoch(arms, behind, epoch, batches, progress, checkpoints, on_failure, teacher_cache)
            for arm in behind:
                with failing_alone(arm.name, on_failure, arm, arms):
                    record = arm.end_epoch(dataset)
                    after_epoch(arm, record)
                    progress.epoch(arm.name, epoch, record["losses"]["loss"], record["val_top1"])
                    _save_if_due(arm, checkpoints)
    finally:
        for arm in everybody:
            progress.end(arm.name)
    return batch_seconds


def _run_epoch(
    arms: list[Arm],
    behind: list[Arm],
    epoch: int,
    batches: Callable[[int], Iterable[Batch]],
    progress: Progress,
    checkpoints: Mapping[str, Checkpoints] | None,
    on_failure: OnFailure | None,
    teacher_cache: TeacherCache | None,
) -> float:
    """Takes the arms that have not finished an epoch through it; returns the seconds that the making of its batches took."""
    for arm in behind:
        arm.begin_epoch(epoch)
    device, batch_seconds, start = behind[0].device, 0.0, time.perf_counter()
    distillers = [arm.distiller for arm in behind]
    with contextlib.ExitStack() as stack:
        begin = None if teacher_cache is None else stack.enter_context(teacher_cache.answering(distillers, epoch))
        forget = stack.enter_context(shared_teachers(distillers if begin is None else []))
        for step, batch in enumerate(batches(epoch)):
            images, labels, ids = batch.images.to(device), batch.labels.to(device), batch.ids.to(device)
            batch_seconds += time.perf_counter() - start
            if begin is not None:
                begin(images, ids)
            for arm in list(behind):
                if arm.steps_done > step:  # before its checkpoint
                    continue
                with failing_alone(arm.name, on_failure, arm, arms, behind):
                    arm.step(images, labels, ids)
                    progress.step(arm.name)
                    _save_if_due(arm, checkpoints)
            forget()
            if not behind:
                break
            start = time.perf_counter()
    return batch_seconds


@contextlib.contextmanager
def failing_alone(name: str, on_failure: OnFailure | None, arm: Arm | None = None, *of: list[Arm]) -> Iterator[None]:
    """Keeps the failure of one arm from the others.

    Args:
        name: The arm's name.
        on_failure: Is told the name and the error, and raises what concerns all; None raises the error.
        arm: The arm.
        *of: What it is taken out of when it fails.
    """
    try:
        yield
    except Exception as error:  # a user's distiller raises whatever it likes
        if on_failure is None:
            raise
        for arms in of:
            if arm is not None and arm in arms:
                arms.remove(arm)
        on_failure(name, error)


def _save_if_due(arm: Arm, checkpoints: Mapping[str, Checkpoints] | None) -> None:
    if checkpoints and checkpoints[arm.name].due:
        snapshot = arm.snapshot()
        checkpoints[arm.name].save(snapshot.tensors, snapshot.state)
