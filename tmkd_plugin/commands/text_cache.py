"""``tmkd text-cache``: the text embeddings of class names in a small file, for machines that have no network."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tmkd_plugin.text_teacher import TextEmbeddings

DONE, BAD_INPUT = 0, 2
SUFFIXES = (".npz", ".safetensors")

EXAMPLES = """\
examples:
  tmkd text-cache --dataset cub200 --output cub200.npz
      on a machine with network; then anywhere: tmkd bench --dataset cub200 --text cub200.npz
  tmkd text-cache --dataset all --output text/
      text/<data set>.npz for every data set whose class names are known here
  tmkd text-cache --classes classes.txt --model ViT-B-16/laion2b_s34b_b88k --output text.npz
      class names of your own, one a line, in the order of the labels

The names go into the file, and whoever reads it compares them with its classes, in order.
exit codes: 0 done, 2 unusable input (with --dataset all: of a data set; the other files are written), 3 a bug
"""


def add_parser(commands: Any) -> None:
    """Adds ``tmkd text-cache`` to the commands."""
    parser = commands.add_parser(
        "text-cache",
        help="write the text embeddings of class names into a file that any machine can use",
        description="Write the text embeddings of class names, for the prompt of each view, into a file.",
        epilog=EXAMPLES,
    )
    names = parser.add_mutually_exclusive_group(required=True)
    names.add_argument(
        "--dataset", metavar="NAME|DIR|all", help="see `tmkd list datasets`; a folder of images; all by name"
    )
    names.add_argument("--classes", metavar="FILE", type=Path, help="text file, one class name a line, in order")
    add = parser.add_argument
    add("--model", metavar="SOURCE", help="MODEL/TAG of open_clip, a folder with a checkpoint, MODEL=FILE of weights "
        "(default: the paper's, ViT-B-32-quickgelu/openai)")  # fmt: skip
    add("--output", metavar="FILE", type=Path, required=True, help=".npz or .safetensors; for all data sets a folder")
    add("--data-dir", metavar="DIR", help="where data sets known by name, or their list files, lie")
    add(
        "--cache-dir",
        metavar="DIR",
        help="where computed embeddings are kept (default: $TMKD_CACHE, else ~/.cache/tmkd)",
    )
    add("--debug", action="store_true", help="show the traceback of an unexpected error")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Writes the file, or one for each data set, and returns the exit code."""
    from tmkd_plugin.data.class_names import class_names_of_dataset
    from tmkd_plugin.errors import InputError
    from tmkd_plugin.text_encoder import DownloadError

    if arguments.dataset != "all":
        _check_output(arguments.output)
        given = arguments.classes
        names = _read_names(given) if given else class_names_of_dataset(arguments.dataset, arguments.data_dir)
        _embed(names, arguments, arguments.output)
        return DONE
    from tmkd_plugin.data import NAMED_DATASETS

    code = DONE
    for dataset in NAMED_DATASETS:
        try:
            names = class_names_of_dataset(dataset, arguments.data_dir)
            _embed(names, arguments, arguments.output / f"{dataset}.npz")
        except DownloadError:  # no other data set would fare better
            raise
        except InputError as error:
            print(f"{dataset}: not written: {error}", file=sys.stderr)
            code = BAD_INPUT
    return code


def _embed(names: list[str], arguments: argparse.Namespace, output: Path) -> None:
    from tmkd_plugin.text_teacher import DEFAULT_TEXT_MODEL, text_embeddings

    text = text_embeddings(names, arguments.model or DEFAULT_TEXT_MODEL, cache_dir=arguments.cache_dir)
    write_embeddings(output, text)
    views, classes, width = text.tensor.shape
    size = output.stat().st_size / 1e3
    print(
        f"{output}: {views} views x {classes} classes x {width} numbers from {text.source}; {size:,.1f} kB", flush=True
    )


def write_embeddings(path: Path, text: TextEmbeddings) -> None:
    """Writes embeddings as a text source that any machine reads: ``.npz`` or ``.safetensors``; whole or not at all.

    The same embeddings give the same bytes.

    Raises:
        InputError: The file has another ending or can't be written.
    """
    import numpy as np

    from tmkd_plugin.errors import InputError
    from tmkd_plugin.text_cache import StoredText, write_text_file
    from tmkd_plugin.training.files import atomic_file

    _check_output(path)
    names, views = list(text.class_names or ()), list(text.views or ())
    try:
        if path.suffix == ".safetensors":
            write_text_file(path, StoredText(text.tensor, names, views, {"source": text.source}, text.source))
            return
        with atomic_file(path) as file:
            source = np.array(text.source)
            np.savez(file, emb=text.tensor.numpy(), names=np.array(names), views=np.array(views), source=source)
    except OSError as error:
        raise InputError(f"The output {path} can't be written: {error}.") from error


def _check_output(path: Path) -> None:
    from tmkd_plugin.errors import InputError

    if path.suffix not in SUFFIXES:
        raise InputError(
            f"The output {path} must end in {' or '.join(SUFFIXES)}, by which it is known as a text source."
        )


def _read_names(path: Path) -> list[str]:
    from tmkd_plugin.errors import InputError

    try:
        return path.read_text(encoding="utf-8").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The file of class names {path} can't be read: {error}.") from error
