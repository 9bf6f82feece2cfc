"""Tensors in any nest of tuples, lists, mappings and dataclasses, as networks return them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from torch import Tensor


def leaves(nest: Any) -> list[Tensor]:
    """Returns the tensors of a nest, in the order in which they stand there."""
    if isinstance(nest, Tensor):
        return [nest]
    return [leaf for part in _parts(nest) for leaf in leaves(part)]


def is_nest(value: Any) -> bool:
    """Says whether a value is tensors, numbers, words and ``None`` all through, in containers of which a nest is built."""
    if value is None or isinstance(value, (Tensor, bool, int, float, str)):
        return True
    holds = dataclasses.is_dataclass(value) or isinstance(value, (Mapping, tuple, list))
    return holds and not isinstance(value, type) and all(map(is_nest, _parts(value)))


def map_leaves(function: Callable[..., Any], *nests: Any) -> Any:
    """Builds a nest like the first one from ``function(*tensors)`` of the tensors that stand at the same place.

    Args:
        function: Called once for each place with as many tensors as there are nests.
        *nests: Nests of one structure; whatever is not a tensor is taken from the first.

    Returns:
        A new nest of the first one's types.
    """
    first = nests[0]
    if isinstance(first, Tensor):
        return function(*nests)
    # Some libraries' outputs are mappings and dataclasses at once: the fields are the truth then.
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        fields = [field.name for field in dataclasses.fields(first) if field.init]
        changes = {name: map_leaves(function, *(getattr(nest, name) for nest in nests)) for name in fields}
        return dataclasses.replace(first, **changes)
    if isinstance(first, Mapping):
        items = {key: map_leaves(function, *(nest[key] for nest in nests)) for key in first}
        if type(first) is dict or not isinstance(first, MutableMapping):
            return items
        # A copy keeps what a constructor could not be given, such as a defaultdict's factory.
        filled = copy.copy(first)
        filled.update(items)
        return filled
    if isinstance(first, (tuple, list)):
        values = [map_leaves(function, *parts) for parts in zip(*nests, strict=True)]
        if hasattr(first, "_fields"):
            return type(first)(*values)
        return type(first)(values)
    return first


def _parts(nest: Any) -> list[Any]:
    if dataclasses.is_dataclass(nest) and not isinstance(nest, type):
        return [getattr(nest, field.name) for field in dataclasses.fields(nest) if field.init]
    if isinstance(nest, Mapping):
        return list(nest.values())
    if isinstance(nest, (tuple, list)):
        return list(nest)
    return []
