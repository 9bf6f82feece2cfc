"""A folder of images as a data set."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor

from tmkd_plugin.data.dataset import (
    DEFAULT_MAX_GIGABYTES,
    RESIZED_CROP,
    Augmentation,
    ImageDataset,
    ImageSplit,
    Limits,
    check_fraction,
    check_image_size,
    check_memory,
    make_dataset,
    make_streamed_dataset,
)
from tmkd_plugin.data.decode import decode_images, short_side
from tmkd_plugin.data.file_split import FileSplit
from tmkd_plugin.data.folder_tree import FolderTree, read_tree
from tmkd_plugin.data.request import AugmentationName
from tmkd_plugin.data.splitting import hash_order, keep_per_class, split_by_hash
from tmkd_plugin.errors import InputError

TEST_FRACTION = 0.2
VALIDATION_FRACTION = 0.2
SMALL_IMAGE = 48
STREAMED_IMAGE_SIZE = 224
_PROBED = 100
_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class ImageFile:
    """One image of the data set.

    Attributes:
        folder: The folder of its split.
        key: Its path below that folder, which decides where it goes and whether a limit keeps it.
        label: Its class.
    """

    folder: Path
    key: str
    label: int

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / self.key


def load_image_folder(
    folder: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    limits: Limits | None = None,
    validation_fraction: float | None = None,
    max_gigabytes: float = DEFAULT_MAX_GIGABYTES,
    progress: Callable[[int, int], None] | None = None,
    augmentation: AugmentationName | None = None,
    workers: int = 0,
) -> ImageDataset:
    """Loads a folder of images; ``load_dataset`` describes the arguments.

    Training images are cropped at random after padding by an eighth of their size (4 of 32 px) and flipped, or, with
    ``resized_crop``, decoded from their files in each epoch, cropped at random, resized and flipped.

    Raises:
        InputError: The folder, its classes, its images or an argument can't be used.
    """
    fraction = VALIDATION_FRACTION if validation_fraction is None else validation_fraction
    check_fraction(fraction)
    if image_size is not None:
        check_image_size(image_size)
    tree = read_tree(Path(os.path.expanduser(folder)))
    class_names = class_names_of(tree.classes)
    parts = _split(tree, fraction)
    ids = _ids([file for part in parts.values() for file in part])
    kept = _apply_limits(parts, limits or Limits(), len(class_names))
    name = tree.root.resolve().name or "images"
    if augmentation == "resized_crop":
        size = image_size or STREAMED_IMAGE_SIZE
        splits = {part: _file_split(tree.root, files, ids, size, workers) for part, files in kept.items()}
        return make_streamed_dataset(name, class_names, **splits, augmentation=RESIZED_CROP)
    image_size = image_size or _natural_size(parts["train"])
    check_memory(name, sum(len(part) for part in kept.values()), image_size, max_gigabytes)
    files = [file for part in _SPLITS for file in kept[part]]
    images = decode_images([file.path for file in files], image_size, root=tree.root, progress=progress)
    labels, places = _labels_and_places(files, ids)
    bounds = [0, *accumulate(len(kept[part]) for part in _SPLITS)]
    slices = [slice(start, end) for start, end in pairwise(bounds)]
    train, validation, test = (ImageSplit(images[part], labels[part], places[part]) for part in slices)
    crop_flip = Augmentation(crop_padding=image_size // 8, flip=True)
    return make_dataset(name, class_names, train=train, validation=validation, test=test, augmentation=crop_flip)


def _file_split(
    root: Path, files: list[ImageFile], ids: dict[tuple[str, str], int], image_size: int, workers: int
) -> FileSplit:
    paths = tuple(file.path.relative_to(root).as_posix() for file in files)
    # Absolute: the files are read later, perhaps from another working folder.
    return FileSplit(root.absolute(), paths, *_labels_and_places(files, ids), image_size, workers)


def _labels_and_places(files: list[ImageFile], ids: dict[tuple[str, str], int]) -> tuple[Tensor, Tensor]:
    labels = torch.tensor([file.label for file in files], dtype=torch.int64)
    return labels, torch.tensor([ids[file.folder.name, file.key] for file in files], dtype=torch.int64)


def class_names_of(folders: Sequence[str]) -> list[str]:
    """Turns names of class folders into words: ``001.Black_footed_Albatross`` becomes ``Black footed Albatross``.

    Raises:
        InputError: Two folders give the same name, or one gives none.
    """
    names = [" ".join(re.sub(r"^\d+\.", "", folder).replace("_", " ").split()) for folder in folders]
    counts = Counter(names)
    for name, count in counts.items():
        same = ", ".join(f"'{folder}'" for folder, other in zip(folders, names, strict=True) if other == name)
        if not name:
            raise InputError(f"The class folder {same} gives no class name in words. Rename it.")
        if count > 1:
            raise InputError(f"The class folders {same} give the same class name '{name}'. Rename or merge them.")
    return names


def _split(tree: FolderTree, validation_fraction: float) -> dict[str, list[ImageFile]]:
    """Divides the files into train, validation and test, class by class where the folder does not."""
    given = {split: [_files_of(tree, split, name) for name in tree.classes] for split in tree.files}
    if "all" in given:
        test = TEST_FRACTION
        return _cut(tree, given["all"], ["test", "validation", "train"], [test, validation_fraction * (1 - test)])
    parts = {split: [file for files in classes for file in files] for split, classes in given.items()}
    if "validation" not in parts:
        parts |= _cut(tree, given["train"], ["validation", "train"], [validation_fraction])
    return parts


def _files_of(tree: FolderTree, split: str, name: str) -> list[ImageFile]:
    label = tree.classes.index(name)
    return [ImageFile(tree.folders[split], key, label) for key in tree.files[split][name]]


def _ids(files: list[ImageFile]) -> dict[tuple[str, str], int]:
    """Numbers all images, kept by a limit or not, in the order of their paths."""
    return {place: index for index, place in enumerate(sorted((file.folder.name, file.key) for file in files))}


def _cut(
    tree: FolderTree, classes: list[list[ImageFile]], parts: list[str], fractions: list[float]
) -> dict[str, list[ImageFile]]:
    small = [f"'{tree.classes[files[0].label]}' ({len(files)})" for files in classes if len(files) < len(parts)]
    if small:
        raise InputError(
            f"Classes of '{tree.root}' with too few images to be split into {', '.join(parts)}: {', '.join(small)}. "
            f"Expected {len(parts)} or more of each class; add images or remove the class."
        )
    cut: dict[str, list[ImageFile]] = {part: [] for part in parts}
    for files in classes:
        pieces = split_by_hash([file.key for file in files], fractions, "image folder split")
        for part, piece in zip(parts, pieces, strict=True):
            cut[part] += [files[position] for position in sorted(piece)]
    return cut


def _apply_limits(parts: dict[str, list[ImageFile]], limits: Limits, num_classes: int) -> dict[str, list[ImageFile]]:
    def kept(part: str) -> list[ImageFile]:
        files = parts[part]
        keys, labels = [file.key for file in files], [file.label for file in files]
        return [files[i] for i in keep_per_class(keys, labels, num_classes, getattr(limits, part), f"{part}_limit")]

    return {part: kept(part) for part in _SPLITS}


def _natural_size(files: list[ImageFile]) -> int:
    """Returns 32 if the images are small, else 64: by the median of a fixed sample, whatever the limits."""
    probed = hash_order([file.key for file in files], "size")[:_PROBED]
    sides = sorted(filter(None, (short_side(files[position].path) for position in probed)))
    return 32 if sides and sides[len(sides) // 2] <= SMALL_IMAGE else 64
