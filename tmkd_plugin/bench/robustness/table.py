"""The outcome of a measurement on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tmkd_plugin.bench.arms import subtracted
from tmkd_plugin.bench.robustness.outcome import CORRUPTION, SHIFT
from tmkd_plugin.bench.robustness.words import HEADS, interval_of, mean_of, notes, sentences, title_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_outcome(console: Console, results: Mapping[str, Any]) -> None:
    """Prints the tables, one sentence for each comparison, and the notes."""
    console.print(title_of(results), highlight=False, markup=False, soft_wrap=True)
    console.print(arm_table(results))
    if results["teachers"]:
        console.print(teacher_table(results))
    console.print(corruption_table(results))
    for line in sentences(results):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for line in notes(results):
        console.print(f"note: {line}", highlight=False, markup=False, soft_wrap=True)


def columns_of(results: Mapping[str, Any]) -> dict[str, str]:
    """Returns the columns of arms and teachers, metric -> head: the headline metrics, then a folder of other images each."""
    shifts = {SHIFT + shift["name"]: shift["name"] for shift in results["measurement"]["shifts"]}
    return {**HEADS, **shifts}


def arm_table(results: Mapping[str, Any]) -> Table:
    """Builds a table with a row for each arm, and below each compared one its differences from the baseline."""
    columns = columns_of(results)
    table = _empty("students", [*columns.values(), "n"])
    for arm in results["arms"]:
        table.add_row(arm["title"], *_means(arm, columns), str(len(arm["seeds"])))
        for baseline, entries in comparisons_of(results, arm["name"]).items():
            cells = [
                f"{entries[metric]['delta']:+.2f}\n{interval_of(entries[metric])}" if metric in entries else "-"
                for metric in columns
            ]
            n = str(next(iter(entries.values()))["n"])
            table.add_row(f"  minus {subtracted(baseline)}\n  95 % interval", *cells, n, end_section=True)
    return table


def comparisons_of(results: Mapping[str, Any], enhanced: str) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Returns an arm's comparisons by the title of the other arm, then by metric."""
    titles = {arm["name"]: arm["title"] for arm in results["arms"]}
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for entry in results["comparisons"]:
        if entry["enhanced"] == enhanced:
            found.setdefault(titles[entry["baseline"]], {})[entry["metric"]] = entry
    return found


def teacher_table(results: Mapping[str, Any]) -> Table:
    """Builds a table with a row for each teacher; mCE is against the first of them."""
    columns = columns_of(results)
    table = _empty("teachers", [*columns.values(), "n"])
    for teacher in results["teachers"]:
        table.add_row(teacher["title"], *_means(teacher, columns), str(len(teacher["seeds"])))
    return table


def corruption_table(results: Mapping[str, Any]) -> Table:
    """Builds a table of the mean accuracy over severities: a row for each corruption, a column for each arm and teacher."""
    groups = [*results["arms"], *results["teachers"]]
    table = _empty("mean over severities", [group["title"] for group in groups])
    for name in results["measurement"]["corruptions"]:
        means = [group["summary"][CORRUPTION + name]["mean"] for group in groups]
        table.add_row(name.replace("_", " "), *(f"{mean:.2f}" for mean in means))
    return table


def _means(group: Mapping[str, Any], columns: Mapping[str, str]) -> list[str]:
    return [mean_of(group["summary"][metric]) for metric in columns]


def _empty(corner: str, heads: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.ASCII2)
    table.add_column(corner)
    for head in heads:
        table.add_column(Text(head), justify="right")
    return table
