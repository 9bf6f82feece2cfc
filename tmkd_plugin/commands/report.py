"""``tmkd report``: one self-contained HTML report of a finished comparison."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from tmkd_plugin.commands.figures import add_figure_options

EXAMPLES = """\
examples:
  tmkd report
      the newest finished comparison below the folder runs
  tmkd report runs/digits-kd-tmkd --out report.html
"""


def add_parser(commands: Any) -> None:
    """Adds ``tmkd report`` to the commands."""
    report = commands.add_parser(
        "report",
        help="write one HTML report of a comparison",
        description="Write one HTML file with the verdict, tables, learning curves, figures, gains and losses class by class, "
        "configuration and environment of a finished comparison. It opens from disk and needs no network.",
        epilog=EXAMPLES,
    )
    add = report.add_argument
    add(
        "run_folder",
        metavar="RUN",
        type=Path,
        nargs="?",
        help="the folder of a finished comparison (default: the newest below runs)",
    )
    add("--out", metavar="FILE", type=Path, help="the file to write (default: RUN/report.html)")
    add_figure_options(report)
    report.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Writes the report and returns the exit code."""
    # A student may be a function of the user's, in the current folder.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    from tmkd_plugin.bench.report.command import ReportOptions, report

    return report(
        ReportOptions(
            arguments.run_folder,
            arguments.out,
            arguments.seed,
            arguments.images,
            arguments.arms,
            arguments.data_dir,
        )
    )
