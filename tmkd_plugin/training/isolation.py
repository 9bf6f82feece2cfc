"""Which distillers train on one batch and one teacher together, and which run code that may do anything to both."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from tmkd_plugin.batch_memory import version_of
from tmkd_plugin.data.batches import Batch
from tmkd_plugin.training.arm import Arm


def shares_teacher(distiller: Any) -> bool:
    """Says whether a distiller may share batch and teacher with others.

    This package's own distillers do. Somebody else's may write into the images, train the teacher or switch it for a call, so
    it gets its own of both, unless its class promises by ``shares_teacher = True`` that it does nothing of that, and leaves
    what the teacher returns unchanged.

    Args:
        distiller: A distiller, with all that is wrapped in it, or the class or function that builds one.
    """
    declared = getattr(distiller, "shares_teacher", None)
    if declared is not None:
        return bool(declared)
    made_by = distiller if inspect.isclass(distiller) or inspect.isroutine(distiller) else type(distiller)
    if not made_by.__module__.startswith("tmkd_plugin."):
        return False
    inner = getattr(distiller, "distiller", None)
    return inner is None or shares_teacher(inner)


def apart(arms: Iterable[Arm]) -> list[list[Arm]]:
    """Groups arms: first all that share batch and teacher, then each of the others by itself."""
    together: list[Arm] = []
    alone: list[list[Arm]] = []
    for arm in arms:
        if shares_teacher(arm.distiller):
            together.append(arm)
        else:
            alone.append([arm])
    return [together, *alone] if together else alone


class OwnBatch:
    """The batch of one group of arms: what an arm writes into it, the next one does not see.

    Args:
        batch: The batch as it was made, which nobody may write to.
    """

    def __init__(self, batch: Batch) -> None:
        self._whole = batch
        self.batch = batch.clone()
        self._versions = self._count_writes()

    def is_unchanged(self) -> bool:
        """Says whether it is as it was made; if somebody has written to it, it is made anew."""
        if self._count_writes() == self._versions:
            return True
        self.batch = self._whole.clone()
        self._versions = self._count_writes()
        return False

    def _count_writes(self) -> list[int]:
        return [version_of(tensor) for tensor in (self.batch.images, self.batch.labels, self.batch.ids)]
