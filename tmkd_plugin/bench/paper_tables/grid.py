"""A table laid out as texts, before a format escapes them: the paper's layout, with differences beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tmkd_plugin.bench.paper_tables.cells import Cell
from tmkd_plugin.bench.paper_tables.notes import Notes
from tmkd_plugin.bench.paper_tables.schema import Line, TableSpec

DELTA, INTERVAL = "difference", "95 % interval"
Cells = Mapping[tuple[str, str], Cell]


@dataclass(frozen=True)
class GridRow:
    """A row.

    Attributes:
        labels: One for each level of the row labels.
        texts: One for each column.
        ruled: Whether a rule follows.
    """

    labels: tuple[str, ...]
    texts: tuple[str, ...]
    ruled: bool = False


@dataclass(frozen=True)
class Grid:
    """A table of texts.

    Attributes:
        row_headers: The names of the levels of row labels.
        headers: (name, texts) of each level of the column labels.
        rows: The rows.
    """

    row_headers: tuple[str, ...]
    headers: tuple[tuple[str, tuple[str, ...]], ...]
    rows: tuple[GridRow, ...]


def grid_of(table: TableSpec, cells: Cells, notes: Notes, used_data: Mapping[str, str]) -> Grid:
    """Lays a table out.

    Args:
        table: The table.
        cells: Its cells.
        notes: Its notes.
        used_data: By group, the data set that stands in for the table's; empty where none does.
    """
    columns = _columns(table, notes)
    levels = [
        (name, tuple(labels[level] for labels, _, _ in columns)) for level, name in enumerate(table.column_headers)
    ]
    data = tuple(used_data.get(column.group or table.group or "", "") for _, column, _ in columns)
    if any(data):
        levels.insert(0, ("Data", data))
    rows: list[GridRow] = []
    for place, row in enumerate(table.rows):
        ends = place + 1 < len(table.rows) and table.rows[place + 1].against is None
        # The first label of a row and the last of a column carry the marks.
        labels = (_marked(row.labels[0], row, notes, used_data), *row.labels[1:])
        texts = tuple(_text(kind, cells[row.id, column.id], notes) for _, column, kind in columns)
        rows.append(GridRow(labels, texts, ruled=ends and row.against is None))
        if row.against is not None:
            blank = ("",) * (len(labels) - 1)
            for kind in (DELTA, INTERVAL):
                extra = tuple(_text(kind, cells[row.id, column.id], notes) for _, column, _ in columns)
                rows.append(GridRow((f"  {kind}", *blank), extra, ruled=ends and kind == INTERVAL))
    return Grid(table.row_headers, tuple(levels), tuple(rows))


def _columns(table: TableSpec, notes: Notes) -> Sequence[tuple[tuple[str, ...], Line, str | None]]:
    """Returns (labels, column, kind) of every printed column; differences have columns of their own where columns have them."""
    found: list[tuple[tuple[str, ...], Line, str | None]] = []
    for column in table.columns:
        *before, last = column.labels
        found.append(((*before, _marked(last, column, notes, {})), column, None))
        if column.against is not None:
            found += [((*("" for _ in column.labels[1:]), kind), column, kind) for kind in (DELTA, INTERVAL)]
    return found


def _marked(label: str, line: Line, notes: Notes, used_data: Mapping[str, str]) -> str:
    """Returns a label with what must not be missed beside it: not in the paper, other data, notes."""
    if line.ours and not label.endswith("(control)"):
        label = f"{label} (ours)"
    if line.group is not None and used_data.get(line.group):
        label = f"{label} -> {used_data[line.group]}"
    return label + marks(notes.of_line.get(line.id, ()))


def _text(kind: str | None, cell: Cell, notes: Notes) -> str:
    if kind == DELTA:
        return _delta(cell)
    if kind == INTERVAL:
        return _interval(cell)
    return figure(cell) + marks(notes.of_cell.get((cell.row, cell.column), ()))


def figure(cell: Cell) -> str:
    """Returns ``41.20 ± 0.30 (39.50)``: our mean and standard deviation, the paper's figure in parentheses."""
    if cell.mean is None:
        ours = "failed" if cell.missing else "-"
    else:
        ours = f"{cell.mean:.2f}" + (f" ± {cell.sd:.2f}" if cell.sd is not None else "")
        ours += f" [{cell.missing} failed]" if cell.missing else ""
    return f"{ours} ({cell.paper:.2f})" if cell.paper is not None else ours


def _delta(cell: Cell) -> str:
    if cell.against is None:
        return ""
    ours = "-" if cell.delta is None else f"{cell.delta:+.2f}"
    return f"{ours} ({cell.paper_delta:+.2f})" if cell.paper_delta is not None else ours


def _interval(cell: Cell) -> str:
    if cell.ci95 is not None:
        return f"[{cell.ci95[0]:+.2f}, {cell.ci95[1]:+.2f}]"
    return "needs 2 seeds" if cell.delta is not None else ""


def marks(numbers: Sequence[int]) -> str:
    """Returns the numbers of notes as ``[1,2]``, nothing for none."""
    return f" [{','.join(map(str, numbers))}]" if numbers else ""
