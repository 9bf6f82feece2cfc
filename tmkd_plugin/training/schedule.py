"""The learning rate of every step."""

from __future__ import annotations

from tmkd_plugin.training.settings import TrainingSettings


def learning_rate(settings: TrainingSettings, epoch: int, step: int, steps_per_epoch: int) -> float:
    """Returns the learning rate of one step: linear warm-up over steps, times a factor for each decay epoch that has passed.

    In the warm-up, step s of S (counted from 1) has the fraction s / S of the full rate, so the first step already moves and
    the last one has the full rate. Epoch e is past the decay epoch d if e > d, as in mdistiller's trainer.

    Args:
        settings: The recipe.
        epoch: From 1.
        step: From 0, within the epoch.
        steps_per_epoch: At least 1.
    """
    warmup_steps = settings.warmup_epochs * steps_per_epoch
    steps_done = (epoch - 1) * steps_per_epoch + step + 1
    warmup = min(1.0, steps_done / warmup_steps) if warmup_steps else 1.0
    drops = sum(epoch > decay_epoch for decay_epoch in settings.decay_epochs)
    return float(settings.learning_rate * warmup * settings.decay_rate**drops)
