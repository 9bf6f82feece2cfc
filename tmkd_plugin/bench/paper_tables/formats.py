"""A table as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from tmkd_plugin.bench.paper_tables.document import Document
from tmkd_plugin.bench.paper_tables.grid import Grid

CSV_COLUMNS = (
    "table", "scale", "row", "column", "group", "dataset", "used_dataset", "teacher", "student", "arm", "metric",
    "mean", "sd", "n", "failed", "paper",
    "against", "difference", "ci95_low", "ci95_high", "pairs", "paper_difference", "notes",
)  # fmt: skip
LATEX_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "✓": r"$\checkmark$", "→": r"$\to$",
}  # fmt: skip


def markdown(document: Document) -> str:
    """Returns the table as Markdown, its columns padded so that it reads well in a terminal."""
    lines = [f"# {escape_markdown(document.title)}", ""]
    lines += [f"**{escape_markdown(line)}**\n" for line in document.warnings]
    lines += [*_markdown_rows(document.grid), "", escape_markdown(document.legend), ""]
    if document.notes.texts:
        lines += ["Notes", ""]
        lines += [f"{number}. {escape_markdown(text)}" for number, text in enumerate(document.notes.texts, 1)]
        lines.append("")
    lines += ["What was run", "", *(f"- {escape_markdown(line)}" for line in document.runs)]
    return "\n".join(lines) + "\n"


def _markdown_rows(grid: Grid) -> list[str]:
    rows = [[escape_markdown(text) for text in row] for row in _plain_rows(grid)]
    widths = [max(3, *(len(row[place]) for row in rows)) for place in range(len(rows[0]))]
    padded = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    labels = len(grid.row_headers)
    rule = ["-" * width if place < labels else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    return [padded[0], "| " + " | ".join(rule) + " |", *padded[1:]]


def _plain_rows(grid: Grid) -> list[tuple[str, ...]]:
    """Returns header and body rows; the names of the header's levels stand in the last column of row labels."""
    return [*_header_rows(grid), *((*row.labels, *row.texts) for row in grid.rows)]


def _header_rows(grid: Grid) -> list[tuple[str, ...]]:
    """The names of row labels stand beside the last level of the header, or share its cell with its own name."""
    rows: list[tuple[str, ...]] = []
    for level, (name, texts) in enumerate(grid.headers):
        last = level + 1 == len(grid.headers)
        corner = grid.row_headers if last else (*("" for _ in grid.row_headers[1:]), name)
        if last and len(grid.headers) > 1:
            corner = (*grid.row_headers[:-1], f"{grid.row_headers[-1]} / {name}")
        rows.append((*corner, *texts))
    return rows


def escape_markdown(text: str) -> str:
    """Escapes what Markdown would read as markup, in tables too."""
    text = re.sub(r"([\\`*|~])", r"\\\1", text.replace("\n", " "))
    text = text.replace("<", "&lt;").replace("->", "→")
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text).rstrip()


def latex(document: Document) -> str:
    """Returns the table as a LaTeX ``table`` environment with booktabs rules."""
    grid = document.grid
    labels, columns = len(grid.row_headers), len(grid.headers[0][1])
    lines = [f"% {line}" for line in (document.title, *document.warnings)]
    lines += [
        r"% needs \usepackage{booktabs} and, for check marks, \usepackage{amssymb}",
        r"\begin{table}",
        r"\centering",
    ]
    warnings = "".join(rf" \textbf{{{escape_latex(line)}}}" for line in document.warnings)
    lines.append(rf"\caption{{{escape_latex(document.table.title)}.{warnings} {escape_latex(document.legend)}}}")
    lines += [rf"\begin{{tabular}}{{{'l' * labels}{'r' * columns}}}", r"\toprule"]
    lines += [_latex_row(row) for row in _header_rows(grid)]
    lines.append(r"\midrule")
    for row in grid.rows:
        lines.append(_latex_row((*row.labels, *row.texts)))
        if row.ruled:
            lines.append(r"\midrule")
    lines += [r"\bottomrule", r"\end{tabular}"]
    for number, text in enumerate(document.notes.texts, 1):
        lines.append(rf"\par\footnotesize [{number}] {escape_latex(text)}")
    lines += [rf"\par\footnotesize {escape_latex(line)}" for line in document.runs]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _latex_row(texts: Sequence[str]) -> str:
    # A row that begins with [ would be taken for the optional argument of the \\ before it.
    cells = [escape_latex(text).replace("[", "{[}").replace("]", "{]}") for text in texts]
    return " & ".join(cells) + r" \\"


def escape_latex(text: str) -> str:
    """Escapes what LaTeX would read as a command, and writes the few signs that we use as commands."""
    text = text.replace("->", "→").replace("\n", " ")
    return "".join(LATEX_SPECIAL.get(character, character) for character in text)


def csv_text(document: Document) -> str:
    """Returns one line for each cell, in full precision."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for cell in document.cells.values():
        planned = document.groups[cell.group]
        experiment = planned.comparisons[0].configuration.experiment
        low, high = cell.ci95 or (None, None)
        numbers = document.notes.numbers(cell.row, cell.column)
        writer.writerow(
            [
                document.table.table, document.scale_name, cell.row, cell.column, cell.group, planned.group.dataset,
                planned.dataset, experiment.teacher, experiment.student, cell.arm, cell.metric, cell.mean, cell.sd,
                len(cell.values), cell.missing, cell.paper, cell.against, cell.delta, low, high, cell.pairs, cell.paper_delta,
                " ".join(map(str, numbers)),
            ]
        )  # fmt: skip
    return content.getvalue()
