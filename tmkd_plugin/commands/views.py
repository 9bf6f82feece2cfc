"""``tmkd views``: the three views of images as one sheet."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tmkd_plugin.commands.parser import whole_number

EXAMPLES = """\
examples:
  tmkd views cat.jpg dog.png
  tmkd views cat.jpg --size 224 --set canny_low=50 --set canny_high=120 --out cat.svg
"""


def add_parser(commands: Any) -> None:
    """Adds ``tmkd views`` to the commands."""
    views = commands.add_parser(
        "views",
        help="show the three views of images",
        description="Write one sheet with the RGB, edge and high-frequency view of each image and the settings used.",
        epilog=EXAMPLES,
    )
    add = views.add_argument
    add("images", metavar="IMAGE", nargs="+", type=Path, help="image files, up to 16")
    add("--out", metavar="FILE", type=Path, default=Path("views.png"), help=".png or .svg (default: views.png)")
    add("--size", metavar="PIXELS", type=whole_number, help="central square of this side, as networks see it")
    add("--set", metavar="KEY=VALUE", action="append", default=[], dest="assignments", help="a setting of the views")
    add("--debug", action="store_true", help="show the traceback of an unexpected error")
    views.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Writes the sheet and returns the exit code."""
    from tmkd_plugin.bench.figures.views_sheet import (
        check_suffix,
        read_pixels,
        settings_given,
        views_sheet,
        write_sheet,
    )

    settings = settings_given(arguments.assignments)
    check_suffix(arguments.out)
    images = [(path.name, read_pixels(path, arguments.size)) for path in arguments.images]
    write_sheet(views_sheet(images, settings), arguments.out)
    print(f"{arguments.out}: RGB, edge and high-frequency view of {len(images)} image{'s' if len(images) > 1 else ''}")
    return 0
