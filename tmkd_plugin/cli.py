"""The command ``tmkd``.

Only the standard library is imported until the arguments are known to be right: ``tmkd --help`` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from tmkd_plugin.errors import InputError, TmkdError, TmkdNotice
from tmkd_plugin.presets import describe_preset, preset_names
from tmkd_plugin.version import __version__

DONE, BAD_INPUT, RUN_FAILED, INTERRUPTED = 0, 2, 3, 130

EXAMPLES = """\
examples:
  tmkd bench --baseline kd
      KD and KD + TMKD on the handwritten digits inside scikit-learn, 3 seeds; no download
  tmkd bench --baseline all --controls --seeds 5
      all baselines, each alone, with TMKD, and with its control arms
  tmkd bench --baseline catkd --dataset ./images --preset cifar10_small --text clip.npz --seeds 0-7
      a folder with train/<class>/ and test/<class>/, text embeddings from a file, seeds 0 to 7
  tmkd bench --set tmkd.feature_weight=0.5 --set kd.temperature=2 --set training.epochs=20
      other values than the preset's; `tmkd list baselines` names the settings
  tmkd bench --baseline my_package.my_module:MyDistiller --set alpha=0.3
      a distiller of your own, called as MyDistiller(student=..., teacher=..., alpha=0.3)

