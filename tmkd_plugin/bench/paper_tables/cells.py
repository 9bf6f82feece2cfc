"""The cells of a table: our figure, the paper's, and the differences, as the data of ``table<N>.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tmkd_plugin.bench.paper_tables.outcome import GroupOutcome
from tmkd_plugin.bench.paper_tables.schema import TEACHER_ARM, Line, TableSpec
from tmkd_plugin.bench.statistics import mean_and_sd, verdict

DECIMALS = 6


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        row: The row's id.
        column: The column's id.
        group: The group's name.
        arm: The arm's name.
        metric: ``top1``, ``top5`` or ``recall``.
        values: Our figures in percent by seed.
        mean: Their mean; ``None`` if there is none.
        sd: Their standard deviation; ``None`` for fewer than two.
        missing: How many seeds failed.
        paper: The paper's figure in percent, if it has one.
        against: The arm from which the differences are taken, if any.
        delta: Our mean paired difference in points.
        ci95: Its 95 % interval; ``None`` for fewer than two seeds.
        pairs: From how many seeds.
        verdict: What the interval shows.
        paper_delta: The paper's difference in points.
    """

    row: str
    column: str
    group: str
    arm: str
    metric: str
    values: Mapping[int, float]
    mean: float | None
    sd: float | None
    missing: int
    paper: float | None
    against: str | None = None
    delta: float | None = None
    ci95: tuple[float, float] | None = None
    pairs: int = 0
    verdict: str | None = None
    paper_delta: float | None = None


def cells_of(table: TableSpec, outcomes: Mapping[str, GroupOutcome]) -> dict[tuple[str, str], Cell]:
    """Fills every cell of a table.

    Args:
        table: The table.
        outcomes: What each group came to, by its name.

    Returns:
        The cells by (row id, column id).
    """
    figures = _paper_figures(table)
    return {
        (row.id, column.id): _cell(table, row, column, outcomes, figures)
        for row in table.rows
        for column in table.columns
    }


def _paper_figures(table: TableSpec) -> dict[tuple[str, str, str], float]:
    """Returns the paper's figures by (group, arm, metric)."""
    figures = {}
    columns = [column for column in table.columns if not column.ours]
    for row in table.rows:
        for column, figure in zip(columns, row.paper or (), strict=False):
            if figure is not None:
                figures[_place(table, row, column)] = figure
    return figures


def _place(table: TableSpec, row: Line, column: Line) -> tuple[str, str, str]:
    return (
        str(row.group or column.group or table.group),
        str(row.arm or column.arm),
        row.metric or column.metric or table.metric,
    )


def _cell(
    table: TableSpec,
    row: Line,
    column: Line,
    outcomes: Mapping[str, GroupOutcome],
    figures: Mapping[tuple[str, str, str], float],
) -> Cell:
    group, arm, metric = _place(table, row, column)
    outcome, against = outcomes[group], row.against or column.against
    values = outcome.values(arm, metric)
    mean, sd = mean_and_sd(list(values.values())) if values else (None, None)
    wanted = 1 if arm == TEACHER_ARM else len(outcome.seeds)
    difference: dict[str, Any] = {}
    paper = figures.get((group, arm, metric)) if not (row.ours or column.ours) else None
    if against is not None:
        difference["against"] = against
        before = figures.get((group, against, metric))
        if paper is not None and before is not None:
            difference["paper_delta"] = round(paper - before, 2)
        compared = outcome.difference(arm, against, metric)
        if compared is not None:
            difference |= {"delta": _rounded(compared.delta), "pairs": compared.n, "verdict": verdict(compared)}
            if compared.ci95 is not None:
                difference["ci95"] = tuple(_rounded(bound) for bound in compared.ci95)
    return Cell(
        row=row.id,
        column=column.id,
        group=group,
        arm=arm,
        metric=metric,
        values=values,
        mean=None if mean is None else _rounded(mean),
        sd=None if sd is None else _rounded(sd),
        missing=wanted - len(values),
        paper=paper,
        **difference,
    )


def _rounded(value: float) -> float:
    return round(value, DECIMALS)
