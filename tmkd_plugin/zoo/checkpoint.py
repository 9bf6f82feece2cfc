"""Weights from a file, whoever wrote it: safely read, found, renamed, compared, and only then loaded."""

from __future__ import annotations

import functools
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tmkd_plugin.errors import InputError
from tmkd_plugin.zoo.registry import NETWORKS

# Where training scripts put the weights inside a checkpoint.
CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "student")

# What wrappers put before a parameter's name: DataParallel, torch.compile, a distiller.
PREFIXES = ("module.", "_orig_mod.", "student.")

# Our names for what CRD's and mdistiller's networks call otherwise; applied in this order, to names that don't fit yet.
THEIR_NAMES = (
    (r"^(block\d)\.layer\.", r"\1."),
    (r"\.convShortcut\.", ".shortcut."),
    (r"^block(\d)\.", r"blocks.\1."),
    (r"\.shortcut\.", ".downsample."),
    (r"^(linear|classifier|classifier\.0)\.(weight|bias)$", r"fc.\2"),
)

TABLE_ROWS = 12

Shapes = dict[str, tuple[int, ...]]


def load_checkpoint(model: nn.Module, path: str | Path, *, name: str | None = None) -> None:
    """Loads a file's weights into a network; the network is unchanged if anything is wrong with them.

    The weights may lie under ``state_dict``, ``model_state_dict``, ``model``, ``net`` or ``student``; their names may
    carry ``module.``, ``_orig_mod.`` and ``student.`` in any order. Of a whole distiller's weights only the student's
    are taken. Checkpoints of CRD's and mdistiller's networks fit ours.

    Args:
        model: The network.
        path: A ``.safetensors`` file, or one of ``torch.save``, which is read with ``weights_only=True``.
        name: What to call the network in messages; by default its class.

    Raises:
        InputError: The file is missing, damaged, holds code or no weights, weights that are not finite, or weights
            that don't fit the network: then with a table of what differs.
    """
    path = Path(path)
    weights = _tensors(_read(path), path)
    own = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    fitted = _renamed(weights, own)
    given_shapes, own_shapes = _shapes(fitted), _shapes(own)
    differences = _differences(given_shapes, own_shapes)
    if differences:
        title = f"Checkpoint '{path}' does not fit the network '{name or type(model).__name__}':"
        hints = [f"Hint: {hint}" for hint in _hints(weights, given_shapes, own_shapes)]
        raise InputError("\n".join([title, *_table(differences), *hints]))
    for key, value in fitted.items():
        if not torch.isfinite(value).all():
            raise InputError(f"Checkpoint '{path}': '{key}' holds NaN or infinite values; that training had diverged.")
    model.load_state_dict(fitted, strict=False)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"There is no checkpoint file '{path}'{' (it is a folder)' if path.is_dir() else ''}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        foreign_object = re.search(r"GLOBAL (\S+)", str(error))
        if foreign_object:
            raise InputError(
                f"Checkpoint '{path}' holds a Python object ({foreign_object[1]}) besides tensors; reading it could "
                "run code, so it is refused. Where the file comes from, save the weights alone: "
                "torch.save(model.state_dict(), path)."
            ) from error
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"Checkpoint '{path}' can't be read: it is damaged, cut short, or not written by torch.save or "
            f"safetensors ({cause})."
        ) from error


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """Returns the state dict inside a checkpoint's content."""
    if not isinstance(content, Mapping):
        raise InputError(
            f"Checkpoint '{path}' holds a {type(content).__name__}, expected a state dict: names and tensors."
        )
    inner = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)
    if inner is not None:
        return _tensors(inner, path)
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(
            f"Checkpoint '{path}' holds no weights under any of {', '.join(CONTAINERS)}, nor at its top; "
            f"it has: {', '.join(map(str, content)) or 'nothing'}."
        )
    return tensors


def _renamed(weights: Mapping[str, Tensor], own: Container[str]) -> dict[str, Tensor]:
    """Returns the weights under the network's names, as far as prefixes and other spellings explain the difference."""
    names = {key: _without_prefixes(key, own) for key in weights}
    of_student = [key for key in weights if "student." in key.removesuffix(names[key])]
    return {_our_name(names[key], own): weights[key] for key in of_student or weights}


def _without_prefixes(key: str, own: Container[str]) -> str:
    while key not in own:
        prefix = next((prefix for prefix in PREFIXES if key.startswith(prefix)), None)
        if prefix is None:
            return key.replace("._orig_mod.", ".")
        key = key.removeprefix(prefix)
    return key


def _our_name(key: str, own: Container[str]) -> str:
    renamed = key
    for pattern, replacement in THEIR_NAMES:
        if renamed not in own:
            renamed = re.sub(pattern, replacement, renamed)
    return renamed if renamed in own else key


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def _differences(given: Shapes, own: Shapes) -> list[tuple[str, str, str]]:
    """Returns (name, in the file, in the network) of all that differs; wrong shapes first."""
    wrong = [(key, _spell(given[key]), _spell(own[key])) for key in own if key in given and given[key] != own[key]]
    # Files from before PyTorch 0.4.1 have no batch counters.
    missing = [key for key in own if key not in given and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in given if key not in own]
    return [
        *wrong,
        *((key, "missing", _spell(own[key])) for key in missing),
        *((key, _spell(given[key]), "unknown") for key in unexpected),
    ]


def _spell(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _table(differences: list[tuple[str, str, str]]) -> list[str]:
    rows = [("tensor", "in the file", "in the network"), *differences[:TABLE_ROWS]]
    name_width, file_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [f"  {name:<{name_width}}  {in_file:<{file_width}}  {in_network}" for name, in_file, in_network in rows]
    if len(differences) > TABLE_ROWS:
        lines.append(f"  ... and {len(differences) - TABLE_ROWS} more")
    return lines


def _hints(weights: Mapping[str, Tensor], given: Shapes, own: Shapes) -> list[str]:
    counts = _class_counts(given, own)
    if counts is not None:
        in_file, in_network = counts
        return [
            f"the file is for {in_file} classes, the network for {in_network}; build it with num_classes={in_file}."
        ]
    return [f"the file's tensors are those of '{candidate}'." for candidate in NETWORKS if _fits(weights, candidate)]


def _class_counts(given: Shapes, own: Shapes) -> tuple[int, int] | None:
    """Returns the classes of the file and of the network if nothing else differs: one weight, or one and its bias."""
    differing = [key for key, _, _ in _differences(given, own)]
    if len(differing) > 2 or not all(given.get(key) and own.get(key) for key in differing):
        return None
    counts = {(given[key][0], own[key][0]) for key in differing}
    same_inputs = all(given[key][1:] == own[key][1:] for key in differing)
    return counts.pop() if len(counts) == 1 and same_inputs else None


def _fits(weights: Mapping[str, Tensor], candidate: str) -> bool:
    """Tells whether the weights are those of one of our networks, with whatever number of classes."""
    expected = _shapes_of(candidate)
    given = _shapes(_renamed(weights, expected))
    differing = {key for key, _, _ in _differences(given, expected)}
    return differing <= {"fc.weight", "fc.bias"} <= given.keys()


@functools.cache
def _shapes_of(name: str) -> Shapes:
    # On the meta device no memory is taken and no number is drawn.
    with torch.device("meta"):
        return _shapes(NETWORKS[name](1).state_dict())
