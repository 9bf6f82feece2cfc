"""``tmkd runs``: the comparisons below a folder, with state and progress."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tmkd_plugin.errors import InputError


def add_parser(commands: Any) -> None:
    """Adds ``tmkd runs`` to the commands."""
    runs = commands.add_parser(
        "runs",
        help="list comparisons with their state and progress",
        description="List the comparisons at and below a folder: running, done, failed or stopped, and how far each is.",
    )
    runs.add_argument("folder", nargs="?", type=Path, default=Path("runs"), help="where to look (default: runs)")
    runs.add_argument("--json", action="store_true", help="print JSON, every run by itself")
    runs.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the list and returns the exit code."""
    import time

    from tmkd_plugin.bench.run_list import describe, find_comparisons

    folder: Path = arguments.folder
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Give the folder that --out named, or one above it.")
    found = find_comparisons(folder)
    if arguments.json:
        import dataclasses
        import json

        print(json.dumps([dataclasses.asdict(item) for item in found], default=str, indent=2))
        return 0
    if not found:
        print(f"No comparison lies below {folder}.")
        return 0
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rows = [describe(comparison, time.time()) for comparison in found]
    table = Table(box=box.ASCII2)
    for head in rows[0]:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    console = Console()
    (console if console.is_terminal else Console(width=140, color_system=None)).print(table, markup=False)
    return 0
