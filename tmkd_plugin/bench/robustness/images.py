"""The images that networks are measured on: the test split of a comparison, and folders of other images of its classes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tmkd_plugin.bench.figures.images import pixels_of, spread_over_classes
from tmkd_plugin.data.dataset import ImageSplit
from tmkd_plugin.data.decode import decode_images
from tmkd_plugin.data.file_split import FileSplit
from tmkd_plugin.data.folder_tree import FolderTree, read_tree
from tmkd_plugin.data.image_folder import class_names_of
from tmkd_plugin.errors import InputError, unknown_name

if TYPE_CHECKING:
    from tmkd_plugin.data.dataset import ImageDataset

MAX_GIGABYTES = 8.0


@dataclass(frozen=True, eq=False)
class MeasuredImages:
    """Images in memory with their labels.

    Attributes:
        name: What they are called in results.
        images: uint8 (N, 3, S, S).
        labels: int64 (N,).
        ids: int64 (N,), which draws of a corruption depend on.
        digest: sha256 of pixels, labels and ids, in hexadecimal.
    """

    name: str
    images: Tensor
    labels: Tensor
    ids: Tensor
    digest: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def side(self) -> int:
        """Height and width of the images in pixels."""
        return int(self.images.shape[-1])


def measured_images(name: str, split: ImageSplit) -> MeasuredImages:
    """Returns a split in memory with its digest."""
    images, labels, ids = split.images.cpu(), split.labels.cpu(), split.ids.cpu()
    digest = hashlib.sha256(repr(tuple(images.shape)).encode())
    for part in (images, labels, ids):
        digest.update(part.contiguous().numpy().data)
    return MeasuredImages(name, images, labels, ids, digest.hexdigest())


def clean_images(dataset: ImageDataset, limit: int | None = None) -> MeasuredImages:
    """Returns the test images of a comparison as its students were tested on them.

    Args:
        dataset: The images of the comparison.
        limit: The most images, as many of each class as there can be; ``None`` for all.

    Raises:
        InputError: They need too much memory, or a file can't be used.
    """
    split = dataset.test
    rows = list(range(len(split)))
    if limit is not None and limit < len(split):
        rows = sorted(spread_over_classes(split.labels.cpu(), limit))
    _check_memory("test images", len(rows), split.image_size, "Measure fewer of them with --images.")
    chosen = torch.tensor(rows, dtype=torch.int64)
    labels, ids = split.labels.cpu()[chosen], split.ids.cpu()[chosen]
    return measured_images("test", ImageSplit(pixels_of(split, rows), labels, ids))


def shifted_images(folder: Path, dataset: ImageDataset, name: str) -> MeasuredImages:
    """Reads a folder of other images of the same classes, prepared as the comparison's test images are.

    Args:
        folder: With ``<class>/`` folders, all images of which are taken, or ``train/<class>/`` and ``test/<class>/``, of which
            the test images are.
        dataset: The images of the comparison.
        name: What the folder is called in results.

    Raises:
        InputError: The folder, a class or a file can't be used.
    """
    tree = read_tree(folder.expanduser(), least_classes=1)
    part = "test" if "test" in tree.files else "all"
    labels_by_class = _labels_of(tree, folder, dataset.class_names)
    paths: list[str] = []
    labels: list[int] = []
    for class_folder, files in sorted(tree.files[part].items()):
        paths += files
        labels += [labels_by_class[class_folder]] * len(files)
    side = dataset.image_size
    _check_memory(f"images of {folder}", len(paths), side, "Put fewer of them into the folder.")
    answers, ids = torch.tensor(labels, dtype=torch.int64), torch.arange(len(labels))
    root = tree.folders[part]
    if isinstance(dataset.test, FileSplit):
        files_split = FileSplit(root.absolute(), tuple(paths), answers, ids, side, dataset.test.workers)
        images = pixels_of(files_split, range(len(paths)))
    else:
        images = decode_images([root / path for path in paths], side, root=root)
    return measured_images(name, ImageSplit(images, answers, ids))


def _labels_of(tree: FolderTree, folder: Path, class_names: Sequence[str]) -> dict[str, int]:
    """Returns the label of each class folder by its name in words, whatever its capitals.

    Raises:
        InputError: The comparison has no class of this name.
    """
    known = {name.casefold(): label for label, name in enumerate(class_names)}
    labels = {}
    for class_folder, name in zip(tree.classes, class_names_of(tree.classes), strict=True):
        if name.casefold() not in known:
            raise unknown_name(f"class in {folder}; the comparison has no class", name, class_names)
        labels[class_folder] = known[name.casefold()]
    return labels


def _check_memory(what: str, count: int, side: int, advice: str) -> None:
    needed = count * 3 * side**2 / 1e9
    if needed > MAX_GIGABYTES:
        raise InputError(
            f"The {count:,} {what} of {side} px need {needed:.1f} GB of memory, more than {MAX_GIGABYTES:g}. {advice}"
        )
