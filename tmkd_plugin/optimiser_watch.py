"""Notices when an optimiser trains the student but was not given the enhancer's heads."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import nn

from tmkd_plugin.errors import TmkdNotice


class OptimiserWatch:
    """Warns once if the student was updated twice while no head was.

    Counts the in-place updates that autograd keeps for each tensor, so that watching costs no copy and no synchronisation,
    and accumulated or skipped steps do not raise a false alarm.

    Args:
        student: Parameters of the student.
        heads: Parameters of the heads.
    """

    def __init__(self, student: Sequence[nn.Parameter], heads: Sequence[nn.Parameter]) -> None:
        self._student, self._heads = list(student), list(heads)
        self._student_version = self._heads_version = -1
        self._updates = 0
        self._done = not self._heads

    def look(self) -> None:
        """Looks at the parameters; to be called once in each training step, before the backward pass."""
        if self._done:
            return
        student, heads = (sum(p._version for p in group) for group in (self._student, self._heads))
        if self._heads_version not in (-1, heads):
            self._done = True
            return
        if self._student_version not in (-1, student):
            self._updates += 1
        self._student_version, self._heads_version = student, heads
        if self._updates >= 2:
            self._done = True
            warnings.warn(
                "The optimiser has updated the student twice, but none of the enhancer's own parameters (WeightNet and the "
                "projections). Give it all of them: torch.optim.SGD(enhancer.trainable_parameters(), ...).",
                TmkdNotice,
                stacklevel=4,
            )
