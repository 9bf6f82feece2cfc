"""The table on the screen, ``perf.json`` and ``perf.md``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmkd_plugin.bench.perf.figure import Figure
from tmkd_plugin.training.files import write_bytes, write_json

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA_VERSION = 1
JSON_FILE, MARKDOWN_FILE = "perf.json", "perf.md"
HEADS = ("what", "median", "middle half", "n", "limit", "verdict")


@dataclass(frozen=True)
class Outcome:
    """A whole run.

    Attributes:
        machine: See :func:`~tmkd_plugin.bench.perf.machine.describe_machine`.
        figures: In the order in which they were measured.
        judges: Whether the limits count.
        seconds: How long it took.
    """

    machine: Mapping[str, Any]
    figures: Sequence[Figure]
    judges: bool
    seconds: float

    @property
    def missed(self) -> list[Figure]:
        """The figures that miss their limit, where limits count."""
        return [figure for figure in self.figures if self.judges and figure.passes is False]


def write_outcome(outcome: Outcome, folder: Path) -> None:
    """Writes both files."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "machine": dict(outcome.machine),
        "judges": outcome.judges,
        "passes": not outcome.missed,
        "seconds": round(outcome.seconds, 1),
        "figures": [_as_json(figure) for figure in outcome.figures],
    }
    write_json(folder / JSON_FILE, content)
    write_bytes(folder / MARKDOWN_FILE, markdown(outcome).encode())


def _as_json(figure: Figure) -> dict[str, Any]:
    return {
        "section": figure.section,
        "name": figure.name,
        "unit": figure.unit,
        **dataclasses.asdict(figure.value),
        "rule": figure.rule,
        "limit": None if figure.limit is None else dataclasses.asdict(figure.limit),
        "passes": figure.passes,
        "note": figure.note,
    }


def cells(figure: Figure, judges: bool) -> tuple[str, ...]:
    """Returns the cells of a figure's row, in the order of ``HEADS``."""
    value, limit = figure.value, figure.limit
    verdict = "" if figure.passes is None or not judges else "kept" if figure.passes else "MISSED"
    return (
        figure.name,
        f"{_number(value.median)} {figure.unit}",
        f"{_number(value.low)} to {_number(value.high)}" if value.n > 1 else "",
        str(value.n),
        "" if limit is None else f"{figure.rule} {_number(limit.median)}",
        verdict,
    )


def _number(value: float) -> str:
    """Writes a number with three digits that count, and no exponent."""
    if value == int(value):
        return str(int(value))
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}"


def table(outcome: Outcome) -> Table:
    """Builds the table for the screen."""
    from rich import box
    from rich.table import Table

    built = Table(box=box.ASCII2, title=machine_line(outcome), title_justify="left")
    for head in HEADS:
        built.add_column(head, justify="left" if head in ("what", "verdict") else "right", overflow="fold")
    section = None
    for figure in outcome.figures:
        if section not in (None, figure.section):
            built.add_section()
        section = figure.section
        built.add_row(*cells(figure, outcome.judges))
    return built


def machine_line(outcome: Outcome) -> str:
    """Says in one line what the figures were measured with."""
    machine = outcome.machine
    gpu = "" if machine["device"] == "cpu" else f", {machine['device']}"
    load = "" if machine["load"] is None else f", load {machine['load']} at the start"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads{gpu}, {machine['clock']}{load}; "
        f"torch {machine['torch']}, OpenCV {machine['opencv']}, tmkd {machine['tmkd']}; {outcome.seconds / 60:.1f} minutes"
    )


def markdown(outcome: Outcome) -> str:
    """Returns ``perf.md``: what it was measured with, the table, and how the limits come about."""
    lines = [machine_line(outcome) + ".", ""]
    if not outcome.judges:
        lines += ["A quick trial on tiny networks: no figure here means anything.", ""]
    lines += [f"| {' | '.join(HEADS)} |", "| --- | ---: | ---: | ---: | ---: | --- |"]
    lines += [f"| {' | '.join(cells(figure, outcome.judges))} |" for figure in outcome.figures]
    notes = _notes(outcome.figures)
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def _notes(figures: Sequence[Figure]) -> list[str]:
    """Returns each note once: under the name of its figure, or of its part of the benchmark where several figures share it."""
    owners: dict[tuple[str, str], list[str]] = {}
    for figure in figures:
        if figure.note:
            owners.setdefault((figure.section, figure.note), []).append(figure.name)
    return [f"* {names[0] if len(names) == 1 else section}: {note}." for (section, note), names in owners.items()]


def verdict(outcome: Outcome) -> str:
    """Says in one sentence whether the limits were kept."""
    judged = sum(figure.passes is not None for figure in outcome.figures)
    if not outcome.judges:
        return "A quick trial: its figures mean nothing, and no limit was judged."
    if not judged:
        return "Nothing that was measured has a limit."
    if not outcome.missed:
        return f"All {judged} limits were kept."
    names = "; ".join(figure.name for figure in outcome.missed)
    return f"{len(outcome.missed)} of {judged} limits were missed: {names}."
