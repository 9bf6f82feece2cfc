"""Tiny-ImageNet: 200 classes of ImageNet at 64 px, 100,000 training and 10,000 validation images.

Y. Le and X. Yang, Tiny ImageNet Visual Recognition Challenge, CS 231N, 2015. The labels of its test images were never
published, so its validation images are the test split here, as everywhere in the field.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

from tmkd_plugin.data.archives import ArchiveSource, prepare_folder
from tmkd_plugin.data.dataset import ImageDataset
from tmkd_plugin.data.list_files import ListProblems, read_rows, read_text
from tmkd_plugin.data.listed_images import ListedImage, ListedImages, dataset_from_list, say_counts
from tmkd_plugin.data.request import DatasetRequest
from tmkd_plugin.prompts import folded, readable

NAME = "tiny_imagenet"
FOLDER = "tiny-imagenet-200"
ARCHIVE = ArchiveSource(
    url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    file_name="tiny-imagenet-200.zip",
    md5="90528d7ca1a48142e341f4ef8d21d0de",
    inside=FOLDER,
)
OFFICIAL_COUNTS = {"train": 100_000, "test": 10_000}
IMAGE_SIZE = 64


def load_tiny_imagenet(request: DatasetRequest) -> ImageDataset:
    """Loads Tiny-ImageNet, or a tree in its layout with fewer classes or images.

    Classes are in the order of their WordNet ids, as torchvision's ``ImageFolder`` has them; their names are the first
    synonyms of ``words.txt``. Validation takes 10 % of the training images by default.

    Args:
        request: What is asked for. By default images have 64 px, are held in memory, and training images are cropped after
            padding and flipped.

    Raises:
        InputError: The folder is missing, or its lists and images don't agree; everything is named in one message.
    """
    root = prepare_folder(NAME, request, FOLDER, ARCHIVE, marker="wnids.txt", max_bytes=10**9)
    problems = ListProblems(NAME, root)
    listed = read_tiny_imagenet(root, problems)
    say_counts(listed, OFFICIAL_COUNTS, request.say)
    return dataset_from_list(
        listed, request, default_size=IMAGE_SIZE, default_augmentation="crop_flip", problems=problems
    )


def read_tiny_imagenet(root: Path, problems: ListProblems) -> ListedImages:
    """Reads the classes, their names, the training folders and the annotations of the test images.

    Args:
        root: The folder ``tiny-imagenet-200``.
        problems: Takes rows that can't be used, classes without a folder and folders without a class.

    Returns:
        Training images by class and number, ``n01443537_0.JPEG`` first; test images as they are annotated.
    """
    counts = Counter(wnid for _, (wnid,) in read_rows(root / "wnids.txt", ("class id",), problems))
    classes = sorted(counts)
    for wnid, count in counts.items():
        if count > 1:
            problems.add(f"wnids.txt: class {wnid} {count} times")
    return ListedImages(
        NAME,
        root,
        _class_names(root, classes, problems),
        train=_training_images(root, classes, problems),
        test=_test_images(root, classes, problems),
    )


def distinct_names(synonyms: list[list[str]]) -> list[str]:
    """The first synonym of each class; classes that would share it take their next one, as long as they have one."""
    chosen = [0] * len(synonyms)
    while True:
        names = [words[place] for words, place in zip(synonyms, chosen, strict=True)]
        counts = Counter(folded(name) for name in names)
        movable = [
            label
            for label, words in enumerate(synonyms)
            if counts[folded(names[label])] > 1 and chosen[label] + 1 < len(words)
        ]
        if not movable:
            return names
        for label in movable:
            chosen[label] += 1


def _class_names(root: Path, classes: list[str], problems: ListProblems) -> list[str]:
    words: dict[str, list[str]] = {}
    for line in read_text(root / "words.txt").splitlines():
        wnid, _, synonyms = line.partition("\t")
        words[wnid] = [name for name in map(readable, synonyms.split(",")) if name]
    for wnid in classes:
        if not words.get(wnid):
            problems.add(f"words.txt: no name for class {wnid} of wnids.txt")
    return distinct_names([words.get(wnid) or [wnid] for wnid in classes])


def _training_images(root: Path, classes: list[str], problems: ListProblems) -> list[ListedImage]:
    folders = _names_in(root / "train", problems)
    for name in sorted(folders - set(classes)):
        problems.add(f"train/{name}: not a class of wnids.txt")
    images = []
    for label, wnid in enumerate(classes):
        if wnid not in folders:
            problems.add(f"train/{wnid}: a class of wnids.txt without a folder")
            continue
        files = [name for name in _names_in(root / "train" / wnid / "images", problems) if name.endswith(".JPEG")]
        images += [ListedImage(f"train/{wnid}/images/{name}", label) for name in sorted(files, key=_numbers_by_value)]
    return images


def _test_images(root: Path, classes: list[str], problems: ListProblems) -> list[ListedImage]:
    labels = {wnid: label for label, wnid in enumerate(classes)}
    images = []
    columns = ("image", "class id", "box")
    for number, (name, wnid, _) in read_rows(root / "val" / "val_annotations.txt", columns, problems):
        if wnid in labels:
            images.append(ListedImage(f"val/images/{name}", labels[wnid]))
        else:
            problems.add(f"val_annotations.txt, row {number}: class {wnid!r} is not in wnids.txt")
    return images


def _names_in(folder: Path, problems: ListProblems) -> set[str]:
    """Names in a folder, but for hidden ones, such as a file manager leaves."""
    try:
        return {name for name in os.listdir(folder) if not name.startswith(".")}
    except OSError as error:
        problems.add(f"{folder.relative_to(problems.root).as_posix()}: can't be listed ({error.strerror})")
        return set()


def _numbers_by_value(name: str) -> tuple[list[int], str]:
    return [int(number) for number in re.findall(r"\d+", name)], name
