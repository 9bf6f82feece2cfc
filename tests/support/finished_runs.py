"""A small finished comparison made by the bench itself, and copies of it that are spoilt in one way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tmkd_plugin.cli import main


def make_run(folder: Path, images: Path, text: Path, cache: Path) -> Path:
    """Runs KD against KD + TMKD on tiny images with two seeds of two epochs."""
    options = ["bench", "--dataset", str(images), "--text", str(text), "--teacher", "resnet8", "--student", "resnet8"]
    options += ["--threads", "1", "--seeds", "2", "--quiet", "--out", str(folder)]
    for value in ("image_size=16", "training.epochs=2", "teacher_training.epochs=1", "training.batch_size=12"):
        options += ["--set", value]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMKD_CACHE", str(cache))
        assert main(options) == 0
    return folder


def copied(run: Path, to: Path, change: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """Copies a run; ``change`` gets the data of its ``results.json``."""
    shutil.copytree(run, to)
    if change is not None:
        path = to / "results.json"
        results = json.loads(path.read_text())
        change(results)
        path.write_text(json.dumps(results))
    return to


def call(command: Any, *words: str) -> int:
    """Runs a sub-command given by its module; returns the exit code, errors as they are."""
    from tmkd_plugin.commands.parser import Parser

    parser = Parser(prog="tmkd")
    command.add_parser(parser.add_subparsers(parser_class=Parser))
    arguments = parser.parse_args([command.__name__.rpartition(".")[2].replace("_", "-"), *words])
    return arguments.run(arguments)
