"""The part of a table that was asked for: pairs of networks, data sets, baselines; and control arms beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tmkd_plugin.bench.arms import title_of
from tmkd_plugin.bench.paper_tables.arms import parse_arm
from tmkd_plugin.bench.paper_tables.schema import Group, Line, TableSpec
from tmkd_plugin.errors import InputError, unknown_name

CONTROL_LABELS = {"logit_kl": "{} + logit KL (control)", "rgb_teacher": "{}, RGB teacher (control)"}


@dataclass(frozen=True)
class Selection:
    """What of a table is wanted; ``None`` for all.

    Attributes:
        pairs: ``teacher:student``.
        datasets: Names of data sets.
        baselines: Names of distillation methods.
        controls: Whether to add the control arms of every enhanced baseline.
    """

    pairs: Sequence[str] | None = None
    datasets: Sequence[str] | None = None
    baselines: Sequence[str] | None = None
    controls: bool = False


def select(table: TableSpec, selection: Selection, adds_logit_kl: Callable[[str], bool]) -> TableSpec:
    """Returns the table with the lines that were asked for.

    Args:
        table: The whole table.
        selection: What is wanted of it.
        adds_logit_kl: Whether TMKD adds a KL of logits to a baseline, which the control ``logit_kl`` then has too.

    Raises:
        InputError: The table has no such pair, data set or baseline, or nothing is left.
    """
    pairs = _checked("pair", selection.pairs, [f"{group.teacher}:{group.student}" for group in table.groups], table)
    datasets = _checked("data set", selection.datasets, [group.dataset for group in table.groups], table)
    baselines = _checked("baseline", selection.baselines, list(_baselines(table)), table)

    def keeps_group(group: Group) -> bool:
        return f"{group.teacher}:{group.student}" in pairs and group.dataset in datasets

    groups = tuple(group for group in table.groups if keeps_group(group))
    if not groups:
        raise InputError(f"Table {table.table} has no pair {', '.join(pairs)} on {', '.join(datasets)}.")
    names = {group.name for group in groups}

    def keeps(line: Line) -> bool:
        baseline = None if line.arm is None else parse_arm(line.arm).baseline
        return (line.group is None or line.group in names) and (baseline is None or baseline in baselines)

    if selection.controls:
        table = _with_controls(table, adds_logit_kl)
    kept = [
        place for place, column in enumerate(column for column in table.columns if not column.ours) if keeps(column)
    ]
    rows = tuple(
        row.model_copy(update={"paper": tuple(row.paper[place] for place in kept)}) if row.paper is not None else row
        for row in table.rows
        if keeps(row)
    )
    columns = tuple(column for column in table.columns if keeps(column))
    return table.model_copy(update={"groups": groups, "rows": rows, "columns": columns})


def _checked(kind: str, wanted: Sequence[str] | None, known: Sequence[str], table: TableSpec) -> list[str]:
    if wanted is None:
        return list(known)
    for name in wanted:
        if name not in known:
            raise unknown_name(f"{kind} of Table {table.table}", name, set(known))
    return list(wanted)


def _baselines(table: TableSpec) -> Iterator[str]:
    for line in (*table.rows, *table.columns):
        baseline = None if line.arm is None else parse_arm(line.arm).baseline
        if baseline is not None:
            yield baseline


def _with_controls(table: TableSpec, adds_logit_kl: Callable[[str], bool]) -> TableSpec:
    return table.model_copy(
        update={
            "rows": tuple(_controlled(table.rows, adds_logit_kl)),
            "columns": tuple(_controlled(table.columns, adds_logit_kl)),
        }
    )


def _controlled(lines: Sequence[Line], adds_logit_kl: Callable[[str], bool]) -> Iterator[Line]:
    """Puts the control arms behind each line of the usual TMKD."""
    for line in lines:
        yield line
        arm = None if line.arm is None else parse_arm(line.arm)
        if arm is None or arm.baseline is None or not arm.enhanced or arm.variant is not None:
            continue
        for control, label in CONTROL_LABELS.items():
            if control == "rgb_teacher" or adds_logit_kl(arm.baseline):
                name = f"{arm.baseline}{'@' if control == 'rgb_teacher' else '+'}{control}"
                labels = (label.format(title_of(arm.baseline)), *("" for _ in line.labels[1:]))
                yield Line(id=name, labels=labels, arm=name, against=arm.baseline, ours=True)
