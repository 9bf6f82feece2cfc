"""Whether one arm is better than another: paired differences over seeds and the t interval of their mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tmkd_plugin.errors import InputError

CONFIDENCE = 0.95
ROUNDING = 1e-9  # equal differences of decimal fractions differ by about 1e-14 in floating point


@dataclass(frozen=True)
class PairedComparison:
    """What the differences ``enhanced - baseline`` of the same seeds say of their mean.

    Attributes:
        delta: The mean difference, in the units of what was compared (here: percentage points).
        sd: The standard deviation of the differences with n - 1 in the divisor; ``None`` for one pair.
        ci95: The two-sided 95 % interval of Student's t for the mean difference; ``None`` for one pair.
        n: How many pairs there are.
        p_value: Two-sided p-value of the paired t test; ``None`` for one pair and where all pairs differ by the same
            amount other than zero (the t statistic is infinite there).
    """

    delta: float
    sd: float | None
    ci95: tuple[float, float] | None
    n: int
    p_value: float | None


def compare_pairs(baseline: Sequence[float], enhanced: Sequence[float]) -> PairedComparison:
    """Compares two arms seed by seed.

    The same seed gives both arms the same initialisation, order and augmentation, so their difference varies less than
    either: the interval is that of the differences, not of the two means.

    Args:
        baseline: One finite value for each seed, at least one.
        enhanced: The values of the same seeds in the same order.

    Raises:
        InputError: The lengths differ, there is no pair, or a value is NaN or infinite.
    """
    if len(baseline) != len(enhanced) or not baseline:
        raise InputError(
            f"A paired comparison needs the same seeds in both arms, at least one: got {len(baseline)} and {len(enhanced)}."
        )
    if not all(math.isfinite(value) for value in (*baseline, *enhanced)):
        raise InputError("A paired comparison needs finite values: leave the seeds of failed runs out.")
    differences = [after - before for before, after in zip(baseline, enhanced, strict=True)]
    n = len(differences)
    delta = math.fsum(differences) / n
    if n == 1:
        return PairedComparison(delta, None, None, 1, None)
    sd = mean_and_sd(differences)[1] or 0.0
    if sd <= ROUNDING:
        sd = 0.0
    return PairedComparison(delta, sd, _interval(delta, sd, n), n, _p_value(delta, sd, n))


def _interval(delta: float, sd: float, n: int) -> tuple[float, float]:
    from scipy import stats

    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * sd / math.sqrt(n)
    return delta - half, delta + half


def _p_value(delta: float, sd: float, n: int) -> float | None:
    from scipy import stats

    if sd == 0:
        return 1.0 if delta == 0 else None
    return float(2 * stats.t.sf(abs(delta) / (sd / math.sqrt(n)), n - 1))


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean of at least one value and their standard deviation (n - 1), ``None`` for a single value."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def verdict(comparison: PairedComparison) -> str:
    """Says in words what the interval shows: ``"better"``, ``"worse"`` or ``"not resolved with n = ..."``.

    An interval that touches zero, has no width (equal differences of a few seeds say nothing of their spread) or can't be
    had shows nothing.
    """
    if comparison.ci95 is not None and comparison.sd:
        low, high = comparison.ci95
        if low > 0:
            return "better"
        if high < 0:
            return "worse"
    return f"not resolved with n = {comparison.n}"
