"""Batches from a split in memory or in files: order, random crop and flip, normalisation.

Every draw is a function of (seed, purpose, epoch) and of the place of the image in its split: an epoch can be repeated
without those before it, and neither the batch size nor the number of workers changes a crop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tmkd_plugin.data.crop_flip import augment, draw_augmentation
from tmkd_plugin.data.dataset import Augmentation, Split
from tmkd_plugin.data.file_split import FileSplit
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

    def clone(self) -> Batch:
        """Returns a batch of its own tensors, which can be written to."""
        return Batch(self.images.clone(), self.labels.clone(), self.ids.clone())


def training_batches(
    split: Split,
    augmentation: Augmentation,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    drop_last: bool = False,
    variants: int | None = None,
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
        variants: How many augmentations there are of each image; see :func:`augmentation_epoch`. None for one an epoch.

    Returns:
        An iterator over batches on the device of the split. A file that can't be used ends it with an ``InputError`` that
        names the file.
    """
    bounds = batch_bounds(len(split), batch_size, drop_last)
    order = torch.randperm(len(split), generator=generator_for(seed, "order", epoch))
    parts = [order[start:end] for start, end in bounds]
    drawn = augmentation_epoch(epoch, variants)
    return augmented_batches(split, parts, augmentation, mean, std, seed=seed, epoch=drawn)


def augmentation_epoch(epoch: int, variants: int | None) -> int:
    """Returns the epoch whose augmentation the images of an epoch have.

    Args:
        epoch: From 1.
        variants: K: epoch e replays that of epoch ``(e-1) % K + 1``. None replays nothing.

    Raises:
        InputError: K is not a whole number of at least 1.
    """
    if variants is None:
        return epoch
    if isinstance(variants, bool) or not isinstance(variants, int) or variants < 1:
        raise InputError(f"augmentation_variants={variants!r}: expected a whole number, 1 or more, or nothing.")
    return (epoch - 1) % variants + 1


def augmented_batches(
    split: Split,
    parts: Sequence[Tensor],
    augmentation: Augmentation,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    seed: int,
    epoch: int,
) -> Iterator[Batch]:
    """Yields given images of a split as they are in one epoch.

    Args:
        split: The images.
        parts: The places in the split that each batch has, int64 (B,) each, on the CPU.
        augmentation: What happens to them.
        mean: By channel, on the scale 0..1.
        std: By channel, on the scale 0..1.
        seed: Of the augmentation.
        epoch: Likewise.
    """
    _check_statistics(mean, std)
    if isinstance(split, FileSplit):
        from tmkd_plugin.data.file_pixels import training_pixels

        return _file_batches(split, parts, training_pixels(split, parts, augmentation, seed, epoch), mean, std)
    if augmentation.resized_crop is not None:
        raise InputError(
            "resized_crop needs the images in full, but those of this split are in memory at their final size. "
            "Use crop_padding, or a split in files."
        )
    device = split.images.device
    draws = draw_augmentation(len(split), augmentation, seed, epoch).to(device)

    places = torch.split(torch.cat(list(parts)).to(device), [len(part) for part in parts])

    def batches() -> Iterator[Batch]:
        for rows in places:
            images = augment(split.images[rows], draws[rows], augmentation.crop_padding)
            yield Batch(normalize(images, mean, std), split.labels[rows], split.ids[rows])

    return batches()


def evaluation_batches(
    split: Split, mean: Sequence[float], std: Sequence[float], *, batch_size: int
) -> Iterator[Batch]:
    """Yields the images in the order of the split; the last batch may be smaller.

    Images in memory are yielded as they are; those in files are resized so that the short side has 256/224 of the image size,
    and their centre is cropped, as the field does it.

    Args:
        split: The images.
        mean: By channel, on the scale 0..1.
        std: By channel, on the scale 0..1.
        batch_size: Images in a batch.
    """
    _check_batch_size(batch_size)
    _check_statistics(mean, std)
    if isinstance(split, FileSplit):
        from tmkd_plugin.data.file_pixels import evaluation_pixels

        parts = [torch.arange(len(split))[start : start + batch_size] for start in range(0, len(split), batch_size)]
        return _file_batches(split, parts, evaluation_pixels(split, parts), mean, std)
    slices = [slice(start, start + batch_size) for start in range(0, len(split), batch_size)]
    return (Batch(normalize(split.images[part], mean, std), split.labels[part], split.ids[part]) for part in slices)


def _file_batches(
    split: FileSplit, parts: Sequence[Tensor], pixels: Iterator[Tensor], mean: Sequence[float], std: Sequence[float]
) -> Iterator[Batch]:
    device = split.labels.device
    for part, images in zip(parts, pixels, strict=True):
        rows = part.to(device)
        yield Batch(normalize(images.to(device), mean, std), split.labels[rows], split.ids[rows])


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
