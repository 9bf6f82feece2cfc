"""``tmkd figures``: the paper's figures of a finished comparison."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from tmkd_plugin.commands.parser import whole_number

EXAMPLES = """\
examples:
  tmkd figures runs/digits-kd-tmkd
  tmkd figures runs/digits-all --arms rkd,rkd+tmkd --seed 2 --images 8 --out figures
"""


def add_parser(commands: Any) -> None:
    """Adds ``tmkd figures`` to the commands."""
    figures = commands.add_parser(
        "figures",
        help="draw attention maps, features, logits and fusion weights of a comparison",
        description="Draw, for a finished comparison, attention maps, the plane of features, class-wise logits and fusion "
        "weights of a baseline and its enhanced self, as PNG and SVG with their words as text.",
        epilog=EXAMPLES,
    )
    add = figures.add_argument
    add("run_folder", metavar="RUN", type=Path, help="the folder of a finished comparison")
    add("--out", metavar="DIR", type=Path, help="where the figures go (default: RUN/figures)")
    add_figure_options(figures)
    figures.set_defaults(run=run)


def add_figure_options(parser: argparse.ArgumentParser) -> None:
    """Adds what `tmkd figures` and `tmkd report` have in common."""
    add = parser.add_argument
    add("--seed", metavar="N", type=seed_number, help="whose students are shown (default: the first finished seed)")
    add("--images", metavar="N", type=whole_number, default=6, help="images with attention maps (default: 6)")
    add("--arms", metavar="A,B", type=two_arms, help="two arms, such as kd,kd+tmkd (default: each baseline, enhanced)")
    add("--data-dir", metavar="DIR", help="where data sets known by name lie now (default: where they lay)")
    add("--debug", action="store_true", help="show the traceback of an unexpected error")


def seed_number(text: str) -> int:
    """Reads a seed, a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got '{text}'")
    return int(text)


def two_arms(text: str) -> tuple[str, str]:
    """Reads the names of two different arms."""
    names = [name.strip() for name in text.split(",")]
    if len(names) != 2 or "" in names or names[0] == names[1]:
        raise argparse.ArgumentTypeError(f"expected two different arms such as kd,kd+tmkd, got '{text}'")
    return names[0], names[1]


def run(arguments: argparse.Namespace) -> int:
    """Draws the figures and returns the exit code."""
    # A student may be a function of the user's, in the current folder.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    from tmkd_plugin.bench.figures.command import FigureOptions, figures

    return figures(
        FigureOptions(
            arguments.run_folder,
            arguments.out,
            arguments.seed,
            arguments.images,
            arguments.arms,
            arguments.data_dir,
        )
    )
