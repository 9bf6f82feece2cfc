"""``tmkd regress``: whether a small comparison still gives what its reference says."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from tmkd_plugin.commands.parser import whole_number

EXAMPLES = """\
examples:
  tmkd regress
      the reference for handwritten digits that comes with tmkd; no download
  tmkd regress --reference reference.json --junit regress.xml
  tmkd regress --reference reference.json --results runs/nightly/results.json
      holds a finished comparison of the reference's configuration against it
  tmkd bench --baseline my_module:MyDistiller --seeds 100-119 --out runs/reference
  tmkd regress --update --results runs/reference/results.json --reference reference.json
      records a reference of your own; `tmkd regress --update --reference reference.json` runs it again

exit codes: 0 all rules hold, 1 a rule failed, 2 unusable input, 3 a run failed
"""


def add_parser(commands: Any) -> None:
    """Adds ``tmkd regress`` to the commands."""
    regress = commands.add_parser(
        "regress",
        help="check a small comparison against a recorded reference",
        description="Fail if the enhanced arm is shown to be worse than its baseline, or an arm has left its recorded band.",
        epilog=EXAMPLES,
    )
    what = regress.add_argument_group("what is checked")
    add = what.add_argument
    add("--reference", metavar="NAME|FILE", default="digits", help="a reference file, or digits (default)")
    add(
        "--margin",
        metavar="POINTS",
        type=float,
        default=1.0,
        help="points of top-1 that the enhanced arm may be worse than its baseline (default: 1.0)",
    )
    add("--strict", action="store_true", help="demand that it is shown not to be worse than that")
    add("--seeds", metavar="SEEDS", help="as in `tmkd bench` (default: those that the reference names)")
    add("--results", metavar="FILE", type=Path, help="results.json of a comparison, instead of running one")
    record = regress.add_argument_group("recording")
    add = record.add_argument
    add("--update", action="store_true", help="record the reference, from --results or by running it again (20 seeds)")
    add("--check-seeds", metavar="SEEDS", help="with --update: the seeds that later checks run (default: 0-2)")
    files = regress.add_argument_group("files")
    add = files.add_argument
    add("--junit", metavar="FILE", type=Path, help="write the outcome as JUnit XML")
    add(
        "--summary", metavar="FILE", type=Path, help="write it as Markdown (default: GitHub's job page, in its Actions)"
    )
    add("--out", metavar="DIR", type=Path, help="folder of the runs, replaced (default: runs/regress-<reference>)")
    add("--threads", metavar="N", type=whole_number, help="CPU threads (default: the reference's)")
    add("--quiet", action="store_true", help="print the outcome only")
    add("--debug", action="store_true", help="show the traceback of an unexpected error")
    regress.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Checks or records, and returns the exit code."""
    # Unlike `python -m`, an installed command does not look for module:Class in the current folder by itself.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    from tmkd_plugin.bench.regression.command import RegressOptions, regress

    names = RegressOptions.__dataclass_fields__
    return regress(RegressOptions(**{name: getattr(arguments, name) for name in names}))
