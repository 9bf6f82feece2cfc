"""Batches from a split: order, random crop and flip, normalisation.

Every draw is a function of (seed, purpose, epoch) and of the place of the image in its split: an epoch can be repeated
without those before it, and the batch size changes no crop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tmkd_plugin.data.dataset import Augmentation, ImageSplit
from tmkd_plugin.errors import InputError
from tmkd_plugin.randomness import generator_for


@dataclass(frozen=True, eq=False)
class Batch:
    """Images with their labels.

    Attributes:
        images: float32 (B,3,H,W), normalised, contiguous.
        labels: int64 (B,).
        ids: int64 (B,), the place of each image in the data set's own order.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return self.images.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        """Returns the batch on another device."""
        return Batch(
            self.images.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.ids.to(device, non_blocking=True),
        )


def training_batches(
    split: ImageSplit,
    augmentation: Augmentation,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    drop_last: bool = False,
) -> Iterator[Batch]:
    """Yields one epoch of augmented batches in random order.

    Args:
        split: The images.
        augmentation: What happens to them.
        mean: By channel, on the scale 0..1.
        std: By channel, on the scale 0..1.
        batch_size: Images in a batch. A last batch of a single image would break batch normalisation: that image joins
            the batch before it instead.
        seed: Of order and augmentation.
        epoch: Another epoch gives another order and other crops.
        drop_last: Leaves out the images of the last, smaller batch.

    Returns:
        An iterator over batches on the device of the split.
    """
    bounds = batch_bounds(len(split), batch_size, drop_last)
    _check_statistics(mean, std)
    device = split.images.device
    order = torch.randperm(len(split), generator=generator_for(seed, "order", epoch)).to(device)
    draws = draw_augmentation(len(split), augmentation, seed, epoch).to(device)

    def batches() -> Iterator[Batch]:
        for start, end in bounds:
            rows = order[start:end]
            images = augment(split.images[rows], draws[rows], augmentation.crop_padding)
            yield Batch(normalize(images, mean, std), split.labels[rows], split.ids[rows])

    return batches()


def evaluation_batches(
    split: ImageSplit, mean: Sequence[float], std: Sequence[float], *, batch_size: int
) -> Iterator[Batch]:
    """Yields the images as they are, in the order of the split; the last batch may be smaller.

    Args:
        split: The images.
        mean: By channel, on the scale 0..1.
        std: By channel, on the scale 0..1.
        batch_size: Images in a batch.
    """
    _check_batch_size(batch_size)
    _check_statistics(mean, std)
    slices = [slice(start, start + batch_size) for start in range(0, len(split), batch_size)]
    return (Batch(normalize(split.images[part], mean, std), split.labels[part], split.ids[part]) for part in slices)


def batch_bounds(count: int, batch_size: int, drop_last: bool = False) -> list[tuple[int, int]]:
    """The (start, end) of every training batch of an epoch; its length is the number of steps.

    Args:
        count: Images in the split.
        batch_size: Images in a batch; see ``training_batches`` for the last one.
        drop_last: Leaves out a last batch that is not full.
    """
    _check_batch_size(batch_size)
    starts = list(range(0, count, batch_size))
    leftover = count % batch_size
    if leftover and drop_last:
        count -= leftover
        starts.pop()
    elif leftover == 1 and len(starts) > 1:
        starts.pop()
    if not starts:
        raise InputError(
            f"No training batch: {count + leftover} images, batch_size={batch_size}, drop_last={drop_last}. "
            "Lower batch_size or use more images."
        )
    return list(zip(starts, [*starts[1:], count], strict=True))


def draw_augmentation(count: int, augmentation: Augmentation, seed: int, epoch: int) -> Tensor:
    """Draws the augmentation of every image of a split.

    Returns:
        int64 (count,3): top and left of the crop in the padded image, both in 0..2 * crop_padding, and 1 to flip.
    """
    padding = augmentation.crop_padding
    if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
        raise InputError(f"crop_padding={padding!r}: expected a whole number of pixels, 0 or more.")
    generator = generator_for(seed, "augmentation", epoch)
    # Flips are drawn first, and always, so that turning crops on or off does not change them.
    flips = torch.randint(2, (count, 1), generator=generator) * int(augmentation.flip)
    corners = torch.randint(2 * padding + 1, (count, 2), generator=generator)
    return torch.cat([corners, flips], dim=1)


def augment(images: Tensor, draws: Tensor, crop_padding: int) -> Tensor:
    """Crops and flips each image as drawn; what lies outside of the image is 0, black.

    Args:
        images: uint8 (B,3,H,W).
        draws: int64 (B,3): top and left of the crop in the padded image, and 1 to flip.
        crop_padding: Pixels of padding on each side.

    Returns:
        uint8 (B,3,H,W).
    """
    count, channels, height, width = images.shape
    top, left, flip = draws.unbind(dim=1)
    rows = torch.arange(height, device=images.device) + top[:, None]
    columns = torch.arange(width, device=images.device).expand(count, -1)
    columns = torch.where(flip[:, None] == 1, width - 1 - columns, columns) + left[:, None]
    if crop_padding:
        images = F.pad(images, [crop_padding] * 4)
    places = (rows[:, :, None] * images.shape[-1] + columns[:, None, :]).view(count, 1, height * width)
    return images.flatten(2).gather(2, places.expand(-1, channels, -1)).view(count, channels, height, width)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turns pixels, uint8 (B,3,H,W), into ``(pixels / 255 - mean) / std``, float32 and contiguous."""
    shift = torch.tensor(mean, dtype=torch.float32, device=images.device).view(3, 1, 1)
    scale = torch.tensor(std, dtype=torch.float32, device=images.device).view(3, 1, 1)
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
    return pixels.div_(255).sub_(shift).div_(scale)


def _check_batch_size(batch_size: int) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size={batch_size!r}: expected a whole number, 1 or more.")


def _check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
        raise InputError(f"mean={tuple(mean)}, std={tuple(std)}: expected 3 numbers each, one a channel, std above 0.")
