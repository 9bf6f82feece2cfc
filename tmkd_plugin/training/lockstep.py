"""Several arms on one stream of batches: each batch is made once, and the teacher sees it once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tmkd_plugin.data.batches import Batch
from tmkd_plugin.data.dataset import ImageDataset
from tmkd_plugin.training.arm import Arm
from tmkd_plugin.training.checkpoint import Checkpoints
from tmkd_plugin.training.isolation import OwnBatch, apart
from tmkd_plugin.training.progress import Progress, SilentProgress
from tmkd_plugin.training.shared_teacher import SharedTeachers
from tmkd_plugin.training.teacher_cache import Showing, TeacherCache

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
    lockstep = _Lockstep(arms, progress or SilentProgress(), checkpoints, on_failure, teacher_cache)
    everybody, batch_seconds = list(arms), 0.0
    try:
        for arm in arms:
            lockstep.progress.begin(arm.name, arm.seed, arm.settings.epochs, arm.steps_per_epoch)
        for epoch in range(1, max((arm.settings.epochs for arm in arms), default=0) + 1):
            behind = [arm for arm in arms if len(arm.history) < epoch]
            if not behind:
                continue
            batch_seconds += lockstep.run_epoch(behind, epoch, batches)
            for arm in behind:
                with lockstep.failing(arm):
                    record = arm.end_epoch(dataset)
                    after_epoch(arm, record)
                    lockstep.progress.epoch(arm.name, epoch, record["losses"]["loss"], record["val_top1"])
                    lockstep.save_if_due(arm)
    finally:
        for arm in everybody:
            lockstep.progress.end(arm.name)
    return batch_seconds


@dataclass(frozen=True)
class _Lockstep:
    """Takes arms through their epochs; see :func:`train_arms`."""

    arms: list[Arm]
    progress: Progress
    checkpoints: Mapping[str, Checkpoints] | None
    on_failure: OnFailure | None
    teacher_cache: TeacherCache | None

    def run_epoch(self, behind: list[Arm], epoch: int, batches: Callable[[int], Iterable[Batch]]) -> float:
        """Takes the arms that have not finished an epoch through it; returns the seconds that its batches took."""
        for arm in list(behind):
            with self.failing(arm, behind):
                arm.begin_epoch(epoch)
        groups, batch_seconds, start = self._groups(behind, epoch), 0.0, time.perf_counter()
        for step, made in enumerate(batches(epoch) if behind else ()):
            batch = made.to(behind[0].device)
            batch_seconds += time.perf_counter() - start
            for group in groups:
                self._step(group, batch, step, behind)
            if not behind:
                break
            start = time.perf_counter()
        return batch_seconds

    def _groups(self, behind: list[Arm], epoch: int) -> list[_Group]:
        """Prepares what each group of arms shares of their teachers' answers."""
        groups = []
        for arms in apart(behind):
            distillers = [arm.distiller for arm in arms]
            # What goes wrong for arms that share concerns all of them.
            concerned = self.failing(arms[0], behind) if len(arms) == 1 < len(behind) else contextlib.nullcontext()
            with concerned:
                if self.teacher_cache is not None:
                    groups.append(_Group(arms, self.teacher_cache.answering(distillers, epoch)))
                else:
                    groups.append(_Group(arms, _asking_once(SharedTeachers(distillers))))
        return groups

    def _step(self, group: _Group, batch: Batch, step: int, behind: list[Arm]) -> None:
        """Takes the arms of a group through one batch."""
        own = OwnBatch(batch)
        with contextlib.ExitStack() as shown:
            shown.enter_context(group.showing(own.batch.images, own.batch.ids))
            for arm in [each for each in group.arms if each in behind]:
                if arm.steps_done > step:  # before its checkpoint
                    continue
                if not own.is_unchanged():
                    shown.close()
                    shown.enter_context(group.showing(own.batch.images, own.batch.ids))
                with self.failing(arm, behind):
                    arm.step(own.batch.images, own.batch.labels, own.batch.ids)
                    self.progress.step(arm.name)
                    self.save_if_due(arm)

    def failing(self, arm: Arm, *of: list[Arm]) -> contextlib.AbstractContextManager[None]:
        """Takes an arm that fails out of all arms and of further lists; see :func:`failing_alone`."""
        return failing_alone(arm.name, self.on_failure, arm, self.arms, *of)

    def save_if_due(self, arm: Arm) -> None:
        """Writes the arm's checkpoint if it is time."""
        if self.checkpoints and self.checkpoints[arm.name].due:
            snapshot = arm.snapshot()
            self.checkpoints[arm.name].save(snapshot.tensors, snapshot.state)


@dataclass(frozen=True)
class _Group:
    """Arms that share a batch.

    Attributes:
        arms: The arms.
        showing: Answers for their teachers while they see a batch.
    """

    arms: list[Arm]
    showing: Showing


def _asking_once(shared: SharedTeachers) -> Showing:
    def showing(images: Tensor, ids: Tensor) -> contextlib.AbstractContextManager[None]:
        return shared.answering()

    return showing


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
