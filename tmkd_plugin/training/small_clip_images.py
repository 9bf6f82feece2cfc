"""The images that the small CLIP sees: of any split, at its one size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from tmkd_plugin.data.dataset import Split
from tmkd_plugin.data.file_split import FileSplit
from tmkd_plugin.errors import InputError

IMAGE_SIZE = 32
_RESIZED_TOGETHER = 256


def images_of(split: Split) -> torch.Tensor:
    """Returns the images of a split of any size, in memory or in files, as the small CLIP sees them.

    Images of 32 px are returned as they are; other sizes are resized with antialiasing. Of an image in a file it sees the
    central square, resized in one step.

    Args:
        split: The images.

    Returns:
        (N, 3, 32, 32) uint8 on the CPU, a function of the split alone.

    Raises:
        InputError: Files can't be used; the message names them and the reasons.
    """
    if isinstance(split, FileSplit):
        from tmkd_plugin.data.decode import decode_images

        return decode_images([split.file(row) for row in range(len(split))], IMAGE_SIZE, root=split.root)
    images = split.images.cpu()
    if images.shape[2:] == (IMAGE_SIZE, IMAGE_SIZE):
        return images
    return torch.cat([_resized(part) for part in torch.split(images, _RESIZED_TOGETHER)])


def check_images(
    images: torch.Tensor, labels: torch.Tensor, class_names: Sequence[str], split: str, *, every_class: bool
) -> None:
    """Refuses images and labels that the small CLIP can't be trained or measured on.

    Args:
        images: Must be (N, 3, 32, 32) uint8, N at least 1.
        labels: Must be (N,) int64 in [0, K).
        class_names: K names.
        split: What messages call the images.
        every_class: Whether every class must occur.
    """
    shape = (3, IMAGE_SIZE, IMAGE_SIZE)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != shape or len(images) == 0:
        raise InputError(
            f"The small CLIP's {split} images must be uint8 (N, 3, {IMAGE_SIZE}, {IMAGE_SIZE}), N at least 1;"
            f" given: {images.dtype} {tuple(images.shape)}."
        )
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise InputError(
            f"The small CLIP's {split} labels must be int64 ({len(images)},), one for each image;"
            f" given: {labels.dtype} {tuple(labels.shape)}."
        )
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise InputError(
            f"The small CLIP's {split} labels must lie in [0, {len(class_names) - 1}], as there are {len(class_names)} class"
            f" names; they reach from {labels.min().item()} to {labels.max().item()}."
        )
    absent = [name for index, name in enumerate(class_names) if not (labels == index).any()]
    if every_class and absent:
        raise InputError(f"The small CLIP has no training image of: {', '.join(absent)}.")


def _resized(images: torch.Tensor) -> torch.Tensor:
    """Resizes (B, 3, H, W) uint8 to (B, 3, 32, 32) uint8."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    pixels = F.interpolate(images.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
    return pixels.round().clamp(0, 255).to(torch.uint8)
