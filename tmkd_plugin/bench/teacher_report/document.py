"""The teacher report in words and tables, from the data of ``teacher-report.json``: as printed, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tmkd_plugin.bench.teacher_report.measures import AFTER, NON_TARGET, PLAIN, Measure

if TYPE_CHECKING:
    from rich.console import Console

Entry = Mapping[str, Any]
TEACHER = "teacher, "
"""Begins a teacher's title where there are students beside it; a table of teachers does without."""
USES_THE_ANSWER = "USES THE ANSWER"
FEW = 10
"""With fewer wrong validation images the report says that the temperature is badly determined."""
_STUDENT_COLUMNS = (
    ("top1", "top-1, %", 2),
    ("ece", "ECE, %", 2),
    ("ece_scaled", "ECE after\nscaling, %", 2),
    ("nll", "NLL", 4),
    ("nll_scaled", "NLL after\nscaling", 4),
    ("temperature", "T", 3),
)


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        title: What it shows.
        note: What a reader has to know first.
        head: The columns; lines are split by a newline.
        rows: Their cells, likewise.
    """

    title: str
    note: str
    head: list[str]
    rows: list[list[str]]


def grids(report: Entry) -> list[Grid]:
    """Returns all tables of a report."""
    plain = [entry for entry in report["teachers"] if not entry["uses_labels"]]
    gathered = [entry for entry in report["teachers"] if entry["uses_labels"]]
    images = f"{report['images']:,} {report['split']} images"
    tables = [
        _teacher_grid(
            "Teachers",
            f"{images}; mean +- sd over seeds where the fusion is learned; [95 % interval over the choice of the images].",
            plain + gathered,
            PLAIN,
            "ci95",
        ),
        _difference_grid(plain + gathered, images),
        _teacher_grid(
            "Teachers after temperature scaling",
            "The temperature is fitted on the validation images. A difference that is left here is more than a factor on all "
            "logits.",
            plain + gathered,
            AFTER,
        ),
        _teacher_grid("Non-target probabilities", _similarity_note(report), plain + gathered, NON_TARGET),
    ]
    if report["students"]:
        tables.append(student_grid(report["students"], images))
    return tables


def lines(report: Entry) -> list[str]:
    """Returns what is to be said beside the tables."""
    found = [
        f"{entry['title']}{_of_seed(row['seed'])}: {row['note']}."
        for entry in report["teachers"]
        if not entry["uses_labels"]
        for row in entry["seeds"]
    ]
    if any(entry["uses_labels"] for entry in report["teachers"]):
        found.append(
            f"Columns marked '{USES_THE_ANSWER}' take each image's fusion weights from the row of its true class, as in "
            "training: what they score is no accuracy of a classifier."
        )
    found += [
        f"No best temperature for {entry['title']}{_of_seed(row['seed'])}: {row['no_best_temperature']}; it stays 1."
        for entry in [*report["teachers"], *report["students"]]
        for row in entry["seeds"]
        if row["no_best_temperature"]
    ]
    few = [row["validation_wrong"] for entry in [*report["teachers"], *report["students"]] for row in entry["seeds"]]
    if min(few) < FEW:
        found.append(
            f"A temperature is decided by the images that are wrong, and here some validation answers have only {min(few)} of "
            f"them: with fewer than {FEW} it is hardly more than chance, and what it gains there it may lose elsewhere."
        )
    return [*found, *report["notices"]]


def _of_seed(seed: int | None) -> str:
    return "" if seed is None else f", seed {seed}"


def _similarity_note(report: Entry) -> str:
    source = report["similarity_source"]
    similarity = (
        "the similarity of class names is not known"
        if source is None
        else f"the similarity of class names is that of their text embeddings ({source})"
    )
    return f"Rank correlations, -1 to 1, of how the probability that is not the true class's is spread; {similarity}."


def _head(entry: Entry) -> str:
    title = str(entry["title"]).removeprefix(TEACHER)
    return f"{title}\n{USES_THE_ANSWER}" if entry["uses_labels"] else title


def _teacher_grid(
    title: str, note: str, entries: Sequence[Entry], measures: Sequence[Measure], interval: str | None = None
) -> Grid:
    rows = []
    for measure in measures:
        cells = [measure.title]
        for entry in entries:
            cell = _mean(entry, measure.name, measure.decimals)
            found = entry[interval].get(measure.name) if interval else None
            cells.append(f"{cell}\n{_interval(found, measure.decimals)}" if found else cell)
        rows.append(cells)
    return Grid(title, note, ["", *(_head(entry) for entry in entries)], rows)


def _difference_grid(entries: Sequence[Entry], images: str) -> Grid:
    others = [entry for entry in entries if entry["difference"] is not None]
    rows = []
    for measure in PLAIN:
        if any(measure.name in entry["difference"] for entry in others):
            found = [entry["difference"][measure.name] for entry in others]
            cells = [f"{_signed(each['delta'], measure.decimals)}\n{_interval(each['ci95'], measure.decimals, signed=True)}"
                     for each in found]  # fmt: skip
            rows.append([measure.title, *cells])
    note = f"{images}, the same resampled ones for both; mean over seeds. An interval that holds zero resolves nothing."
    return Grid(
        "Teachers, difference from the single-view teacher", note, ["", *(_head(entry) for entry in others)], rows
    )


def student_grid(entries: Sequence[Entry], images: str) -> Grid:
    """Returns the table of the students, without the columns that none of them has a figure for.

    Args:
        entries: The students' part of a report.
        images: Which images, in words.
    """
    columns = [column for column in _STUDENT_COLUMNS if any(column[0] in entry["mean"] for entry in entries)]
    rows = []
    for entry in entries:
        cells = [_mean(entry, name, decimals) for name, _, decimals in columns]
        rows.append([entry["title"], *cells, str(len(entry["seeds"]))])
        if entry["difference"]:
            cells = [_student_difference(entry["difference"].get(name), decimals) for name, _, decimals in columns]
            rows.append(["  difference\n  95 % interval", *cells, str(entry["difference"]["ece"]["n"])])
    note = (
        f"{images}; mean +- sd over seeds; differences from the baseline are paired by seed, with Student's t interval."
    )
    return Grid("Students", note, ["", *(title for _, title, _ in columns), "n"], rows)


def _student_difference(entry: Entry | None, decimals: int) -> str:
    if entry is None:
        return ""
    interval = "needs 2 seeds" if entry["ci95"] is None else _interval(entry["ci95"], decimals, signed=True)
    return f"{_signed(entry['delta'], decimals)}\n{interval}"


def _mean(entry: Entry, name: str, decimals: int) -> str:
    mean, sd = entry["mean"].get(name), entry["sd"].get(name)
    if mean is None:
        return "-"
    return f"{mean:.{decimals}f}" + ("" if sd is None else f" +- {sd:.{decimals}f}")


def _signed(value: float, decimals: int) -> str:
    return f"{value:+.{decimals}f}"


def _interval(ends: Sequence[float], decimals: int, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"[{ends[0]:{sign}.{decimals}f}, {ends[1]:{sign}.{decimals}f}]"


def print_report(console: Console, report: Entry) -> None:
    """Prints all tables and lines."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    for grid in grids(report):
        console.print(f"{grid.title}. {grid.note}", highlight=False, markup=False, soft_wrap=True)
        table = Table(box=box.ASCII2)
        for position, head in enumerate(grid.head):
            # Only heads may be broken: a number in two lines can't be read.
            table.add_column(Text(head), justify="right" if position else "left", no_wrap=False, min_width=8)
        for row in grid.rows:
            table.add_row(Text(row[0]), *(Text(cell, no_wrap=True) for cell in row[1:]))
        console.print(table)
    for line in lines(report):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def markdown(report: Entry) -> str:
    """Returns the report as Markdown."""
    dataset = report["dataset"]
    out = [
        f"# Teachers and calibration: {_escaped(report['networks']['teacher'])} → {_escaped(report['networks']['student'])} on "
        f"{_escaped(dataset['name'])}",
        "",
        f"{report['images']:,} {report['split']} images of {len(dataset['class_names']):,} classes; {report['bins']} bins; a "
        f"prediction of at least {report['confidence']:g} is confident. What the figures mean: docs/teacher-report.md.",
        "",
    ]
    for grid in grids(report):
        out += [f"## {grid.title}", "", _escaped(grid.note), ""]
        out.append(_markdown_row(grid.head))
        out.append("| --- |" + " ---: |" * (len(grid.head) - 1))
        out += [_markdown_row(row) for row in grid.rows]
        out.append("")
    out += ["## Notes", "", *(f"* {_escaped(line)}" for line in lines(report)), ""]
    return "\n".join(out)


def _markdown_row(cells: Sequence[str]) -> str:
    shown = [_escaped(cell.strip()).replace("\n", "<br>") for cell in cells]
    return f"| {' | '.join(shown)} |"


def _escaped(text: str) -> str:
    """Returns text that no Markdown reader takes for markup; a class or arm may have any name."""
    for letter in "\\`*_<>|[]#":
        text = text.replace(letter, f"\\{letter}") if letter != "<" else text.replace("<", "&lt;")
    return text
