"""A data set whose official files list the images of each split: checks of the list, validation cut, loading."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import torch

from tmkd_plugin.data.dataset import (
    RESIZED_CROP,
    Augmentation,
    ImageDataset,
    ImageSplit,
    check_fraction,
    check_image_size,
    check_memory,
    make_dataset,
    make_streamed_dataset,
)
from tmkd_plugin.data.file_split import FileSplit
from tmkd_plugin.data.list_files import ListProblems
from tmkd_plugin.data.request import AugmentationName, DatasetRequest
from tmkd_plugin.data.splitting import keep_per_class, split_by_hash
from tmkd_plugin.errors import unknown_name
from tmkd_plugin.prompts import check_class_names

__all__ = ["ListProblems", "ListedImage", "ListedImages", "check_images", "dataset_from_list", "say_counts"]


@dataclass(frozen=True)
class ListedImage:
    """One row of a list.

    Attributes:
        path: The file, relative to the data set's folder, with ``/``.
        label: Its class, from 0.
    """

    path: str
    label: int


@dataclass(frozen=True)
class ListedImages:
    """What the official files of a data set say.

    Attributes:
        name: Its short name.
        root: Its folder.
        class_names: In the order of the labels, as words.
        train: Training images in official order.
        test: Test images in official order.
        validation: Those of an official validation split; ``None`` if there is none.
    """

    name: str
    root: Path
    class_names: list[str]
    train: list[ListedImage]
    test: list[ListedImage]
    validation: list[ListedImage] | None = None


@dataclass(frozen=True)
class _Row:
    """An image with its place in the official order, over all splits."""

    path: str
    label: int
    place: int


def dataset_from_list(
    listed: ListedImages,
    request: DatasetRequest,
    *,
    default_size: int,
    default_augmentation: AugmentationName,
    default_validation_fraction: float = 0.1,
    problems: ListProblems | None = None,
) -> ImageDataset:
    """Loads the images of a list.

    The id of an image is its place in the official order: training images as listed, then validation, then test. Limits and
    the validation cut change no id. Where there is no official validation split it is cut from the training images, class by
    class, by a hash of their paths: the same for every seed.

    Args:
        listed: The images of each split.
        request: What was asked for; its ``None``s are filled by the defaults that follow.
        default_size: Height and width in pixels.
        default_augmentation: ``crop_flip`` reads the central squares of all images into memory, ``resized_crop`` decodes
            files again in each epoch.
        default_validation_fraction: Share of the training images that validation takes.
        problems: What reading the lists has found so far; raised here together with what the images show.

    Raises:
        InputError: An image is missing, listed twice, in two splits, or has a wrong label; a class has too few training
            images; an argument of the request can't be used.
    """
    fraction = default_validation_fraction if request.validation_fraction is None else request.validation_fraction
    image_size = default_size if request.image_size is None else request.image_size
    augmentation = default_augmentation if request.augmentation is None else request.augmentation
    check_fraction(fraction)
    check_image_size(image_size)
    if augmentation not in ("crop_flip", "resized_crop"):
        raise unknown_name("augmentation", augmentation, ("crop_flip", "resized_crop"))
    check_images(listed, problems or ListProblems(listed.name, listed.root))
    train, validation, test = _limited(_cut(listed, fraction), request, len(listed.class_names))
    if augmentation == "resized_crop":
        return _streamed(listed, train, validation, test, image_size=image_size, workers=request.workers)
    return _in_memory(listed, [train, validation, test], request, image_size)


def check_images(listed: ListedImages, problems: ListProblems) -> None:
    """Refuses a list that contradicts itself or the folder, in one message.

    Folders are listed instead of asking for each file: a few hundred reads, also where a disk is slow.

    Args:
        listed: The images of each split.
        problems: What is known already; everything is raised together.

    Raises:
        InputError: With all problems.
    """
    _check_rows(listed, problems)
    _check_classes(listed, problems)
    for path in _missing(listed.root, [row.path for rows in _splits(listed).values() for row in rows]):
        problems.add(f"{path}: listed, but there is no such file")
    problems.raise_if_any()
    check_class_names(listed.class_names)


def say_counts(listed: ListedImages, official: Mapping[str, int], say: Callable[[str], None]) -> None:
    """Says so if a list has other numbers of images than the official one, such as a tree with fewer classes.

    Args:
        listed: The images of each split.
        official: The official number of images of each split.
        say: Called with the line for the user.
    """
    counts = {split: len(_splits(listed)[split]) for split in official}
    if counts != official:
        found, expected = (
            ", ".join(f"{count:,} {split}" for split, count in numbers.items()) for numbers in (counts, official)
        )
        say(
            f"The lists in '{listed.root}' have other numbers of images than the official data set '{listed.name}': {found} "
            f"(official: {expected}). Results can't be compared with published ones."
        )


def _splits(listed: ListedImages) -> dict[str, list[ListedImage]]:
    return {"train": listed.train, "validation": listed.validation or [], "test": listed.test}


def _check_rows(listed: ListedImages, problems: ListProblems) -> None:
    split_of: dict[str, str] = {}
    for split, rows in _splits(listed).items():
        for row in rows:
            other = split_of.setdefault(row.path, split)
            if other != split:
                problems.add(f"{row.path}: in the {other} split and in the {split} split")
            if not 0 <= row.label < len(listed.class_names):
                problems.add(f"{row.path}: class {row.label + 1}, expected 1 to {len(listed.class_names)}")
        for path, count in Counter(row.path for row in rows).items():
            if count > 1:
                problems.add(f"{path}: {count} times in the {split} split")


def _check_classes(listed: ListedImages, problems: ListProblems) -> None:
    needed = 1 if listed.validation else 2
    counts = Counter(row.label for row in listed.train)
    for label, name in enumerate(listed.class_names):
        if counts[label] < needed:
            problems.add(
                f"class '{name}': {counts[label]} training image{'s' * (counts[label] != 1)}, expected {needed} or more"
            )
    for split, rows in (("test", listed.test), ("validation", listed.validation)):
        if rows == []:
            problems.add(f"no image in the {split} split")


def _missing(root: Path, paths: Sequence[str]) -> Iterator[str]:
    """Yields the paths that are no files below the root, in order, each once."""
    present: dict[str, frozenset[str]] = {}
    for path in dict.fromkeys(paths):
        folder, _, name = path.rpartition("/")
        if folder not in present:
            present[folder] = _files_in(root, folder)
        if name not in present[folder]:
            yield path


def _files_in(root: Path, folder: str) -> frozenset[str]:
    """Names of the files in a folder; none if the folder is missing or its path would leave the root."""
    if folder.startswith("/") or ".." in folder.split("/") or "\0" in folder:
        return frozenset()
    try:
        with os.scandir(root / folder) as entries:
            return frozenset(entry.name for entry in entries if _is_file(entry))
    except OSError:
        return frozenset()


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def _cut(listed: ListedImages, fraction: float) -> dict[str, list[_Row]]:
    """Gives each image its place, and cuts validation from training where there is none."""
    place = 0
    parts: dict[str, list[_Row]] = {}
    for split, rows in _splits(listed).items():
        parts[split] = [_Row(row.path, row.label, place + index) for index, row in enumerate(rows)]
        place += len(rows)
    if parts["validation"]:
        return parts
    classes: list[list[_Row]] = [[] for _ in listed.class_names]
    for row in parts["train"]:
        classes[row.label].append(row)
    taken: set[int] = set()
    for members in classes:
        chosen, _ = split_by_hash([row.path for row in members], [fraction], "validation of a list")
        taken.update(members[position].place for position in chosen)
    parts["validation"] = [row for row in parts["train"] if row.place in taken]
    parts["train"] = [row for row in parts["train"] if row.place not in taken]
    return parts


def _limited(parts: dict[str, list[_Row]], request: DatasetRequest, num_classes: int) -> Iterator[list[_Row]]:
    for split in ("train", "validation", "test"):
        rows, limit = parts[split], getattr(request.limits, split)
        paths, labels = [row.path for row in rows], [row.label for row in rows]
        yield [rows[position] for position in keep_per_class(paths, labels, num_classes, limit, f"{split}_limit")]


def _streamed(
    listed: ListedImages, train: list[_Row], validation: list[_Row], test: list[_Row], *, image_size: int, workers: int
) -> ImageDataset:
    def split(rows: list[_Row]) -> FileSplit:
        return FileSplit(
            root=listed.root,
            paths=tuple(row.path for row in rows),
            labels=torch.tensor([row.label for row in rows], dtype=torch.int64),
            ids=torch.tensor([row.place for row in rows], dtype=torch.int64),
            image_size=image_size,
            workers=workers,
        )

    return make_streamed_dataset(
        listed.name,
        listed.class_names,
        train=split(train),
        validation=split(validation),
        test=split(test),
        augmentation=RESIZED_CROP,
    )


def _in_memory(
    listed: ListedImages, parts: Sequence[list[_Row]], request: DatasetRequest, image_size: int
) -> ImageDataset:
    from tmkd_plugin.data.decode import decode_images

    rows = [row for part in parts for row in part]
    check_memory(listed.name, len(rows), image_size, request.max_gigabytes)
    images = decode_images(
        [listed.root / row.path for row in rows], image_size, root=listed.root, progress=request.progress
    )
    labels = torch.tensor([row.label for row in rows], dtype=torch.int64)
    ids = torch.tensor([row.place for row in rows], dtype=torch.int64)
    bounds = [0, *accumulate(len(part) for part in parts)]
    slices = [slice(start, end) for start, end in pairwise(bounds)]
    train, validation, test = (ImageSplit(images[part], labels[part], ids[part]) for part in slices)
    return make_dataset(
        listed.name,
        listed.class_names,
        train=train,
        validation=validation,
        test=test,
        augmentation=Augmentation(crop_padding=image_size // 8, flip=True),
    )
