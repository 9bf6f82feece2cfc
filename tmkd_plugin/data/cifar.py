"""CIFAR-10 and CIFAR-100: 50,000 training and 10,000 test images of 32 px.

A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. File names, checksums and the address are
torchvision's.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tmkd_plugin.data.archives import ArchiveSource, prepare_folder
from tmkd_plugin.data.dataset import (
    Augmentation,
    ImageDataset,
    ImageSplit,
    check_fraction,
    check_image_size,
    check_memory,
    make_dataset,
)
from tmkd_plugin.data.download import bytes_fault
from tmkd_plugin.data.request import DatasetRequest
from tmkd_plugin.data.restricted_pickle import read_plain_pickle
from tmkd_plugin.data.splitting import keep_per_class, split_by_hash
from tmkd_plugin.errors import InputError, unknown_name
from tmkd_plugin.prompts import check_class_names, readable

NAMES = ("cifar10", "cifar100")
IMAGE_SIZE = 32
VALIDATION_FRACTION = 0.1
_LABEL_KEYS = {"cifar10": "labels", "cifar100": "fine_labels"}
_MAX_BYTES = 500 * 10**6
_SPLITS = ("train", "validation", "test")


def load_cifar(request: DatasetRequest) -> ImageDataset:
    """Loads CIFAR-10 or CIFAR-100 (its 100 fine classes) into memory.

    The id of an image is its place in the official order: 0 to 49,999 for training, then the test images. Validation takes
    10 % of the training images by default, class by class, by a hash of their ids. Training images are cropped at random
    after padding by an eighth (4 of 32 px) and flipped.

    Args:
        request: What is asked for, with the name ``cifar10`` or ``cifar100``. Another size than 32 px is interpolated.

    Raises:
        InputError: The official files are missing or changed, or an argument of the request can't be used.
    """
    if request.name not in NAMES:
        raise unknown_name("data set", request.name, NAMES)
    fraction = VALIDATION_FRACTION if request.validation_fraction is None else request.validation_fraction
    image_size = IMAGE_SIZE if request.image_size is None else request.image_size
    check_fraction(fraction)
    check_image_size(image_size)
    if request.augmentation not in (None, "crop_flip"):
        raise InputError(
            f"augmentation='{request.augmentation}' can't be used for '{request.name}', whose images are held in memory: "
            "give 'crop_flip'."
        )
    official = _official_files(request.name)
    folder = _prepare(request, official)
    class_names = _read_class_names(folder, official)
    train_pixels, train_labels = _read_batches(request.name, folder, official.train_list, len(class_names))
    test_pixels, test_labels = _read_batches(request.name, folder, official.test_list, len(class_names))
    pixels = np.concatenate([train_pixels, test_pixels])
    labels = torch.cat([train_labels, test_labels])
    kept = _kept_ids(request, fraction, train_labels.tolist(), test_labels.tolist(), len(class_names))
    check_memory(request.name, sum(len(ids) for ids in kept.values()), image_size, request.max_gigabytes)
    splits = {
        split: ImageSplit(_resized(pixels[ids], image_size), labels[ids], torch.tensor(ids))
        for split, ids in kept.items()
    }
    return make_dataset(
        request.name, class_names, **splits, augmentation=Augmentation(crop_padding=image_size // 8, flip=True)
    )


def _official_files(name: str) -> Any:
    """Torchvision's class for the data set, whose attributes name its files and their checksums."""
    from torchvision import datasets

    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]


def _prepare(request: DatasetRequest, official: Any) -> Path:
    archive = ArchiveSource(official.url, official.filename, md5=official.tgz_md5, inside=official.base_folder)
    return prepare_folder(
        request.name, request, official.base_folder, archive, marker=official.meta["filename"], max_bytes=_MAX_BYTES
    )


