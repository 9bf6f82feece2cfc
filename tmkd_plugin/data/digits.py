"""The 1,797 handwritten digits that ship inside scikit-learn, as 3-channel images.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from tmkd_plugin.data.dataset import (
    DEFAULT_MAX_GIGABYTES,
    Augmentation,
    ImageDataset,
    ImageSplit,
    Limits,
    check_fraction,
    check_image_size,
    check_memory,
    make_dataset,
)
from tmkd_plugin.data.splitting import hash_order, keep_per_class

if TYPE_CHECKING:
    from torch import Tensor

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
IMAGE_SIZE = 32
TEST_IMAGES_PER_CLASS = 80
VALIDATION_FRACTION = 0.3
# Two pixels are half a cell of the original raster; a mirrored digit is not a digit.
AUGMENTATION = Augmentation(crop_padding=2, flip=False)


def load_digits_dataset(
    *,
    image_size: int | None = None,
    limits: Limits | None = None,
    validation_fraction: float | None = None,
    max_gigabytes: float = DEFAULT_MAX_GIGABYTES,
) -> ImageDataset:
    """Loads the digits with a fixed split: 80 test images of each class, 30 % of the others for validation.

    Args:
        image_size: Height and width in pixels, 32 if None.
        limits: The most images of each split.
        validation_fraction: Share of the images outside the test split that validation takes, 0.3 if None.
        max_gigabytes: Bound on the memory for pixels, in 1e9 bytes.
    """
    image_size = IMAGE_SIZE if image_size is None else image_size
    validation_fraction = VALIDATION_FRACTION if validation_fraction is None else validation_fraction
    check_image_size(image_size)
    check_fraction(validation_fraction)
    raster, labels = _read()
    check_memory("digits", len(labels), image_size, max_gigabytes)
    images = _enlarge(raster, image_size)
    parts = _split(labels.tolist(), validation_fraction)
    limits = limits or Limits()

    def limited(part: str) -> ImageSplit:
        ids = _limit(parts[part], labels, getattr(limits, part), f"{part}_limit")
        return ImageSplit(images[ids], labels[ids], ids)

    return make_dataset(
        "digits",
        CLASS_NAMES,
        train=limited("train"),
        validation=limited("validation"),
        test=limited("test"),
        augmentation=AUGMENTATION,
    )


def _read() -> tuple[Tensor, Tensor]:
    """Returns the rasters, float32 (1797,1,8,8) with whole numbers in 0..16, and the labels, int64 (1797,)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return torch.from_numpy(digits.images).float().unsqueeze(1), torch.from_numpy(digits.target).long()


def _enlarge(raster: Tensor, image_size: int) -> Tensor:
    """Interpolates rasters (N,1,8,8) in 0..16 bilinearly to pixels, uint8 (N,3,H,W) in 0..255.

    To 32 px every intermediate value is a multiple of 1/64, exact in float32: the pixels are the same on every machine.
    """
    pixels = F.interpolate(raster, size=(image_size, image_size), mode="bilinear", align_corners=False)
    return (pixels * (255 / 16)).round().to(torch.uint8).expand(-1, 3, -1, -1)


def _split(labels: list[int], validation_fraction: float) -> dict[str, list[int]]:
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for label in range(len(CLASS_NAMES)):
        ids = [index for index, other in enumerate(labels) if other == label]
        shuffled = [ids[position] for position in hash_order([str(index) for index in ids], "digits split")]
        rest = shuffled[TEST_IMAGES_PER_CLASS:]
        validation = min(max(round(validation_fraction * len(rest)), 1), len(rest) - 1)
        parts["test"] += shuffled[:TEST_IMAGES_PER_CLASS]
        parts["validation"] += rest[:validation]
        parts["train"] += rest[validation:]
    return {part: sorted(ids) for part, ids in parts.items()}


def _limit(ids: list[int], labels: Tensor, limit: int | None, argument: str) -> Tensor:
    chosen = torch.tensor(ids)
    kept = keep_per_class([str(index) for index in ids], labels[chosen].tolist(), len(CLASS_NAMES), limit, argument)
    return chosen[kept]
