"""How a network is trained: the length, the optimiser and the learning rate of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tmkd_plugin.errors import InputError
from tmkd_plugin.settings import Setting


@dataclass(frozen=True)
class TrainingSettings:
    """The recipe of one training run: SGD, linear warm-up, step decay.

    Epochs count from 1, and ``decay_epochs`` names the last epoch before each drop: ``(75,)`` lowers the learning rate from
    epoch 76 on. ``SETTINGS`` says what each value means and where its default comes from. A value out of its range raises
    an ``InputError`` that names it.
    """

    epochs: int = 120
    batch_size: int = 64
    learning_rate: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: int = 5
    decay_epochs: tuple[int, ...] = (75, 90, 105)
    decay_rate: float = 0.1

    SETTINGS: ClassVar[dict[str, Setting]] = {
        "epochs": Setting(120, "paper", "passes over the training images; at least 1"),
        "batch_size": Setting(64, "official code (mdistiller, RepDistiller)", "images a step; at least 1"),
        "learning_rate": Setting(0.001, "paper", "SGD's learning rate after the warm-up; above 0"),
        "momentum": Setting(0.9, "paper", "SGD's momentum; from 0 to below 1"),
        "weight_decay": Setting(5e-4, "official code (mdistiller, RepDistiller)", "SGD's L2 penalty; at least 0"),
        "warmup_epochs": Setting(5, "ours", "epochs in which the learning rate rises linearly; 0 for none"),
        "decay_epochs": Setting(
            (75, 90, 105),
            "ours: mdistiller's 150, 180, 210 of 240 epochs, scaled to 120",
            "the last epoch before each drop of the learning rate; rising, each at least 1",
        ),
        "decay_rate": Setting(
            0.1, "official code (mdistiller, RepDistiller)", "factor at each drop; above 0, at most 1"
        ),
    }

    def __post_init__(self) -> None:
        """Checks every value, so that a bad one is refused before any training starts."""
        for name in ("epochs", "batch_size", "warmup_epochs"):
            _check_integer(name, getattr(self, name), 0 if name == "warmup_epochs" else 1)
        for name in ("learning_rate", "momentum", "weight_decay", "decay_rate"):
            _check_number(name, getattr(self, name))
        _check(self.learning_rate > 0, "learning_rate", self.learning_rate, "a number above 0")
        _check(0 <= self.momentum < 1, "momentum", self.momentum, "a number from 0 to below 1")
        _check(self.weight_decay >= 0, "weight_decay", self.weight_decay, "a number of at least 0")
        _check(0 < self.decay_rate <= 1, "decay_rate", self.decay_rate, "a number above 0 and at most 1")
        given: Any = self.decay_epochs
        if isinstance(given, list):  # what YAML and JSON give
            object.__setattr__(self, "decay_epochs", tuple(given))
        _check(isinstance(given, (list, tuple)), "decay_epochs", self.decay_epochs, "a list of epochs")
        for epoch in self.decay_epochs:
            _check_integer("decay_epochs", epoch, 1)
        rising = all(first < second for first, second in zip(self.decay_epochs, self.decay_epochs[1:], strict=False))
        _check(rising, "decay_epochs", self.decay_epochs, "epochs in rising order, each once")
        if self.warmup_epochs > self.epochs:
            raise InputError(
                f"warmup_epochs={self.warmup_epochs} is longer than the run of epochs={self.epochs}, which would never "
                "reach its learning rate. Lower warmup_epochs, or shorten a recipe as a whole with scaled_to(epochs)."
            )

    def scaled_to(self, epochs: int) -> TrainingSettings:
        """Returns the recipe for another number of epochs, with warm-up and decays at the same fractions of the run.

        Decay epochs are rounded to the nearest epoch; those that fall together or before the first epoch's end are dropped.
        """
        _check_integer("epochs", epochs, 1)
        scale = epochs / self.epochs
        decays = sorted({round(epoch * scale) for epoch in self.decay_epochs} - {0})
        warmup = min(epochs, round(self.warmup_epochs * scale))
        return replace(self, epochs=epochs, warmup_epochs=warmup, decay_epochs=tuple(decays))


def _check(holds: bool, name: str, value: Any, expected: str) -> None:
    if not holds:
        raise InputError(f"{name}={value!r} can't be used: expected {expected}.")


def _check_integer(name: str, value: Any, minimum: int) -> None:
    holds = isinstance(value, int) and not isinstance(value, bool) and value >= minimum
    _check(holds, name, value, f"a whole number of at least {minimum}")


def _check_number(name: str, value: Any) -> None:
    holds = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    _check(holds, name, value, "a finite number")
