"""What a data set is: three splits, in memory or in files, class names, and the figures that describe them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from tmkd_plugin.data.file_split import FileSplit, file_fingerprint
from tmkd_plugin.errors import InputError

DEFAULT_MAX_GIGABYTES = 8.0
# Of the images of ImageNet: the field's convention for photographs, also where a network starts without its weights.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_SMALLEST_IMAGE = 8
_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """The images of one split, in memory.

    Attributes:
        images: uint8 (N,3,H,W), RGB.
        labels: int64 (N,), the class of each image.
        ids: int64 (N,), the place of each image in the data set's own order, over all splits.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] != 3:
            raise InputError(
                f"Images of shape {tuple(self.images.shape)} and dtype {self.images.dtype}: expected uint8 (N,3,H,W)."
            )
        for name, tensor in (("labels", self.labels), ("ids", self.ids)):
            if tensor.dtype != torch.int64 or tensor.shape != self.images.shape[:1]:
                raise InputError(
                    f"{name} of shape {tuple(tensor.shape)} and dtype {tensor.dtype}: "
                    f"expected int64 ({self.images.shape[0]},), one for each image."
                )

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def image_size(self) -> int:
        """Width of the images in pixels."""
        return self.images.shape[-1]

    def to(self, device: torch.device | str) -> ImageSplit:
        """Returns the split on another device; batches are then made there."""
        return ImageSplit(self.images.to(device), self.labels.to(device), self.ids.to(device))


Split: TypeAlias = ImageSplit | FileSplit


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training image, in pixels, before normalisation.

    Attributes:
        crop_padding: Zero pixels added on each side before a random crop back to the original size; 0 turns it off.
        flip: Whether half of the images are mirrored left to right.
        resized_crop: Range of the area of a random crop that is resized to the image size, as shares of the whole
            image, such as (0.08, 1.0); for splits in files, and only without ``crop_padding``. None turns it off.
    """

    crop_padding: int = 0
    flip: bool = False
    resized_crop: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.resized_crop is None:
            return
        if len(self.resized_crop) != 2 or not 0 < self.resized_crop[0] <= self.resized_crop[1] <= 1:
            raise InputError(
                f"resized_crop={self.resized_crop!r}: expected two shares of the image's area, the smaller one first, "
                "above 0 and at most 1, such as (0.08, 1.0)."
            )
        if self.crop_padding:
            raise InputError(
                f"crop_padding={self.crop_padding} and resized_crop={self.resized_crop} exclude each other: a training "
                "image is cropped once. Give one of them."
            )


# Torchvision's ranges for training on ImageNet, which is what the field trains photographs of 224 px with.
RESIZED_CROP = Augmentation(flip=True, resized_crop=(0.08, 1.0))


@dataclass(frozen=True)
class Limits:
    """The most images that each split may have; None keeps all."""

    train: int | None = None
    validation: int | None = None
    test: int | None = None


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """A data set, ready for training.

    Attributes:
        name: Its short name.
        class_names: In the order of the labels.
        train: The split that is trained on.
        validation: The split that models are chosen on.
        test: The split that is reported.
        mean: Mean by channel that batches are normalised with, in 0..1: that of the training pixels, rounded to 4 decimals,
            or ImageNet's where the images stay in files.
        std: Standard deviation by channel, alike.
        augmentation: What training images go through.
        fingerprint: sha256 of all pixels (or files), labels and class names.
    """

    name: str
    class_names: list[str]
    train: Split
    validation: Split
    test: Split
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    augmentation: Augmentation
    fingerprint: str

    @property
    def num_classes(self) -> int:
        """The number of classes, K."""
        return len(self.class_names)

    @property
    def image_size(self) -> int:
        """Height and width of the images in pixels."""
        return self.train.image_size


def make_dataset(
    name: str,
    class_names: Sequence[str],
    *,
    train: ImageSplit,
    validation: ImageSplit,
    test: ImageSplit,
    augmentation: Augmentation,
) -> ImageDataset:
    """Completes a data set by the statistics of its training pixels and its fingerprint."""
    mean, std = channel_statistics(train.images)
    return ImageDataset(
        name=name,
        class_names=list(class_names),
        train=train,
        validation=validation,
        test=test,
        mean=mean,
        std=std,
        augmentation=augmentation,
        fingerprint=fingerprint(class_names, [train, validation, test]),
    )


def make_streamed_dataset(
    name: str,
    class_names: Sequence[str],
    *,
    train: FileSplit,
    validation: FileSplit,
    test: FileSplit,
    augmentation: Augmentation,
) -> ImageDataset:
    """Completes a data set whose images stay in files by ImageNet's statistics and its fingerprint.

    Raises:
        InputError: Files are missing, empty or unreadable; the message names them.
    """
    return ImageDataset(
        name=name,
        class_names=list(class_names),
        train=train,
        validation=validation,
        test=test,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        augmentation=augmentation,
        fingerprint=file_fingerprint(class_names, [train, validation, test]),
    )


def channel_statistics(images: Tensor) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of pixels by channel, on the scale 0..1.

    Sums of integers: the same on every machine and for any number of threads. A constant channel gets the standard
    deviation of one grey level, so that it can be divided by.

    Args:
        images: uint8 (N,3,H,W), N > 0.

    Returns:
        (mean, std), each rounded to 4 decimals.
    """
    total = torch.zeros(3, dtype=torch.int64)
    squares = torch.zeros(3, dtype=torch.int64)
    for start in range(0, images.shape[0], _CHUNK):
        pixels = images[start : start + _CHUNK].to(torch.int32)
        total += pixels.sum(dim=(0, 2, 3), dtype=torch.int64).cpu()
        squares += pixels.square().sum(dim=(0, 2, 3), dtype=torch.int64).cpu()
    count = images.numel() // 3
    mean = total.double() / count
    std = (squares.double() / count - mean.square()).clamp(min=1).sqrt()
    return _rounded(mean / 255), _rounded(std / 255)


