"""Text embeddings that somebody computed already: a .npz or .safetensors file, a tensor, a callable.

Each function returns the raw numbers, (K, D) for one prompt a class or (V, K, D) for one prompt a class and view;
``check_embeddings`` then says what is wrong with them.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from tmkd_plugin.errors import InputError
from tmkd_plugin.prompts import folded, prompts_for, shortened
from tmkd_plugin.text_cache import read_text_file

_NPZ_EXPECTED = (
    "expected `emb`, (K, D) or (V, K, D) floating, and `names`, K strings: numpy.savez(path, emb=..., names=...)"
)


def embeddings_from_file(path: Path, class_names: Sequence[str], views: Sequence[str]) -> torch.Tensor:
    """Reads a file of precomputed embeddings.

    Args:
        path: A ``.npz`` file with ``emb``, ``names`` and, if its first dimension is views, optionally ``views``; or a
            ``.safetensors`` file that ``python -m tmkd_plugin.text_teacher`` or the cache wrote.
        class_names: What the names in the file must be, in this order.
        views: Which views to return, where the file names its views.

    Raises:
        InputError: If it can't be read, or holds other names, other views, or none.
    """
    if path.suffix == ".npz":
        embeddings, names, stored_views = _read_npz(path)
    elif path.suffix == ".safetensors":
        advice = "`python -m tmkd_plugin.text_teacher` writes such files; a model's weights are given as MODEL=/path/weights."
        stored = read_text_file(path, advice)
        embeddings, names, stored_views = stored.embeddings, stored.class_names, stored.views
    else:
        raise InputError(
            f"The text source {path} is of no known kind: expected .npz or .safetensors with text embeddings, a folder with"
            " an open_clip checkpoint, or MODEL=/path/to/weights for weights."
        )
    match_names(names, class_names, str(path))
    return embeddings if stored_views is None else _select_views(embeddings, stored_views, views, path)


def embeddings_from_callable(
    function: Callable[[list[str]], torch.Tensor], class_names: Sequence[str], views: Sequence[str]
) -> torch.Tensor:
    """Calls the function once for each view, with that view's K prompts.

    Raises:
        InputError: If it does not return a (K, D) tensor, with the same D for every view.
    """
    answers: list[torch.Tensor] = []
    for view in views:
        with torch.no_grad():
            answer = function(prompts_for(class_names, view))
        expected = (len(class_names), answers[0].shape[1] if answers else "D")
        if not isinstance(answer, torch.Tensor):
            raise InputError(
                f"The text source {function!r} must return a tensor of shape {_shape(expected)} for {len(class_names)}"
                f" prompts; it returned {type(answer).__name__} for view '{view}'."
            )
        if answer.ndim != 2 or answer.shape[0] != expected[0] or (answers and answer.shape[1] != expected[1]):
            raise InputError(
                f"The text source {function!r} must return a tensor of shape {_shape(expected)} for {len(class_names)}"
                f" prompts; it returned {tuple(answer.shape)} for view '{view}'."
            )
        answers.append(answer.detach().cpu())
    return torch.stack(answers)


def check_embeddings(
    embeddings: torch.Tensor, class_names: Sequence[str], views: Sequence[str], source: str
) -> torch.Tensor:
    """Checks shape and numbers and returns (K, D) or (V, K, D) float32 on the CPU, rows of length 1, detached.

    Raises:
        InputError: For another rank, count of classes or views, no width, integers, NaN or infinite entries, zero rows.
    """
    num_views, num_classes = len(views), len(class_names)
    expected = f"expected (K, D) = ({num_classes}, D) or (V, K, D) = ({num_views}, {num_classes}, D)"
    if embeddings.ndim not in (2, 3) or embeddings.shape[-2] != num_classes or embeddings.shape[-1] == 0:
        raise InputError(
            f"The embeddings of the text source {source} have shape {tuple(embeddings.shape)}; {expected}."
        )
    if embeddings.ndim == 3 and embeddings.shape[0] != num_views:
        raise InputError(
            f"The text source {source} has embeddings for {embeddings.shape[0]} views, but {num_views} are used"
            f" ({', '.join(views)}); {expected}."
        )
    if not embeddings.is_floating_point():
        raise InputError(
            f"The embeddings of the text source {source} are {embeddings.dtype}; expected floating numbers."
        )
    rows = embeddings.detach().to(device="cpu", dtype=torch.float32)
    lengths = rows.norm(dim=-1)
    _refuse_rows(~rows.isfinite().all(dim=-1), "NaN or infinite numbers", class_names, views, source)
    _refuse_rows(lengths == 0, "nothing but zeros, which has no direction", class_names, views, source)
    return F.normalize(rows.double(), dim=-1).float()


def match_names(names: Sequence[str], class_names: Sequence[str], source: str) -> None:
    """Checks that the names which came with embeddings are the class names, in order.

    Case, ``_`` and spaces may differ as long as that leaves all names different.

    Raises:
        InputError: With the first pair that differs, or the two counts.
    """
    if list(names) == list(class_names):
        return
    if len(names) != len(class_names):
        raise InputError(
            f"{source} has embeddings of {len(names)} names, but there are {len(class_names)} classes."
            f" In the file: {shortened(names, 5)}; classes: {shortened(class_names, 5)}."
        )
    unambiguous = len({folded(name) for name in names}) == len(names)
    for index, (name, class_name) in enumerate(zip(names, class_names, strict=True)):
        if name != class_name and not (unambiguous and folded(name) == folded(class_name)):
            other_order = " They are the same names in another order." if sorted(names) == sorted(class_names) else ""
            raise InputError(
                f"The names in {source} are not the class names in order: row {index} is {name!r} in the file, but class"
                f" {index} is {class_name!r}.{other_order} Order the file's rows like the classes."
            )


def _read_npz(path: Path) -> tuple[torch.Tensor, list[str], list[str] | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in ("emb", "names") if name not in file]
            if missing:
                raise InputError(f"{path} lacks {' and '.join(missing)} (there: {', '.join(file)}); {_NPZ_EXPECTED}.")
            embeddings, names, views = file["emb"], file["names"], file.get("views")
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} can't be read: {error}; {_NPZ_EXPECTED}. Arrays of Python objects are refused."
        ) from error
    for name, array in (("names", names), ("views", views)):
        if array is not None and (array.ndim != 1 or array.dtype.kind != "U"):
            raise InputError(f"`{name}` in {path} has shape {array.shape} and dtype {array.dtype}; {_NPZ_EXPECTED}.")
    if embeddings.dtype.kind != "f":
        raise InputError(f"`emb` in {path} has dtype {embeddings.dtype}; {_NPZ_EXPECTED}.")
    listed_views = None if views is None else [str(view) for view in views]
    return torch.from_numpy(embeddings.astype(np.float32)), [str(name) for name in names], listed_views


def _select_views(
    embeddings: torch.Tensor, stored_views: Sequence[str], views: Sequence[str], path: Path
) -> torch.Tensor:
    if embeddings.ndim != 3 or len(stored_views) != embeddings.shape[0]:
        raise InputError(f"{path} names {len(stored_views)} views for embeddings of shape {tuple(embeddings.shape)}.")
    missing = [view for view in views if view not in stored_views]
    if missing:
        raise InputError(
            f"{path} has no embeddings of the view {', '.join(missing)}; it has {', '.join(stored_views)}."
        )
    return embeddings[[stored_views.index(view) for view in views]]


def _refuse_rows(bad: torch.Tensor, what: str, class_names: Sequence[str], views: Sequence[str], source: str) -> None:
    if not bad.any():
        return
    *view, row = bad.nonzero()[0].tolist()
    where = f"class {row} ({class_names[row]!r})" + (f", view '{views[view[0]]}'" if view else "")
    raise InputError(
        f"The embeddings of the text source {source} can't be used: {int(bad.sum())} of {bad.numel()} rows hold {what};"
        f" the first is {where}."
    )


def _shape(expected: Sequence[object]) -> str:
    return f"({', '.join(map(str, expected))})"
