"""The intervals of a regression check: where the mean of new seeds is to be expected, and how small a spread may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tmkd_plugin.bench.statistics import mean_and_sd

FALSE_ALARMS = 0.001
"""Share of checks of unchanged code in which any band raises an alarm; the bands of a check share it equally."""

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Band:
    """A prediction interval for the mean of new seeds; ``low <= high``."""

    low: float
    high: float

    def distance(self, value: float) -> float:
        """Returns how far a value is outside, 0 inside."""
        return max(self.low - value, value - self.high, 0.0)


def prediction_band(mean: float, sd: float, n: int, new: int, *, bands: int, least_sd: float = 0.0) -> Band:
    """Returns where the mean of new seeds lies if nothing has changed, but for ``FALSE_ALARMS`` of the checks.

    The prediction interval of a normal sample: both the reference's mean and that of the new seeds vary.
    Source: Hahn and Meeker, Statistical Intervals, 1991, section 4.7.

    Args:
        mean: Of the reference.
        sd: Of the reference.
        n: Number of reference seeds, at least 2.
        new: Number of new seeds, at least 1.
        bands: How many bands the check has; each gets its share of the false alarms (Bonferroni).
        least_sd: Where the reference's sd is smaller, this is taken: a spread below the test set's resolution is chance.
    """
    from scipy import stats

    quantile = float(stats.t.ppf(1 - FALSE_ALARMS / bands / 2, n - 1))
    half = quantile * max(sd, least_sd) * math.sqrt(1 / new + 1 / n)
    return Band(mean - half, mean + half)


def difference_interval(differences: Sequence[float], least_sd: float) -> tuple[float, float] | None:
    """Returns the 95 % t interval of the mean of paired differences, ``None`` for fewer than 2.

    Args:
        differences: ``enhanced - baseline`` in points.
        least_sd: The least standard deviation to reckon with; equal differences of a few seeds say nothing of their spread.
    """
    from scipy import stats

    mean, sd = mean_and_sd(differences)
    if sd is None:
        return None
    half = (
        float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(differences) - 1)) * max(sd, least_sd) / math.sqrt(len(differences))
    )
    return mean - half, mean + half


def resolution(images: int) -> float:
    """Returns what one test image is worth, in percentage points."""
    return 100 / images
