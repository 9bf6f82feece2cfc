"""How many seeds it takes to resolve a gain, by the noncentral t distribution."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmkd_plugin.errors import InputError
from tmkd_plugin.settings import check_number

if TYPE_CHECKING:
    from rich.table import Table

ALPHA = 0.05
POWER = 0.8
MOST_SEEDS = 1_000_000
DEFAULT_SD = 1.1
"""Points; the differences of small students on 600 images of CIFAR-10 spread about like this over seeds."""


@dataclass(frozen=True)
class Spread:
    """The standard deviation of a difference over seeds, in percentage points.

    Attributes:
        sd: The estimate, above 0.
        n: From how many seeds; ``None`` where it is given and not estimated.
        ci95: The 95 % interval of the standard deviation (chi-squared), ``None`` where it is given.
        what: What it is the spread of.
    """

    sd: float
    n: int | None
    ci95: tuple[float, float] | None
    what: str


def power_of(gain: float, sd: float, n: int, *, alpha: float = ALPHA) -> float:
    """Returns the probability that the paired t test of n seeds resolves a gain, at two-sided ``alpha``, on its own side.

    Args:
        gain: True mean difference.
        sd: Standard deviation of the difference over seeds, in the units of ``gain``, above 0.
        n: Number of seeds, at least 2.
        alpha: Two-sided level, above 0 and below 1.
    """
    from scipy import stats

    threshold = float(stats.t.ppf(1 - alpha / 2, n - 1))
    shift = abs(gain) / sd * math.sqrt(n)
    power = float(stats.nct.sf(threshold, n - 1, shift))
    # scipy's series gives nan where the shift is far beyond the threshold, that is where the power is 1.
    return power if math.isfinite(power) else float(shift > threshold)


def seeds_needed(gain: float, sd: float, power: float = POWER, alpha: float = ALPHA) -> int:
    """Returns the fewest seeds with which the paired t test resolves a gain with the given probability.

    Args:
        gain: True mean difference; its sign plays no part.
        sd: Standard deviation of the difference over seeds, in the units of ``gain``.
        power: The probability, above 0 and below 1.
        alpha: Two-sided level of the test, above 0 and below 1; 0.05 is that of the 95 % interval.

    Raises:
        InputError: A value is out of its range, or more than a million seeds would be needed.
    """
    check_number("gain", gain)
    check_number("sd", sd, above=0)
    _check_share("power", power)
    _check_share("alpha", alpha)
    if gain == 0:
        raise InputError("gain must not be 0: no number of seeds tells a gain of nothing from nothing.")
    found = _fewest(lambda n: power_of(gain, sd, n, alpha=alpha) >= power)
    if found is None:
        raise InputError(
            f"A gain of {gain:g} with sd {sd:g} takes more than {MOST_SEEDS:,} seeds: reduce the spread, for instance "
            "with more training or test images."
        )
    return found


def seeds_for_non_inferiority(expected: float, sd: float, margin: float, power: float = POWER) -> int | None:
    """Returns the fewest seeds with which the lower 95 % bound of a difference is above ``-margin`` with the given probability.

    Args:
        expected: The true mean difference.
        sd: Standard deviation of the difference over seeds, above 0.
        margin: How much worse is still accepted, at least 0.
        power: The probability, above 0 and below 1.

    Returns:
        ``None`` if no number of seeds up to a million does, as where the expected difference is not above ``-margin``.
    """
    room = expected + margin
    return None if room <= 0 else _fewest(lambda n: power_of(room, sd, n) >= power)


def _fewest(enough: Callable[[int], bool]) -> int | None:
    """Returns the smallest n from 2 that is enough, where all that are larger are enough too."""
    high = 2
    while not enough(high):
        if high >= MOST_SEEDS:
            return None
        high = min(2 * high, MOST_SEEDS)
    low = max(high // 2, 1)  # not enough, or below 2
    while high - low > 1:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high


def _check_share(name: str, value: float) -> None:
    check_number(name, value, above=0, at_most=1)
    if value == 1:
        raise InputError(f"{name} must be below 1, but is 1: no number of seeds makes it certain.")


def spread_of(sd: float, n: int, what: str) -> Spread:
    """Returns an estimated standard deviation with its 95 % interval.

    Args:
        sd: The estimate, above 0.
        n: From how many seeds, at least 2.
        what: What it is the spread of.
    """
    from scipy import stats

    low, high = (sd * math.sqrt((n - 1) / float(stats.chi2.ppf(share, n - 1))) for share in (0.975, 0.025))
    return Spread(sd, n, (low, high), what)


def spreads_in(results: Mapping[str, Any], path: Path) -> list[Spread]:
    """Returns the spread of every top-1 difference of a comparison (epoch chosen by validation).

    Args:
        results: The data of ``results.json``.
        path: Where they are from, for messages.

    Raises:
        InputError: There is no difference with a spread.
    """
    titles = {arm["name"]: arm["title"] for arm in results["arms"]}
    found = [
        spread_of(entry["sd"], entry["n"], f"{titles[entry['enhanced']]} minus {titles[entry['baseline']]}")
        for entry in results["comparisons"]
        if entry["metric"] == "top1" and entry["selection"] == "best" and entry["sd"]
    ]
    if not found:
        raise InputError(
            f"{path} holds no difference with a spread: it takes two arms and at least 2 seeds that differ. Give --sd instead."
        )
    return found


def power_table(gain: float, spread: Spread, powers: Sequence[float]) -> Table:
    """Builds the table: the seeds for half the gain, the gain and twice the gain, by probability."""
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.ASCII2, title=f"seeds needed, sd of the difference {spread.sd:.2f} points", title_justify="left"
    )
    table.add_column("true gain, points")
    for power in powers:
        table.add_column(f"power {100 * power:g} %", justify="right")
    for multiple in (gain / 2, gain, 2 * gain):
        table.add_row(f"{multiple:g}", *(f"{seeds_needed(multiple, spread.sd, power):,}" for power in powers))
    return table


def power_sentence(gain: float, spread: Spread, power: float) -> str:
    """Says in one sentence how many seeds it takes, and how sure the spread itself is."""
    needed = seeds_needed(gain, spread.sd, power)
    sentence = (
        f"{spread.what}: to resolve a gain of {gain:g} points with {100 * power:g} % probability takes {needed:,} seeds "
        f"(sd {spread.sd:.2f} points"
    )
    if spread.ci95 is None:
        return f"{sentence}, paired t test at 5 %)."
    low, high = (f"{seeds_needed(gain, bound, power):,}" for bound in spread.ci95)
    within = f"[{spread.ci95[0]:.2f}, {spread.ci95[1]:.2f}]"
    return f"{sentence} from n = {spread.n}, itself within {within}: {low} to {high} seeds)."
