"""Images of the test split, by their place in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tmkd_plugin.data.file_split import FileSplit

if TYPE_CHECKING:
    from tmkd_plugin.data.dataset import Split


BATCH = 64


def pixels_of(split: Split, rows: Sequence[int]) -> Tensor:
    """Returns images as the student is tested on them.

    Args:
        split: In memory or in files.
        rows: N places in the split.

    Returns:
        uint8 (N,3,S,S) on the CPU.
    """
    index = torch.as_tensor(list(rows), dtype=torch.int64)
    if not isinstance(split, FileSplit):
        return split.images.cpu()[index]
    from tmkd_plugin.data.file_pixels import evaluation_pixels

    chosen = dataclasses.replace(
        split,
        paths=tuple(split.paths[row] for row in index.tolist()),
        labels=split.labels.cpu()[index],
        ids=split.ids.cpu()[index],
    )
    parts = [torch.arange(start, min(start + BATCH, len(chosen))) for start in range(0, len(chosen), BATCH)]
    return torch.cat(list(evaluation_pixels(chosen, parts)))


def spread_over_classes(labels: Tensor, count: int) -> list[int]:
    """Returns the first image of each of ``count`` classes that are evenly spaced, or of the second ones and so on.

    The choice knows nothing of any result.

    Args:
        labels: int64 (N,).
        count: How many images; fewer where there are not as many.
    """
    present = sorted(set(labels.tolist()))
    few = [present[position * len(present) // count] for position in range(count)]
    chosen = present if count >= len(present) else few
    places = {label: (labels == label).nonzero().flatten().tolist() for label in chosen}
    rows: list[int] = []
    for turn in range(max(map(len, places.values()), default=0)):
        rows += [places[label][turn] for label in chosen if turn < len(places[label])]
    return rows[:count]


def evenly_spaced(labels: Tensor, most: int, most_classes: int) -> tuple[list[int], bool]:
    """Returns at most ``most`` places of images of at most ``most_classes`` classes, and whether that left any out.

    Args:
        labels: int64 (N,).
        most: The most images, as many of each class as there can be.
        most_classes: The most classes; evenly spaced ones are kept.
    """
    present = sorted(set(labels.tolist()))
    step = max(1, -(-len(present) // most_classes))
    kept = present[::step]
    each = max(1, most // max(1, len(kept)))
    rows = sorted(row for label in kept for row in (labels == label).nonzero().flatten().tolist()[:each])
    return rows, len(rows) < len(labels)
