"""The text teacher: class names -> one embedding for each view and class, from CLIP's text encoder (TMKD, section 3.2.1).

``python -m tmkd_plugin.text_teacher --classes FILE --model MODEL/PRETRAINED --output FILE`` writes the embeddings into a file
that a machine without network takes as its text source.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from tmkd_plugin.errors import InputError, TmkdNotice, unknown_name
from tmkd_plugin.prompts import PROMPTS, check_class_names, prompts_for
from tmkd_plugin.text_cache import StoredText, default_cache_dir, read_cache, write_cache, write_text_file
from tmkd_plugin.text_encoder import (
    DEFAULT_TEXT_MODEL,
    ClipSource,
    DownloadError,
    command_for_another_machine,
    encode_prompts,
    local_checkpoint,
    parse_model_and_tag,
)
from tmkd_plugin.text_sources import check_embeddings, embeddings_from_callable, embeddings_from_file

__all__ = ["DEFAULT_TEXT_MODEL", "SharedTextWarning", "TextEmbeddings", "TextSource", "main", "text_embeddings"]

TextSource: TypeAlias = "str | Path | torch.Tensor | np.ndarray | Callable[[list[str]], torch.Tensor]"

_KINDS = (
    f"expected MODEL/PRETRAINED of open_clip such as '{DEFAULT_TEXT_MODEL}', MODEL=/path/to/weights, the path of a folder"
    " with an open_clip checkpoint or of a file of embeddings (.npz, .safetensors), a tensor, or a callable"
)
_FILE_SUFFIXES = (".npz", ".npy", ".safetensors", ".pt", ".pth", ".bin")


class SharedTextWarning(TmkdNotice):
    """The text source has one embedding for each class, which every view shares."""


@dataclass(frozen=True)
class TextEmbeddings:
    """What the text teacher says of every class.

    Attributes:
        tensor: (V, K, D) float32 on the CPU, rows of length 1, without gradient.
        text_views: ``"per view"``, or ``"shared"`` if all views have the same embeddings.
        source: The text source in words, for the results of a run.
        class_names: The K classes in their order, where they are known.
        views: The V views in their order, where they are known.
    """

    tensor: torch.Tensor
    text_views: str
    source: str
    class_names: tuple[str, ...] | None = None
    views: tuple[str, ...] | None = None

    def for_views(self, views: Sequence[str]) -> TextEmbeddings:
        """Returns the embeddings of some views, in their order; where the views are not known, as they are.

        Raises:
            InputError: A view is not among them.
        """
        if self.views is None:
            return self
        for view in views:
            if view not in self.views:
                raise unknown_name("view of the text embeddings", view, self.views)
        rows = self.tensor[[self.views.index(view) for view in views]]
        return replace(self, tensor=rows, views=tuple(views))

    @property
    def shared_views(self) -> bool:
        """Whether all views have the same embeddings, since the source had only one for each class."""
        return self.text_views == "shared"


def text_embeddings(
    class_names: Sequence[str],
    source: TextSource = DEFAULT_TEXT_MODEL,
    *,
    views: Sequence[str] = tuple(PROMPTS),
    cache_dir: str | Path | None = None,
) -> TextEmbeddings:
    """Returns the text embeddings of every class, for every view's prompt (Table 1).

    Args:
        class_names: K different names, in the order of the labels.
        source: One of

            * ``"MODEL/PRETRAINED"``: a model and a tag of open_clip, downloaded by open_clip;
            * the path of a folder with a local open_clip checkpoint (``local-dir:`` before it is allowed), or
              ``"MODEL=/path/to/weights"``;
            * the path of a file of embeddings: ``.npz`` with ``emb`` and ``names``, or a ``.safetensors`` file of ours;
            * a tensor or array, (K, D) or (V, K, D);
            * a callable ``list[str] -> Tensor``: called with the K prompts of each view, returns (K, D).

            (K, D) is repeated over the views, with a ``SharedTextWarning``.
        views: The V views, by their names in Table 1, in the order of the first dimension of the result.
        cache_dir: Where embeddings that a model computed are kept; default: ``$TMKD_CACHE``, else ``~/.cache/tmkd``.
            With a cached result open_clip is not imported.

    Raises:
        InputError: For class names, views or a source that can't be used, and for weights that can't be downloaded.
    """
    names = check_class_names(class_names)
    for view in views:
        if view not in PROMPTS:
            raise unknown_name("view", view, PROMPTS)
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
    raw, label = _read_source(source, names, views, folder)
    rows = check_embeddings(raw, names, views, label)
    shared = rows.ndim == 2 and len(views) > 1
    if shared:
        warnings.warn(
            f"The text source {label} has one embedding for each class, not one for each view: all {len(views)} views share"
            " it (text_views: shared), so the prompts tell the fusion nothing about the views.",
            SharedTextWarning,
            stacklevel=2,
        )
    tensor = rows.expand(len(views), *rows.shape[-2:]).contiguous() if rows.ndim == 2 else rows
    return TextEmbeddings(tensor, "shared" if shared else "per view", label, tuple(names), tuple(views))


def _read_source(
    source: object, class_names: list[str], views: Sequence[str], cache_dir: Path
) -> tuple[torch.Tensor, str]:
    """Returns the raw numbers of a source and its name for messages and results."""
    if isinstance(source, (str, Path)):
        resolved = _resolve(str(source))
        if isinstance(resolved, Path):
            return embeddings_from_file(resolved, class_names, views), str(source)
        return _encoded(resolved, class_names, views, cache_dir), str(source)
    if isinstance(source, np.ndarray) and source.dtype.kind in "fiu":
        source = torch.from_numpy(source)
    if isinstance(source, torch.Tensor):
        return source, f"tensor of shape {tuple(source.shape)}"
    if callable(source):
        name = getattr(source, "__qualname__", type(source).__qualname__)
        return embeddings_from_callable(source, class_names, views), f"callable {name}"
    raise InputError(f"The text source is of type {type(source).__name__}; {_KINDS}.")


def _resolve(text: str) -> Path | ClipSource:
    """Returns the file of embeddings or the CLIP model that a text source names."""
    given = text.strip().removeprefix("local-dir:")
    path = Path(given).expanduser()
    if given and path.is_dir():
        return local_checkpoint(path)
    if given and path.is_file():
        return path
    looks_like_a_path = (
        given.startswith(("/", "./", "../", "~")) or path.suffix in _FILE_SUFFIXES or given != text.strip()
    )
    if "=" in given:
        return parse_model_and_tag(given)
    if looks_like_a_path:
        raise InputError(f"The text source {given} does not exist; {_KINDS}.")
    if "/" not in given.strip("/"):
        raise InputError(f"The text source '{text}' names no pretrained weights; {_KINDS}.")
    return parse_model_and_tag(given)


def _encoded(source: ClipSource, class_names: list[str], views: Sequence[str], cache_dir: Path) -> torch.Tensor:
    """Returns (V, K, D): from the cache, else computed and kept there."""
    prompts = [prompts_for(class_names, view) for view in views]
    key = source.key() | {"prompts": prompts, "class_names": class_names, "views": list(views)}
    if (stored := read_cache(cache_dir, key)) is not None:
        return stored.embeddings
    try:
        flat = encode_prompts(source, [prompt for of_view in prompts for prompt in of_view])
    except DownloadError as error:
        advice = command_for_another_machine(source.label, class_names)
        raise DownloadError(
            f"{error} No embeddings of these class names in the cache {cache_dir} either.\n{advice}"
        ) from error
    embeddings = check_embeddings(flat.view(len(views), len(class_names), -1), class_names, views, source.label)
    try:
        write_cache(cache_dir, StoredText(embeddings, class_names, list(views), key, source.label))
    except OSError as error:
        warnings.warn(f"The text embeddings could not be cached in {cache_dir}: {error}", TmkdNotice, stacklevel=4)
    return embeddings


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the text embeddings of a list of class names into a file; returns the exit code, 2 for unusable input."""
    parser = argparse.ArgumentParser(
        prog="python -m tmkd_plugin.text_teacher", description="Write the text embeddings of class names into a file."
    )
    parser.add_argument("--classes", type=Path, required=True, help="text file, one class name a line, in order")
    parser.add_argument("--model", default=DEFAULT_TEXT_MODEL, help="text source (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="file to write, .safetensors")
    parser.add_argument("--cache-dir", type=Path, help="default: $TMKD_CACHE, else ~/.cache/tmkd")
    options = parser.parse_args(arguments)
    try:
        text = _write_file(options.classes, options.model, options.output, options.cache_dir)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    views, classes, width = text.tensor.shape
    print(f"{options.output}: {views} views x {classes} classes x {width} numbers from {text.source}")
    return 0


def _write_file(classes: Path, source: str, output: Path, cache_dir: Path | None) -> TextEmbeddings:
    if output.suffix != ".safetensors":
        raise InputError(f"The output {output} must end in .safetensors, by which it is known as a text source.")
    try:
        names = classes.read_text(encoding="utf-8").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The file of class names {classes} can't be read: {error}.") from error
    text = text_embeddings(names, source, cache_dir=cache_dir)
    stored = StoredText(text.tensor, check_class_names(names), list(PROMPTS), {"source": source}, source)
    try:
        write_text_file(output, stored)
    except OSError as error:
        raise InputError(f"The output {output} can't be written: {error}.") from error
    return text


if __name__ == "__main__":
    raise SystemExit(main())
