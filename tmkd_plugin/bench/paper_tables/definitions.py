"""Reads the tables and the scales, and checks that what refers to each other exists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tmkd_plugin.bench.paper_tables.arms import parse_arm
from tmkd_plugin.bench.paper_tables.schema import Line, ScalesFile, ScaleSpec, TableSpec
from tmkd_plugin.errors import InputError, unknown_name
from tmkd_plugin.presets import load_preset
from tmkd_plugin.presets.tables import FOLDER, TABLES

Model = TypeVar("Model", bound=BaseModel)


def load_table(number: int | str, folder: Path = FOLDER) -> TableSpec:
    """Reads a table of the paper.

    Raises:
        InputError: There is no such table, or its file can't be used; the message has a line for each problem.
    """
    if str(number) not in {str(table) for table in TABLES}:
        raise unknown_name("table", str(number), [str(table) for table in TABLES])
    path = folder / f"table{number}.yaml"
    table = _read(path, TableSpec)
    problems = list(_table_problems(table))
    if problems:
        raise InputError("\n".join([f"{path.name} can't be used:", *(f"  {problem}" for problem in problems)]))
    return table


def load_scales(folder: Path = FOLDER) -> ScalesFile:
    """Reads what the scales change.

    Raises:
        InputError: The file can't be used.
    """
    return _read(folder / "scales.yaml", ScalesFile)


def scale_named(scales: ScalesFile, name: str) -> ScaleSpec:
    """Returns a scale.

    Raises:
        InputError: There is none of that name.
    """
    if name not in scales.scales:
        raise unknown_name("scale", name, scales.scales)
    return scales.scales[name]


def _read(path: Path, model: type[Model]) -> Model:
    values = load_preset(str(path))
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [f"  {_place(problem['loc'])}: {_words(problem)}" for problem in error.errors(include_url=False)]
        raise InputError("\n".join([f"{path.name} can't be used:", *lines])) from None


def _place(location: Iterable[int | str]) -> str:
    return ".".join(str(part) for part in location) or "the file"


def _words(problem: Any) -> str:
    if problem["type"] == "value_error":
        return f"{problem['ctx']['error']}."
    if problem["type"] == "missing":
        return "a value is missing."
    return f"{problem['msg']}, got {problem['input']!r}."


def _table_problems(table: TableSpec) -> Iterator[str]:
    yield from _line_problems(table, "rows", table.rows, table.row_headers)
    yield from _line_problems(table, "columns", table.columns, table.column_headers)
    width = sum(not column.ours for column in table.columns)
    for row in table.rows:
        if row.paper is not None and len(row.paper) != width:
            yield f"rows, {row.id}: {len(row.paper)} figures of the paper for {width} columns."
        for column in table.columns:
            yield from _cell_problems(table, row, column)
    for place, note in enumerate(table.notes):
        for axis, named, lines in (("row", note.rows, table.rows), ("column", note.columns, table.columns)):
            for name in named:
                if name not in {line.id for line in lines}:
                    yield f"notes.{place}: {unknown_name(axis, name, [line.id for line in lines])}"


def _line_problems(table: TableSpec, axis: str, lines: tuple[Line, ...], headers: tuple[str, ...]) -> Iterator[str]:
    seen = set()
    for line in lines:
        if line.id in seen:
            yield f"{axis}: the id '{line.id}' stands twice."
        seen.add(line.id)
        if len(line.labels) != len(headers):
            yield f"{axis}, {line.id}: {len(line.labels)} labels for {len(headers)} headers."
        if line.group is not None and line.group not in {group.name for group in table.groups}:
            yield f"{axis}, {line.id}: {unknown_name('group', line.group, [group.name for group in table.groups])}"
        for arm in (line.arm, line.against):
            variant = parse_arm(arm).variant if arm is not None else None
            if variant is not None and variant not in table.variants:
                yield f"{axis}, {line.id}: {unknown_name('variant', variant, table.variants)}"


def _cell_problems(table: TableSpec, row: Line, column: Line) -> Iterator[str]:
    for key in ("group", "arm", "metric", "against"):
        if getattr(row, key) is not None and getattr(column, key) is not None:
            yield f"The row '{row.id}' and the column '{column.id}' both give '{key}'."
    if (row.group or column.group or table.group) is None:
        yield f"Neither the row '{row.id}' nor the column '{column.id}' nor the table gives a group."
    if (row.arm or column.arm) is None:
        yield f"Neither the row '{row.id}' nor the column '{column.id}' gives an arm."
