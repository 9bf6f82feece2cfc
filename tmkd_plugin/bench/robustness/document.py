"""The outcome of a measurement as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tmkd_plugin.bench.arms import subtracted
from tmkd_plugin.bench.robustness.outcome import CORRUPTION
from tmkd_plugin.bench.robustness.table import columns_of, comparisons_of
from tmkd_plugin.bench.robustness.words import interval_of, mean_of, notes, sentences, title_of

_ESCAPED = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>|#"})


def document_of(results: Mapping[str, Any]) -> str:
    """Returns the whole document."""
    plan = results["measurement"]
    said = [f"* {_plain(line)}" for line in sentences(results)]
    remarks = [f"* {_plain(line)}" for line in notes(results)]
    parts = [
        "# Robustness",
        _plain(title_of(results)) + f"; corruptions drawn with seed {plan['seed']}, frost: {_plain(plan['frost'])}.",
        *(["\n".join(said)] if said else []),
        "## Students",
        _arm_rows(results),
        "**corrupted**: mean over corruptions of the mean accuracy over severities. **lost**: clean minus corrupted, in "
        "points. **mCE**: mean over corruptions of the sum of errors over severities, divided by that of the baseline arm "
        "with the same seed, in %; less is better. Intervals: 95 %, Student's t, of the differences seed by seed.",
    ]
    if results["teachers"]:
        parts += ["## Teachers", _teacher_rows(results), _teacher_words(results)]
    parts += ["## By corruption", "Mean accuracy over severities, mean over seeds.", _corruption_rows(results)]
    parts += _difference_parts(results)
    parts += _severity_parts(results)
    if remarks:
        parts += ["## Notes", "\n".join(remarks)]
    return "\n\n".join(parts) + "\n"


def _arm_rows(results: Mapping[str, Any]) -> str:
    columns = columns_of(results)
    rows = []
    for arm in results["arms"]:
        rows.append([_plain(arm["title"]), *_means(arm, columns), str(len(arm["seeds"]))])
        for baseline, entries in comparisons_of(results, arm["name"]).items():
            cells = [_difference(entries[metric]) if metric in entries else "-" for metric in columns]
            n = str(next(iter(entries.values()))["n"])
            rows.append([f"minus {_plain(subtracted(baseline))}", *cells, n])
    return _table(["", *map(_plain, columns.values()), "n"], rows)


def _teacher_rows(results: Mapping[str, Any]) -> str:
    columns = columns_of(results)
    rows = [
        [_plain(teacher["title"]), *_means(teacher, columns), str(len(teacher["seeds"]))]
        for teacher in results["teachers"]
    ]
    return _table(["", *map(_plain, columns.values()), "n"], rows)


def _teacher_words(results: Mapping[str, Any]) -> str:
    lines = [
        f"mCE against: {_plain(results['teachers'][0]['title'])}. There is one teacher: seeds of a fused one are those of the "
        "runs that learned its weights, and say nothing of other teachers, so no interval is given."
    ]
    for teacher in results["teachers"]:
        lines += [f"* {_plain(teacher['title'])}: {_plain(note)}" for note in teacher["notes"] if note]
    return "\n".join([lines[0], "", *lines[1:]]).rstrip()


def _corruption_rows(results: Mapping[str, Any]) -> str:
    groups = [*results["arms"], *results["teachers"]]
    rows = [
        [_words(name), *(mean_of(group["summary"][CORRUPTION + name]) for group in groups)]
        for name in results["measurement"]["corruptions"]
    ]
    return _table(["", *(_plain(group["title"]) for group in groups)], rows)


def _difference_parts(results: Mapping[str, Any]) -> list[str]:
    """The differences corruption by corruption, which no verdict is drawn from."""
    parts = []
    count = len(results["measurement"]["corruptions"])
    for arm in results["arms"]:
        for baseline, entries in comparisons_of(results, arm["name"]).items():
            rows = [
                [_words(name), _difference(entries[CORRUPTION + name])]
                for name in results["measurement"]["corruptions"]
                if CORRUPTION + name in entries
            ]
            parts += [
                f"### {_plain(arm['title'])} minus {_plain(subtracted(baseline))}",
                f"Points, with 95 % intervals. Of {count} intervals some miss by chance: no verdict is drawn from one of them.",
                _table(["", "difference"], rows),
            ]
    return parts


def _severity_parts(results: Mapping[str, Any]) -> list[str]:
    """The mean accuracy over corruptions, severity by severity."""
    groups = [*results["arms"], *results["teachers"]]
    rows = []
    for severity in results["measurement"]["severities"]:
        cells = []
        for group in groups:
            values = [each[str(severity)] for seed in group["seeds"] for each in seed["corruptions"].values()]
            cells.append(f"{sum(values) / len(values):.2f}")
        rows.append([str(severity), *cells])
    return ["## By severity", _table(["severity", *(_plain(group["title"]) for group in groups)], rows)]


def _means(group: Mapping[str, Any], columns: Mapping[str, str]) -> list[str]:
    return [mean_of(group["summary"][metric]) for metric in columns]


def _difference(entry: Mapping[str, Any]) -> str:
    return f"{entry['delta']:+.2f} {interval_of(entry)}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _plain(text: str) -> str:
    return " ".join(str(text).split()).translate(_ESCAPED)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(heads), ["---", *["---:"] * (len(heads) - 1)], *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
