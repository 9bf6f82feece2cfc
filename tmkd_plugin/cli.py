"""The command ``tmkd``.

Only the standard library is imported until the arguments are known to be right: ``tmkd --help`` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from tmkd_plugin.commands.bench import EXAMPLES
from tmkd_plugin.commands.parser import BAD_INPUT, Parser
from tmkd_plugin.errors import InputError, TmkdError, TmkdNotice, is_storage_error
from tmkd_plugin.version import __version__

DONE, RUN_FAILED, INTERRUPTED = 0, 3, 130

COMMANDS = (
    "bench",
    "table",
    "views",
    "figures",
    "report",
    "teacher_report",
    "robustness",
    "regress",
    "power",
    "perf",
    "teachers",
    "text_cache",
    "runs",
    "list_names",
)
"""Modules of ``tmkd_plugin.commands``, in the order of the help."""


def build_parser() -> Parser:
    """Returns the parser of the whole command line."""
    parser = Parser(prog="tmkd", description="A better teacher for any knowledge-distillation method.", epilog=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"tmkd {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for name in COMMANDS:
        importlib.import_module(f"tmkd_plugin.commands.{name}").add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code.

    Args:
        arguments: The words after ``tmkd``; ``None`` for those of the process.
    """
    try:
        parsed = build_parser().parse_args(arguments)
    except SystemExit as exit_:  # argparse has printed the help or the error
        return int(exit_.code or 0)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _run(parsed)


def _run(parsed: argparse.Namespace) -> int:
    debug = getattr(parsed, "debug", False)
    try:
        return int(parsed.run(parsed))
    except InputError as error:
        return _report(f"error: {error}", BAD_INPUT, debug)
    except TmkdError as error:
        return _report(f"error: the run failed: {error}", RUN_FAILED, debug)
    except KeyboardInterrupt:
        print("\nInterrupted. What was written is whole; the same command goes on from there.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        if is_storage_error(error):
            advice = "What was finished before is whole. Make room or choose another folder, and give the same command again."
            return _report(f"error: the run failed: {error}. {advice}", RUN_FAILED, debug)
        where = _write_traceback()
        message = f"error: unexpected {type(error).__name__}: {error}\nThis is a bug. The traceback is in {where}."
        return _report(message, RUN_FAILED, debug)


def _report(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(message, file=sys.stderr)
    return code


def _write_traceback() -> Path:
    with tempfile.NamedTemporaryFile("w", prefix="tmkd-error-", suffix=".log", delete=False, encoding="utf-8") as file:
        traceback.print_exc(file=file)
    return Path(file.name)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Shows our own notices in plain words, other people's warnings as Python does."""
    own = issubclass(category, TmkdNotice) or category.__module__.startswith("tmkd_plugin")
    text = f"note: {message}\n" if own else warnings.formatwarning(message, category, filename, lineno)
    sys.stderr.write(text)
