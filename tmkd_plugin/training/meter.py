"""The mean of each loss term over an epoch, and the first loss that is not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tmkd_plugin.distiller_return import DistillerReturn

GPU_STEPS = 50
"""Steps between two looks at the values on a GPU: each look waits for it. On a CPU every step is looked at."""


@dataclass(frozen=True)
class NonFinite:
    """A step whose loss is NaN or infinite.

    Attributes:
        step: From 1, within the epoch.
        loss: The total.
        terms: The value of every term.
    """

    step: int
    loss: float
    terms: dict[str, float]


@dataclass(frozen=True)
class _Step:
    names: tuple[str, ...]
    values: Tensor  # the loss, the number of right answers, then the terms
    images: int


class LossMeter:
    """Collects losses as tensors and turns many steps of them into numbers at a time."""

    def __init__(self) -> None:
        self._pending: list[_Step] = []
        self._steps = 0
        self._images = 0
        self._counted_images = 0
        self._correct = 0.0
        self._sums: dict[str, float] = {}

    def add(self, result: DistillerReturn, labels: Tensor) -> NonFinite | None:
        """Notes one step.

        Args:
            result: What the distiller returned.
            labels: (B,) int64, or (B, K) probabilities whose largest entry counts.

        Returns:
            The first step with a non-finite loss that has come to light, which on a GPU may be one of some steps ago.
        """
        loss = result.loss.detach().float()
        correct = _count_correct(result.output, labels) if result.output is not None else loss.new_full((), math.nan)
        terms = [term.detach().float().reshape(()) for term in result.terms.values()]
        values = torch.stack([loss.reshape(()), correct.to(loss), *terms])
        self._pending.append(_Step(tuple(result.terms), values, len(labels)))
        return self.flush() if looked_at_once(loss) or len(self._pending) >= GPU_STEPS else None

    def flush(self) -> NonFinite | None:
        """Turns what is still on the device into numbers, with one transfer; returns the first non-finite step in it."""
        pending, self._pending = self._pending, []
        if not pending:
            return None
        numbers = iter(torch.cat([step.values for step in pending]).tolist())
        for step in pending:
            loss, correct = next(numbers), next(numbers)
            terms = {name: next(numbers) for name in step.names}
            self._steps += 1
            if not math.isfinite(loss):
                return NonFinite(self._steps, loss, terms)
            self._images += step.images
            if not math.isnan(correct):
                self._counted_images += step.images
                self._correct += correct
            for name, value in {"loss": loss, **terms}.items():
                self._sums[name] = self._sums.get(name, 0.0) + value * step.images
        return None

    def state(self) -> dict[str, Any]:
        """Returns the sums so far as JSON values; call :meth:`flush` before."""
        return {
            "steps": self._steps,
            "images": self._images,
            "counted_images": self._counted_images,
            "correct": self._correct,
            "sums": dict(self._sums),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state` returned."""
        self._pending = []
        self._steps, self._images = state["steps"], state["images"]
        self._counted_images, self._correct = state["counted_images"], state["correct"]
        self._sums = dict(state["sums"])

    def means(self) -> dict[str, float]:
        """Returns the mean over images of the total (``"loss"``) and of each term, to 6 significant digits."""
        return {name: float(f"{total / self._images:.6g}") for name, total in self._sums.items()}

    def top1(self) -> float | None:
        """Returns the share of right answers in training, in percent; None where the distiller returns no logits."""
        return round(100 * self._correct / self._counted_images, 4) if self._counted_images else None


def looked_at_once(loss: Tensor) -> bool:
    """Tells whether reading a loss costs nothing, since it is on the CPU."""
    return loss.device.type == "cpu"


def _count_correct(output: Tensor, labels: Tensor) -> Tensor:
    classes = labels.argmax(1) if labels.dim() == 2 else labels
    return (output.detach().argmax(1) == classes).sum()
