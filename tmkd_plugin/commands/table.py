"""``tmkd table``: the paper's Tables 2 to 6, run, resumed and held against the paper's figures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tmkd_plugin.commands.engine import add_engine, ray_options
from tmkd_plugin.commands.parser import whole_number
from tmkd_plugin.presets.tables import SCALES, TABLES

EXAMPLES = """\
examples:
  tmkd table 2 --scale smoke
      every cell of Table 2 in minutes on two CPU cores, with digits in place of data that are not on disk
  tmkd table 2 --scale small --data-dir ~/datasets --device cuda --dry-run
      how many runs, how long, how much disk; nothing is run
  tmkd table 2 --scale paper --pairs resnet50:vgg8 --baselines catkd --seeds 5 --controls
      one pair and one method of it, with the control arms
  tmkd table 3 --scale paper --text 'clip/{dataset}.npz'
      text embeddings from one file for each data set

Started again after an interruption, the command goes on where it was; finished runs are never made again. Tables of the
same scale and --out share their runs.

exit codes: 0 done, 2 unusable input, 3 a part of the table failed, 130 interrupted
"""


def add_parser(commands: Any) -> None:
    """Adds ``tmkd table`` to the commands."""
    table = commands.add_parser(
        "table",
        help="run one of the paper's tables and hold it against the paper's figures",
        description="Run or resume Table 2, 3, 4, 5 or 6 of the paper, and print it beside the paper's figures.",
        epilog=EXAMPLES,
    )
    what = table.add_argument_group("what is run")
    what.add_argument("table", metavar="TABLE", type=int, choices=TABLES, help=", ".join(map(str, TABLES)))
    add = what.add_argument
    add(
        "--scale", choices=SCALES, default="smoke", help=f"{', '.join(SCALES)}: how large the runs are (default: smoke)"
    )
    add("--pairs", metavar="T:S,...", help="only these pairs of teacher and student, such as resnet50:vgg8")
    add("--datasets", metavar="NAME,...", help="only these data sets")
    add("--baselines", metavar="NAME,...", help="only these distillation methods")
    add("--controls", action="store_true", help="add two control arms for each method with TMKD")
    add("--seeds", metavar="SEEDS", help="3 for seeds 0, 1, 2; or a list 0,1,5; or a range 8-15 (default: the scale's)")
    add("--dry-run", action="store_true", help="say how many runs, how long and how much disk, and stop")
    values = table.add_argument_group("values and files")
    add = values.add_argument
    add("--data-dir", metavar="DIR", help="folder of the data sets (default: $TMKD_DATA_DIR, else the cache)")
    add("--text", metavar="SOURCE", help="text teacher; {dataset} in it stands for the data set's name")
    add("--device", metavar="DEVICE", help="where to train: cpu, cuda, cuda:1 (default: cpu)")
    add("--threads", metavar="N", type=whole_number, help="CPU threads (default: torch's)")
    add("--set", metavar="KEY=VALUE", action="append", default=[], help="change a value in all runs; repeatable")
    add("--out", metavar="DIR", type=Path, help="folder of all tables of this scale (default: runs/tables-<scale>)")
    add("--format", choices=("markdown", "csv", "latex", "all"), default="markdown",
        help="what to print; all are written (default: markdown)")  # fmt: skip
    add_engine(add)
    add("--quiet", action="store_true", help="print the table only")
    add("--debug", action="store_true", help="show the traceback of an unexpected error")
    table.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Makes a table and returns the exit code."""
    from tmkd_plugin.bench.paper_tables.command import TableOptions, make_table
    from tmkd_plugin.bench.paper_tables.selection import Selection
    from tmkd_plugin.config import parse_assignments

    names = ("seeds", "data_dir", "text", "device", "arms_at_once")
    return make_table(
        TableOptions(
            table=arguments.table,
            scale=arguments.scale,
            selection=Selection(
                pairs=_listed(arguments.pairs),
                datasets=_listed(arguments.datasets),
                baselines=_listed(arguments.baselines),
                controls=arguments.controls,
            ),
            flags={name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None},
            assignments=parse_assignments(arguments.set),
            out=arguments.out,
            threads=arguments.threads,
            dry_run=arguments.dry_run,
            format=arguments.format,
            quiet=arguments.quiet,
            ray=ray_options(arguments),
        )
    )


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip().lower() for part in text.split(",") if part.strip()]
