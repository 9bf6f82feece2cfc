"""What was computed from a batch, kept until the batch is over, for those that need the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tmkd_plugin.nested import leaves

MEMORY = "_tmkd_batch_memory"
"""Instance attribute of a network under which its :class:`BatchMemory` stands, while it has one."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class _Kept:
    images: Tensor  # so that nothing else comes to lie where they lie
    value: Any
    versions: tuple[int, ...]

    @property
    def is_unchanged(self) -> bool:
        return self.versions == _versions(self.value)


class BatchMemory:
    """Keeps values that are functions of a batch of images, until :meth:`forget`.

    Images count as the same where they are the same memory in the same layout and nothing has been written to it since.
    A value that somebody has written to is made again.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, _Kept] = {}

    def find(self, key: Hashable, images: Tensor) -> Any:
        """Returns the value that is kept under a key for these images, ``None`` where there is none."""
        kept = self._kept.get((key, *_identity(images)))
        return kept.value if kept is not None and kept.is_unchanged else None

    def keep(self, key: Hashable, images: Tensor, value: Any) -> None:
        """Keeps a value, any nest of tensors."""
        self._kept[(key, *_identity(images))] = _Kept(images, value, _versions(value))

    def forget(self) -> None:
        """Lets go of everything, once the batch is over."""
        self._kept.clear()


def once(network: nn.Module, key: Hashable, images: Tensor, make: Callable[[], Value]) -> Value:
    """Returns ``make()``, or what it gave before for the same key and images where the network has a memory of the batch.

    Args:
        network: The network on whose behalf it is made.
        key: Says what is made.
        images: What it is made from.
        make: Makes it; any nest of tensors.
    """
    memory: BatchMemory | None = network.__dict__.get(MEMORY)
    if memory is None:
        return make()
    found: Value | None = memory.find(key, images)
    if found is None:
        found = make()
        memory.keep(key, images, found)
    return found


def _identity(images: Tensor) -> tuple[Hashable, ...]:
    place = (images.device, images.data_ptr(), tuple(images.shape), images.stride(), images.dtype)
    return (*place, version_of(images))


def _versions(value: Any) -> tuple[int, ...]:
    return tuple(version_of(leaf) for leaf in leaves(value))


def version_of(tensor: Tensor) -> int:
    """Returns how often a tensor was written to; -1 for tensors of inference mode, which count no writes."""
    return -1 if torch.is_inference(tensor) else tensor._version
