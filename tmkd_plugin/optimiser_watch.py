"""Notices when an optimiser trains the student but was not given the enhancer's heads."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tmkd_plugin.errors import TmkdNotice

WATCHED_STEPS = 30
"""Steps after which it stops looking, so that a long run pays nothing for it."""


class OptimiserWatch:
    """Warns once if the student was updated twice while no head was.

    Compares a few values of each tensor from step to step; accumulated or skipped steps do not raise a false alarm.

    Args:
        student: Parameters of the student.
        heads: Parameters of the heads.
    """

    def __init__(self, student: Sequence[nn.Parameter], heads: Sequence[nn.Parameter]) -> None:
        self._student, self._heads = list(student), list(heads)
        self._seen: tuple[Tensor, Tensor] | None = None
        self._updates = 0
        self._steps_left = WATCHED_STEPS if self._student and self._heads else 0

    def look(self) -> None:
        """Looks at the parameters; to be called once in each training step, before the backward pass."""
        if not self._steps_left:
            return
        self._steps_left -= 1
        now = _sample(self._student), _sample(self._heads)
        if self._seen is not None:
            if not torch.equal(now[1], self._seen[1]):
                self._stop()
                return
            self._updates += not torch.equal(now[0], self._seen[0])
        self._seen = now
        if self._updates >= 2:
            self._stop()
            warnings.warn(
                "The optimiser has updated the student twice, but none of the enhancer's own parameters (WeightNet and the "
                "projections). Give it all of them: torch.optim.SGD(enhancer.trainable_parameters(), ...).",
                TmkdNotice,
                stacklevel=4,
            )

    def _stop(self) -> None:
        self._steps_left, self._seen = 0, None


def _sample(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Returns a copy of the first few values of each parameter."""
    return torch.cat([parameter.detach().reshape(-1)[:8].float() for parameter in parameters])