def _read_class_names(folder: Path, official: Any) -> list[str]:
    path = folder / official.meta["filename"]
    names = _read_checked(path, official.meta["md5"]).get(official.meta["key"])
    return [readable(name) for name in check_class_names(names)]


def _read_batches(
    name: str, folder: Path, files: Iterable[tuple[str, str]], num_classes: int
) -> tuple[NDArray[np.uint8], Tensor]:
    """Returns the pixels, uint8 (N,3,32,32), and the labels, int64 (N,), of some batch files one after the other."""
    pixels, labels = [], []
    for file_name, md5 in files:
        path = folder / file_name
        batch = _read_checked(path, md5)
        pixels.append(_pixels_of(batch.get("data"), path))
        labels += _labels_of(batch.get(_LABEL_KEYS[name]), len(pixels[-1]), num_classes, path)
    return np.concatenate(pixels), torch.tensor(labels, dtype=torch.int64)


def _read_checked(path: Path, md5: str) -> dict[str, Any]:
    """Reads an official file; what is unpickled are the bytes that had the right checksum."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"'{path}' can't be read: {error.strerror}. Unpack the official archive again.") from error
    fault = bytes_fault(content, md5)
    if fault is not None:
        raise InputError(f"'{path}' {fault}: it is not the official file. Unpack the official archive again.")
    return read_plain_pickle(content, path)


def _pixels_of(data: object, path: Path) -> NDArray[np.uint8]:
    width = 3 * IMAGE_SIZE**2
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != width:
        raise InputError(
            f"'{path}' holds no array 'data' of uint8 with {width:,} columns: it is not the official file."
        )
    return data.reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE)


def _labels_of(labels: object, count: int, num_classes: int, path: Path) -> list[int]:
    if not isinstance(labels, list) or len(labels) != count:
        raise InputError(
            f"'{path}' holds no list of {count:,} labels, one for each image: it is not the official file."
        )
    wrong = [label for label in labels if type(label) is not int or not 0 <= label < num_classes]
    if wrong:
        raise InputError(f"'{path}' has the label {wrong[0]!r}, expected whole numbers from 0 to {num_classes - 1}.")
    return labels


def _kept_ids(
    request: DatasetRequest, fraction: float, train_labels: list[int], test_labels: list[int], num_classes: int
) -> dict[str, list[int]]:
    """The ids that each split keeps, ascending."""
    classes: list[list[int]] = [[] for _ in range(num_classes)]
    for index, label in enumerate(train_labels):
        classes[label].append(index)
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for ids in classes:
        validation, train = split_by_hash([str(index) for index in ids], [fraction], f"{request.name} validation")
        parts["validation"] += [ids[position] for position in validation]
        parts["train"] += [ids[position] for position in train]
    parts["test"] = list(range(len(train_labels), len(train_labels) + len(test_labels)))
    labels = train_labels + test_labels
    return {split: _limited(sorted(parts[split]), labels, num_classes, request, split) for split in _SPLITS}


def _limited(ids: list[int], labels: list[int], num_classes: int, request: DatasetRequest, split: str) -> list[int]:
    keys, own = [str(index) for index in ids], [labels[index] for index in ids]
    kept = keep_per_class(keys, own, num_classes, getattr(request.limits, split), f"{split}_limit")
    return [ids[position] for position in kept]


def _resized(pixels: NDArray[np.uint8], image_size: int) -> Tensor:
    """Returns the images, uint8 (N,3,S,S), resized as image files are: with antialiasing, bicubic."""
    if image_size == IMAGE_SIZE:
        return torch.from_numpy(pixels)
    from PIL import Image

    resized = np.empty((len(pixels), 3, image_size, image_size), dtype=np.uint8)
    for place, image in enumerate(pixels):
        picture = Image.fromarray(image.transpose(1, 2, 0))
        larger = picture.resize((image_size, image_size), Image.Resampling.BICUBIC)
        resized[place] = np.asarray(larger).transpose(2, 0, 1)
    return torch.from_numpy(resized)
