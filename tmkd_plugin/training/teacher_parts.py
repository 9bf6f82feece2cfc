"""A teacher's forward pass in parts of a few images, which caps the memory that its activations take.

The parts stand in the network itself, as its ``forward``, so whoever calls it, a distiller of a user's too, hands in the whole
batch and gets the answers for the whole batch. Parts of a batch need not give the bits that the batch gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tmkd_plugin.model_output import LISTENERS, Recorder
from tmkd_plugin.nested import leaves, map_leaves
from tmkd_plugin.settings import check_number


def run_in_parts(network: nn.Module, images_at_once: int) -> None:
    """Lets a network that is not trained see at most so many images at once from now on.

    Call it when the distillers around the network have been built: they look into it with a probe of two images.

    Args:
        network: The teacher. In training mode it goes on seeing whole batches, of which batch norm takes the statistics.
        images_at_once: At least 1. A second call for the same network replaces the first.

    Raises:
        InputError: The number is no whole number of at least 1.
    """
    check_number("images_at_once", images_at_once, at_least=1, whole=True)
    attributes = network.__dict__
    if isinstance(attributes.get("forward"), _ForwardInParts):
        del attributes["forward"]
    attributes["forward"] = _ForwardInParts(network, images_at_once)


class _ForwardInParts:
    def __init__(self, network: nn.Module, images_at_once: int) -> None:
        self.network = network
        self.images_at_once = images_at_once
        self._run: Callable[..., Any] = network.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        images = next((leaf for leaf in leaves([args, kwargs]) if leaf.dim()), None)
        if images is None or self.network.training or len(images) <= self.images_at_once:
            return self._run(*args, **kwargs)
        listening: list[Recorder] = [each for each in self.network.__dict__.get(LISTENERS, ()) if not each.complete]
        returned, heard, sizes = [], [], []
        for start in range(0, len(images), self.images_at_once):
            sizes.append(min(self.images_at_once, len(images) - start))
            part = _Part(len(images), slice(start, start + sizes[-1]))
            returned.append(self._run(*map_leaves(part, args), **map_leaves(part, kwargs)))
            heard.append([listener.heard() for listener in listening])
            for listener in listening:
                listener.clear()
        join = _Join(sizes)
        for listener, of_parts in zip(listening, zip(*heard, strict=True), strict=True):
            listener.hear(map_leaves(join, *of_parts))
        return map_leaves(join, *returned)


class _Part:
    """Cuts the rows of a part out of every tensor with a row for each image."""

    def __init__(self, total: int, rows: slice) -> None:
        self._total, self._rows = total, rows

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor[self._rows] if tensor.dim() and len(tensor) == self._total else tensor


class _Join:
    """Puts the tensors of all parts together, each group once: who compares what is returned with what was heard finds it."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._known: dict[tuple[int, ...], tuple[tuple[Tensor, ...], Tensor]] = {}

    def __call__(self, *parts: Tensor) -> Tensor:
        if not all(part.dim() and len(part) == size for part, size in zip(parts, self._sizes, strict=True)):
            return parts[0]
        key = tuple(map(id, parts))
        if key not in self._known:
            self._known[key] = parts, torch.cat(parts)  # the parts too, so that their ids stay their own
        return self._known[key][1]