def fingerprint(class_names: Sequence[str], splits: Sequence[ImageSplit]) -> str:
    """The sha256 of class names, shapes, pixels and labels, in hexadecimal."""
    header = {"class_names": list(class_names), "shapes": [list(split.images.shape) for split in splits]}
    digest = hashlib.sha256(json.dumps(header).encode())
    for split in splits:
        digest.update(split.images.cpu().contiguous().numpy().data)
        digest.update(split.labels.cpu().contiguous().numpy().astype("<i8").data)
    return digest.hexdigest()


def check_image_size(image_size: int) -> None:
    """Refuses an image size that is not a whole number of at least 8 pixels."""
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < _SMALLEST_IMAGE:
        raise InputError(f"image_size={image_size!r}: expected a whole number of pixels, at least {_SMALLEST_IMAGE}.")


def check_fraction(validation_fraction: float) -> None:
    """Refuses a validation fraction outside of (0, 1)."""
    if isinstance(validation_fraction, bool) or not 0 < validation_fraction < 1:
        raise InputError(
            f"validation_fraction={validation_fraction!r}: expected a number above 0 and below 1, such as 0.2."
        )


def check_memory(name: str, count: int, image_size: int, max_gigabytes: float) -> None:
    """Refuses a data set whose pixels would not fit the memory that was allowed.

    Args:
        name: The data set.
        count: Images to hold, of all splits.
        image_size: Their height and width in pixels.
        max_gigabytes: The bound in units of 1e9 bytes.
    """
    needed = count * 3 * image_size**2 / 1e9
    if needed > max_gigabytes:
        raise InputError(
            f"The data set '{name}' needs {needed:.2f} GB of memory ({count:,} images of {image_size} px), more than "
            f"max_gigabytes={max_gigabytes:g}. Lower image_size or train_limit (validation_limit, test_limit), "
            "or raise max_gigabytes."
        )


def _rounded(values: Tensor) -> tuple[float, float, float]:
    red, green, blue = (round(value, 4) for value in values.tolist())
    return red, green, blue
