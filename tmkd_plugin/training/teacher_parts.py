"""A teacher's forward pass in parts of a few images, which caps the memory that its activations take.

The parts stand in the network itself, as its ``forward`` and ``forward_features``, so whoever calls it, a distiller of a
user's too, hands in the whole batch and gets the answers for the whole batch. Parts of a batch need not give the bits that the
batch gives. An answer may hold tensors with a row for each image, and others that are the same for any images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tmkd_plugin.errors import InputError
from tmkd_plugin.model_output import LISTENERS, Recorder
from tmkd_plugin.nested import leaves, map_leaves
from tmkd_plugin.randomness import forked_random_state
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
    for method in ("forward", "forward_features"):
        if isinstance(attributes.get(method), InParts):
            del attributes[method]
        if callable(getattr(network, method, None)):
            attributes[method] = InParts(network, getattr(network, method), images_at_once)


class InParts:
    """Stands in for a method of a network that takes images.

    Args:
        network: The network.
        run: The method.
        images_at_once: At least 1.
    """

    def __init__(self, network: nn.Module, run: Callable[..., Any], images_at_once: int) -> None:
        self.network = network
        self.images_at_once = images_at_once
        self._run = run
        self._is_checked = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the method on each part of the images, and puts together what it returns and what is heard meanwhile.

        Raises:
            InputError: That can't be put together to what the whole batch would give.
        """
        images = next((leaf for leaf in leaves([args, kwargs]) if leaf.dim()), None)
        if images is None or self.network.training or len(images) <= self.images_at_once:
            return self._run(*args, **kwargs)
        total, at_once = len(images), self.images_at_once

        def answer(start: int, stop: int) -> tuple[Any, list[dict[str, Any]]]:
            part = _Part(total, slice(start, stop))
            returned = self._run(*map_leaves(part, args), **map_leaves(part, kwargs))
            heard = [listener.heard() for listener in listening]
            for listener in listening:
                listener.clear()
            return returned, heard

        listening: list[Recorder] = [each for each in self.network.__dict__.get(LISTENERS, ()) if not each.complete]
        sizes = [min(at_once, total - start) for start in range(0, total, at_once)]
        answers = [answer(start, min(start + at_once, total)) for start in range(0, total, at_once)]
        if not self._is_checked and len(set(sizes)) == 1:
            # Parts of two sizes, once, tell a row for each image from what only happens to have as many.
            other = 1 if at_once > 1 else 2
            with torch.no_grad(), forked_random_state(0, "part of another size"):
                map_leaves(_Join([*sizes, other]), *answers, answer(0, other))
        self._is_checked = True
        joined, heard = map_leaves(_Join(sizes), *answers)
        for listener, of_all in zip(listening, heard, strict=True):
            listener.hear(of_all)
        return joined


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
        first = parts[0]
        if all(part is first for part in parts):
            return first
        key = tuple(map(id, parts))
        if key in self._known:
            return self._known[key][1]
        if self._are_rows(parts):
            self._known[key] = parts, torch.cat(parts)  # the parts too, so that their ids stay their own
            return self._known[key][1]
        # What has as many rows as the first part would be taken for rows of images when all parts are of that size.
        if first.shape[:1] != (self._sizes[0],) and all(torch.equal(part, first) for part in parts):
            return first
        sizes, shapes = (", ".join(map(str, values)) for values in (self._sizes, [tuple(part.shape) for part in parts]))
        raise InputError(
            f"The teacher can't see its images in parts (--teacher-batch): for {sizes} images it gave tensors of shape "
            f"{shapes}, which don't add up to what the whole batch would give. Leave --teacher-batch out; if the tensor does "
            "not depend on the images, another number of images will do as well."
        )

    def _are_rows(self, parts: Sequence[Tensor]) -> bool:
        """Says whether every part has a row for each image, all of one shape."""
        return all(
            part.dim() and len(part) == size and part.shape[1:] == parts[0].shape[1:]
            for part, size in zip(parts, self._sizes, strict=True)
        )
