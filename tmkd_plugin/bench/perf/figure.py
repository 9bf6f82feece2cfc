"""One figure of the benchmark: its value over the rounds, its limit, and whether it keeps to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tmkd_plugin.bench.perf.timing import Spread, spread_of

Rule = Literal["at most", "at least"]


@dataclass(frozen=True)
class Figure:
    """A measured value, with its limit where it has one.

    Attributes:
        section: The part of the benchmark it belongs to, such as ``step``.
        name: What was measured, on what.
        unit: ``x`` for ratios, ``ms``, ``images/s``, ``MiB``, ``%``.
        value: Over the rounds.
        rule: On which side of the limit the value has to be; None for a figure without a limit.
        limit: Over the rounds as well, since most limits are measured too.
        passes: Whether the median over the rounds of value - limit is on the right side of 0; None without a limit.
        note: How the limit comes about, or what else has to be known.
    """

    section: str
    name: str
    unit: str
    value: Spread
    rule: Rule | None = None
    limit: Spread | None = None
    passes: bool | None = None
    note: str = ""


def plain_figure(section: str, name: str, unit: str, values: Sequence[float], note: str = "") -> Figure:
    """Returns a figure without a limit."""
    return Figure(section, name, unit, spread_of(values), note=note)


def judged_figure(
    section: str,
    name: str,
    unit: str,
    values: Sequence[float],
    rule: Rule,
    limits: Sequence[float] | float,
    note: str = "",
) -> Figure:
    """Returns a figure with its verdict.

    Args:
        section: See :class:`Figure`, as for name, unit and note.
        name: See there.
        unit: See there.
        values: One a round.
        rule: See there.
        limits: One for each value, measured in the same round, or one for all.
        note: See there.
    """
    bounds = [float(limits)] * len(values) if isinstance(limits, (int, float)) else list(limits)
    above = spread_of([value - bound for value, bound in zip(values, bounds, strict=True)]).median
    passes = above <= 0 if rule == "at most" else above >= 0
    return Figure(section, name, unit, spread_of(values), rule, spread_of(bounds), passes, note)
