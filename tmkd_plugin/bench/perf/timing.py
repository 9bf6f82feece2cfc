"""Times of things that are to be compared, taken in turn."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Case = Callable[[], object]
Times = dict[str, list[float]]
"""Name -> seconds, one value a round; values at the same place were taken in the same round."""

_MOST_CALLS = 10_000


def cpu_seconds() -> float:
    """Tells how long processors have worked for this process and for those that it has started and that have ended."""
    import resource  # not on every system

    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@dataclass(frozen=True)
class Spread:
    """The median of some values, and the middle half of them.

    Attributes:
        median: The median.
        low: The lower quartile.
        high: The upper quartile.
        n: How many values.
    """

    median: float
    low: float
    high: float
    n: int


def spread_of(values: Sequence[float]) -> Spread:
    """Returns median and quartiles (linear between the values) of at least one value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high, len(values))


def interleaved(
    cases: Mapping[str, Case],
    rounds: int,
    *,
    least_seconds: float = 0.0,
    wait: Case = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Times every case once a round, so that what slows the machine down for a while slows all of them down.

    Each case runs once before the first round, which allocates what it needs. Each round starts with another case.

    Args:
        cases: What to time, by name.
        rounds: How many values there will be for each.
        least_seconds: A case is called as often in a round as it takes to fill this time; its value is the mean of a call.
        wait: Waits until a device has finished; called before each look at the clock.
        clock: Tells the seconds.
    """

    def seconds(case: Case, calls: int) -> float:
        wait()
        start = clock()
        for _ in range(calls):
            case()
        wait()
        return (clock() - start) / calls

    for case in cases.values():
        case()
    calls = dict.fromkeys(cases, 1)
    if least_seconds:
        calls = {name: _calls_for(least_seconds, seconds(case, 1)) for name, case in cases.items()}
    times: Times = {name: [] for name in cases}
    names = list(cases)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(seconds(cases[name], calls[name]))
    return times


def _calls_for(least_seconds: float, of_one: float) -> int:
    return min(_MOST_CALLS, max(1, math.ceil(least_seconds / of_one))) if of_one > 0 else _MOST_CALLS