exit codes: 0 done, 2 unusable input, 3 a run failed, 130 interrupted
"""
LISTS = ("baselines", "networks", "presets", "datasets")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors suggest what may have been meant."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Prints the problem in one line, the nearest known word and where to look, and exits with 2."""
        self.exit(BAD_INPUT, f"error: {message}.{self._suggestion(message)} See `{self.prog} --help`.\n")

    def _suggestion(self, message: str) -> str:
        known = [option for action in self._all_actions() for option in action.option_strings]
        given = [word.partition("=")[0] for word in message.split() if word.startswith("--")]
        if invalid := re.search(r"invalid choice: '([^']*)'", message):
            given = [invalid[1]]
            known = [str(choice) for action in self._all_actions() for choice in action.choices or ()]
        elif not message.startswith("unrecognized"):
            return ""
        near = [match for word in given for match in difflib.get_close_matches(word, known, n=1, cutoff=0.5)]
        return f" Did you mean {' '.join(repr(word) for word in near)}?" if near else ""

    def _all_actions(self) -> list[argparse.Action]:
        """Returns the actions of this parser and of its sub-commands, which report unknown options through it."""
        actions = list(self._actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                actions += [inner for parser in action.choices.values() for inner in parser._actions]
        return actions


def build_parser() -> Parser:
    """Returns the parser of the whole command line."""
    parser = Parser(prog="tmkd", description="A better teacher for any knowledge-distillation method.", epilog=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"tmkd {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    _add_bench(commands)
    lists = commands.add_parser(
        "list", help="show what can be given by name", description="Show what can be given by name."
    )
    lists.add_argument("what", choices=LISTS, help=", ".join(LISTS))
    lists.set_defaults(run=_run_list)
    return parser


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser(
        "bench",
        help="compare distillation methods with and without an enhancer",
        description="Train a teacher, then each baseline alone and with the enhancer, seed by seed, and compare them.",
        epilog=EXAMPLES,
    )
    what = bench.add_argument_group("what is compared")
    add = what.add_argument
    add(
        "--baseline",
        metavar="NAME",
        help="kd, rkd, sp, catkd, tekap, several with commas, all, or module:Class (default: kd)",
    )
    add(
        "--enhancer",
        metavar="NAME",
        help="tmkd: each baseline alone and with TMKD; none: the baselines alone (default: tmkd)",
    )
    add(
        "--controls",
        action="store_true",
        help="add two control arms for each baseline: + logit KL; RGB-trained teacher",
    )
    add("--seeds", metavar="SEEDS", help="3 for seeds 0, 1, 2; or a list 0,1,5; or a range 8-15 (default: 3)")
    data = bench.add_argument_group("data and networks")
    add = data.add_argument
    add(
        "--dataset",
        metavar="NAME|DIR",
        help="digits, or a folder with train/<class>/ and test/<class>/ (default: digits)",
    )
    add(
        "--teacher",
        metavar="NET",
        help="teacher network, see `tmkd list networks`; also timm/<name>, torchvision/<name>",
    )
    add(
        "--teacher-views",
        metavar="VIEWS",
        help="what the teacher is trained on: rgb, or all (a view drawn for each image)",
    )
    add("--teacher-checkpoint", metavar="FILE", help="weights of your own teacher, instead of training one")
    add("--student", metavar="NET", help="student network")
    add(
        "--text",
        metavar="SOURCE",
        help="text teacher: small_clip, MODEL/TAG of open_clip, or a file of embeddings (.npz)",
    )
    values = bench.add_argument_group("values and files")
    add = values.add_argument
    add("--preset", metavar="NAME|FILE", help=f"{', '.join(preset_names())}, or a YAML file (default: by the data set)")
    add(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change a value, such as training.epochs=20; repeatable",
    )
    add("--out", metavar="DIR", type=Path, help="folder of the results (default: runs/<dataset>-<baseline>-<enhancer>)")
    add("--overwrite", action="store_true", help="replace results that stand there")
    add(
        "--threads",
        metavar="N",
        type=_threads,
        help="CPU threads, which results depend on in the last bits (default: torch's)",
    )
    add("--quiet", action="store_true", help="print the outcome only")
    add("--debug", action="store_true", help="show the traceback of an unexpected error")
    bench.set_defaults(run=_run_bench)


def _threads(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got '{text}'")
    return int(text)


def _run_bench(arguments: argparse.Namespace) -> int:
    from tmkd_plugin.config import parse_assignments

    # Unlike `python -m`, an installed command does not look for module:Class in the current folder by itself.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    assignments = parse_assignments(arguments.set)
    from tmkd_plugin.bench.command import BenchOptions, bench

    names = (
        "dataset",
        "teacher",
        "teacher_views",
        "teacher_checkpoint",
        "student",
        "baseline",
        "enhancer",
        "seeds",
        "text",
    )
    flags = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.controls:
        flags["controls"] = True
    return bench(
        BenchOptions(
            flags=flags,
            assignments=assignments,
            preset=arguments.preset,
            out=arguments.out,
            overwrite=arguments.overwrite,
            threads=arguments.threads,
            quiet=arguments.quiet,
        )
    )


def _run_list(arguments: argparse.Namespace) -> int:
    lines: dict[str, Callable[[], list[str]]] = {
        "presets": lambda: [f"{name:16} {describe_preset(name)}" for name in preset_names()],
        "baselines": _baseline_lines,
        "networks": _network_lines,
        "datasets": _dataset_lines,
    }
    print("\n".join(lines[arguments.what]()))
    return DONE


def _baseline_lines() -> list[str]:
    from tmkd_plugin.baselines import BASELINES, baseline_class
    from tmkd_plugin.bench.arms import enhancer_class, title_of
    from tmkd_plugin.bench.configuration import section_of

    lines = []
    methods = [(name, baseline_class(name)) for name in BASELINES]
    for name, method in [*methods, ("tmkd", enhancer_class("tmkd"))]:
        lines.append(f"{name} ({title_of(name)})" + (": the enhancer" if name == "tmkd" else ""))
        for key, setting in (section_of(method).settings or {}).items():
            lines.append(f"    {name}.{key}={setting.value}  {setting.meaning} [{setting.source}]")
    return [*lines, "module:Class  a distiller of your own"]


def _network_lines() -> list[str]:
    from tmkd_plugin.zoo import list_networks

    return [*list_networks(), "timm/<name>, torchvision/<name>, module:callable"]


def _dataset_lines() -> list[str]:
    from tmkd_plugin.data import NAMED_DATASETS

    return [
        *NAMED_DATASETS,
        "DIR  a folder with train/<class>/ and test/<class>/, or with <class>/, which is then split",
    ]


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
        print(
            "\nInterrupted. What was written is whole; the same command starts the comparison again.", file=sys.stderr
        )
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
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
