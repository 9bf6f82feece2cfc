"""A finished table with all that is said around it; what every format writes down."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tmkd_plugin.bench.paper_tables.cells import Cell, cells_of
from tmkd_plugin.bench.paper_tables.grid import Grid, grid_of
from tmkd_plugin.bench.paper_tables.notes import Notes, group_lines, notes_of
from tmkd_plugin.bench.paper_tables.other_data import OtherData, other_data
from tmkd_plugin.bench.paper_tables.outcome import GroupOutcome
from tmkd_plugin.bench.paper_tables.planning import PlannedGroup
from tmkd_plugin.bench.paper_tables.schema import ScalesFile, ScaleSpec, TableSpec

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Document:
    """A table to be written down.

    Attributes:
        table: The table.
        scale_name: The scale's name.
        scale: The scale.
        grid: The layout.
        cells: By (row id, column id).
        notes: The notes.
        groups: By name.
        runs: One line about each group's runs.
        other_data: By group, how its data differ from the paper's.
    """

    table: TableSpec
    scale_name: str
    scale: ScaleSpec
    grid: Grid
    cells: Mapping[tuple[str, str], Cell]
    notes: Notes
    groups: Mapping[str, PlannedGroup]
    runs: tuple[str, ...]
    other_data: Mapping[str, OtherData]

    @property
    def title(self) -> str:
        """The table's number and title."""
        return f"Table {self.table.table}. {self.table.title}"

    @property
    def warnings(self) -> list[str]:
        """What must be read before any figure."""
        lines = [] if self.scale.faithful else [f"{self.scale.title}."]
        if self.other_data:
            warnings = dict.fromkeys(other.warning for other in self.other_data.values())
            lines.append(f"Not the paper's data: {', '.join(warnings)}.")
        return lines

    @property
    def legend(self) -> str:
        """How the figures are to be read."""
        return (
            "Ours: mean ± standard deviation over seeds, test split, best epoch by validation; in parentheses the figures of "
            f"the paper ({self.table.source}). Differences are paired by seed, with the 95 % interval of Student's t."
        )


def document_of(
    table: TableSpec,
    scales: ScalesFile,
    scale_name: str,
    groups: Mapping[str, PlannedGroup],
    outcomes: Mapping[str, GroupOutcome],
) -> Document:
    """Puts a table together from what its groups came to."""
    titles = {name: facts.title for name, facts in scales.datasets.items()}
    found = {name: other_data(planned, outcomes[name], scales) for name, planned in groups.items()}
    others = {name: other for name, other in found.items() if other is not None}
    notes, cells = notes_of(table, others, outcomes), cells_of(table, outcomes)
    return Document(
        table=table,
        scale_name=scale_name,
        scale=scales.scales[scale_name],
        grid=grid_of(table, cells, notes, {name: other.marker for name, other in others.items()}),
        cells=cells,
        notes=notes,
        groups=groups,
        runs=tuple(group_lines(table, groups, outcomes, titles)),
        other_data=others,
    )


def data_of(document: Document) -> dict[str, Any]:
    """Returns the data of ``table<N>.json``; nothing in it depends on when or how fast it was made."""
    return {
        "schema_version": SCHEMA_VERSION,
        "table": document.table.table,
        "title": document.table.title,
        "source_of_the_papers_figures": document.table.source,
        "scale": {"name": document.scale_name, "title": document.scale.title, "faithful": document.scale.faithful},
        "warnings": document.warnings,
        "groups": [_group(planned, document.other_data.get(name)) for name, planned in document.groups.items()],
        "cells": [
            {**dataclasses.asdict(cell), "values": {str(seed): value for seed, value in cell.values.items()},
             "notes": document.notes.numbers(cell.row, cell.column)}
            for cell in document.cells.values()
        ],
        "notes": document.notes.texts,
        "runs": list(document.runs),
    }  # fmt: skip


def _group(planned: PlannedGroup, other: OtherData | None) -> dict[str, Any]:
    experiment = planned.comparisons[0].configuration.experiment
    return {
        "name": planned.group.name,
        "dataset": planned.group.dataset,
        "used_dataset": planned.dataset,
        "other_data": None if other is None else other.note,
        "teacher": experiment.teacher,
        "student": experiment.student,
        "seeds": list(planned.seeds),
        "our_choice": planned.group.ours,
    }
