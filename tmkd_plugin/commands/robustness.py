"""``tmkd robustness``: a finished comparison's students and teachers on corrupted and on shifted images."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from tmkd_plugin.commands.figures import seed_number
from tmkd_plugin.commands.parser import names, whole_number

EXAMPLES = """\
examples:
  tmkd robustness runs/digits-kd-tmkd
      15 corruptions x 5 severities for every student and teacher of the comparison
  tmkd robustness runs/digits-kd-tmkd --corruptions fog,motion_blur --severities 1,3,5
  tmkd robustness runs/my_photos-kd-tmkd --shift other_photos --shift sketches
      also on other images of the same classes: other_photos/<class>/
"""


def add_parser(commands: Any) -> None:
    """Adds ``tmkd robustness`` to the commands."""
    parser = commands.add_parser(
        "robustness",
        help="measure a comparison's networks on corrupted and shifted images",
        description="Measure every student and teacher of a finished comparison on the 15 standard corruptions at 5 "
        "severities, and on folders of other images of the same classes, and compare the arms seed by seed.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("run_folder", metavar="RUN", type=Path, help="the folder of a finished comparison")
    add("--corruptions", metavar="NAMES", type=names, help="some of the 15, with commas (default: all)")
    add("--severities", metavar="LIST", type=_numbers, help="some of 1 to 5, such as 1,3,5 (default: all)")
    add(
        "--shift",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help="a folder of other images of the same classes, <class>/ or test/<class>/; repeatable",
    )
    add("--arms", metavar="NAMES", type=names, help="some arms of the comparison, with commas (default: all)")
    add("--no-teachers", action="store_true", help="measure the students only")
    add(
        "--images", metavar="N", type=whole_number, help="at most N test images, spread over the classes (default: all)"
    )
    add("--seed", metavar="N", type=seed_number, default=0, help="seed of the corruptions' draws (default: 0)")
    add("--frost-dir", metavar="DIR", type=Path, help="pictures of frost (default: procedural ones)")
    add("--data-dir", metavar="DIR", help="where data sets known by name lie now (default: where they lay)")
    add("--device", metavar="DEVICE", default="cpu", help="where networks compute: cpu, cuda, cuda:1 (default: cpu)")
    add("--out", metavar="DIR", type=Path, help="where the results go (default: RUN/robustness)")
    add("--json", action="store_true", help="print the data of robustness.json instead of the tables")
    add("--quiet", action="store_true", help="print the outcome only")
    add("--debug", action="store_true", help="show the traceback of an unexpected error")
    parser.set_defaults(run=run)


def _numbers(text: str) -> list[int]:
    """Reads whole numbers with commas."""
    return [whole_number(number.strip()) for number in text.split(",")]


def run(arguments: argparse.Namespace) -> int:
    """Measures and returns the exit code."""
    # A student may be a function of the user's, in the current folder.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    from tmkd_plugin.bench.robustness.command import RobustnessOptions, robustness

    return robustness(
        RobustnessOptions(
            arguments.run_folder,
            out=arguments.out,
            corruptions=arguments.corruptions,
            severities=arguments.severities,
            shifts=arguments.shift,
            arms=arguments.arms,
            teachers=not arguments.no_teachers,
            seed=arguments.seed,
            images=arguments.images,
            frost_dir=arguments.frost_dir,
            data_dir=arguments.data_dir,
            device=arguments.device,
            prints_json=arguments.json,
            quiet=arguments.quiet,
        )
    )
