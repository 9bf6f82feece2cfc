"""``tmkd teacher-report``: calibration and quality of the teachers and students of a comparison."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from tmkd_plugin.commands.parser import names, whole_number

EXAMPLES = """\
examples:
  tmkd teacher-report runs/digits-kd-tmkd
      the teacher alone, averaged and fused; the students before and after temperature scaling
  tmkd teacher-report runs/digits-kd-tmkd --richkd --bins 20 --confidence 0.9
  tmkd teacher-report runs/cub-kd --clip ViT-L-14-quickgelu/openai --split validation --out report
"""


def add_parser(commands: Any) -> None:
    """Adds ``tmkd teacher-report`` to the commands."""
    parser = commands.add_parser(
        "teacher-report",
        help="measure calibration and quality of the teachers and students of a comparison",
        description="Measure, for a finished comparison, the teacher as it is and as fused (top-1, calibration errors, NLL, "
        "Brier score, confident right and wrong predictions, non-target probabilities), and the students before and after "
        "temperature scaling. Nothing is trained, but for a small CLIP that is not in the cache any more.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("run_folder", metavar="RUN", type=Path, help="the folder of a finished comparison")
    add("--out", metavar="DIR", type=Path, help="where the files go (default: RUN/teacher-report)")
    add("--split", choices=("test", "validation"), default="test", help="which images (default: test)")
    add("--bins", metavar="N", type=whole_number, default=15, help="bins of the calibration errors (default: 15)")
    add(
        "--confidence",
        metavar="P",
        type=probability,
        default=0.8,
        help="a prediction of at least this is confident (default: 0.8)",
    )
    add("--arms", metavar="A,B", type=names, help="TMKD arms whose fusion to measure (default: the run's first)")
    rich = parser.add_mutually_exclusive_group()
    rich.add_argument("--richkd", action="store_true", help="measure the CLIP-fused teacher even if no arm has it")
    rich.add_argument("--no-richkd", action="store_true", help="leave the CLIP-fused teacher out")
    add("--clip", metavar="SOURCE", help="the CLIP of the CLIP-fused teacher (default: the run's text=)")
    add(
        "--similarity",
        metavar="SOURCE",
        help="text embeddings for the similarity of classes (default: the run's text=)",
    )
    add("--no-students", action="store_true", help="measure the teachers alone")
    add("--data-dir", metavar="DIR", help="where data sets known by name lie now (default: where they lay)")
    add("--debug", action="store_true", help="show the traceback of an unexpected error")
    parser.set_defaults(run=run)


def probability(text: str) -> float:
    """Reads a probability above 0 and at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and at most 1, got '{text}'")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Measures and returns the exit code."""
    # A student may be a function of the user's, in the current folder.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    from tmkd_plugin.bench.fused_teachers import TeacherChoice
    from tmkd_plugin.bench.teacher_report.command import TeacherReportOptions, teacher_report
    from tmkd_plugin.errors import InputError

    if arguments.no_richkd and arguments.clip is not None:
        raise InputError(
            "--clip names the CLIP of the CLIP-fused teacher, which --no-richkd leaves out: give one of the two."
        )
    wants_clip = arguments.richkd or arguments.clip is not None
    richkd = True if wants_clip else False if arguments.no_richkd else None
    return teacher_report(
        TeacherReportOptions(
            arguments.run_folder,
            arguments.out,
            arguments.split,
            arguments.bins,
            arguments.confidence,
            TeacherChoice(arguments.arms, richkd, arguments.clip),
            arguments.similarity,
            not arguments.no_students,
            arguments.data_dir,
        )
    )
