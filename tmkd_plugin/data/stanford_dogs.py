"""Stanford Dogs: 120 breeds, 12,000 training and 8,580 test photographs from ImageNet.

A. Khosla, N. Jayadevaprakash, B. Yao, L. Fei-Fei, Novel Dataset for Fine-Grained Image Categorization, First Workshop on
Fine-Grained Visual Categorization, CVPR 2011.
"""

from __future__ import annotations

import re
from pathlib import Path

from tmkd_plugin.data.archives import ArchiveSource, prepare_folder
from tmkd_plugin.data.dataset import ImageDataset
from tmkd_plugin.data.list_files import ListProblems
from tmkd_plugin.data.listed_images import ListedImage, ListedImages, dataset_from_list, say_counts
from tmkd_plugin.data.mat_lists import MatError, read_mat_lists
from tmkd_plugin.data.request import DatasetRequest
from tmkd_plugin.errors import InputError

NAME = "stanford_dogs"
FOLDER = "StanfordDogs"
PAGE = "http://vision.stanford.edu/aditya86/ImageNetDogs/"
# The authors publish no checksums; these sizes and checksums are the ones that TensorFlow Datasets has recorded.
ARCHIVES = (
    ArchiveSource(
        url=f"{PAGE}images.tar",
        file_name="images.tar",
        sha256="a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58",
        size=793_579_520,
    ),
    ArchiveSource(
        url=f"{PAGE}lists.tar",
        file_name="lists.tar",
        sha256="34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c",
        size=481_280,
    ),
)
LISTS = {"train": "train_list.mat", "test": "test_list.mat"}
OFFICIAL_COUNTS = {"train": 12000, "test": 8580}
OFFICIAL_CLASSES = 120
IMAGE_SIZE = 224
# The official lists have a thirtieth of this, packed, and a quarter unpacked.
_MAX_LIST_BYTES = 16 * 2**20
_MAX_ROWS = 100_000
_RESTORE = "Unpack lists.tar again."
_BREED = re.compile(r"n\d{8}-(.+)")


def load_stanford_dogs(request: DatasetRequest) -> ImageDataset:
    """Loads Stanford Dogs, or a tree in its layout with fewer breeds.

    A class name is what follows the ImageNet id in the folder's name, with spaces for underscores: "Chihuahua", "Japanese
    spaniel". Hyphens stay, they are part of the spelling: "Shih-Tzu", "black-and-tan coonhound". Validation takes 10 % of
    the training images by default.

    Its authors publish no checksums: archives are compared with what TensorFlow Datasets has recorded, and lists of all 120
    breeds must have the official numbers of images.

    Args:
        request: What is asked for. By default images have 224 px and training images go through random resized crops.

    Raises:
        InputError: The folder is missing, or its lists and images don't agree; everything is named in one message.
    """
    root = prepare_folder(NAME, request, FOLDER, ARCHIVES, marker="train_list.mat", max_bytes=2 * 10**9)
    problems = ListProblems(NAME, root)
    listed = read_stanford_dogs(root, problems)
    say_counts(listed, OFFICIAL_COUNTS, request.say)
    return dataset_from_list(
        listed, request, default_size=IMAGE_SIZE, default_augmentation="resized_crop", problems=problems
    )


def read_stanford_dogs(root: Path, problems: ListProblems) -> ListedImages:
    """Reads ``train_list.mat`` and ``test_list.mat``. No image is looked for.

    Args:
        root: The folder that holds the lists and ``Images``.
        problems: Takes rows that can't be used, breeds with two labels and wrong numbers of images.

    Returns:
        The images of each split in the order of the lists.

    Raises:
        InputError: A list is missing or is not what the official files hold.
    """
    rows = {split: _read_list(root / name, problems) for split, name in LISTS.items()}
    breeds = _breeds([row for part in rows.values() for row in part], problems)
    class_names = []
    for breed in breeds:
        match = _BREED.fullmatch(breed)
        if match is None:
            problems.add(f"folder {breed!r}: expected an ImageNet id and a breed, such as n02085620-Chihuahua")
        class_names.append(match.group(1).replace("_", " ") if match else breed)
    parts = {split: [ListedImage(f"Images/{path}", label - 1) for path, label in part] for split, part in rows.items()}
    if len(breeds) == OFFICIAL_CLASSES:
        for split, name in LISTS.items():
            if len(parts[split]) != OFFICIAL_COUNTS[split]:
                problems.add(
                    f"{name}: {len(parts[split]):,} images of {OFFICIAL_CLASSES} breeds, expected {OFFICIAL_COUNTS[split]:,}"
                )
    return ListedImages(NAME, root, class_names, train=parts["train"], test=parts["test"])


def _breeds(rows: list[tuple[str, int]], problems: ListProblems) -> list[str]:
    """Returns the folder of each label, from 1; every label has one folder and every folder one label."""
    folder_of: dict[int, str] = {}
    label_of: dict[str, int] = {}
    for path, label in rows:
        folder = path.partition("/")[0]
        if folder_of.setdefault(label, folder) != folder:
            problems.add(f"{path}: label {label}, which is '{folder_of[label]}' in rows before")
        elif label_of.setdefault(folder, label) != label:
            problems.add(f"{path}: label {label}, but rows before have label {label_of[folder]} for this folder")
    absent = [label for label in range(1, max(folder_of, default=0)) if label not in folder_of]
    if absent:
        problems.add(f"labels up to {max(folder_of)} but none of {', '.join(map(str, absent[:10]))}: expected 1 to K")
        problems.raise_if_any()
    return [folder_of[label] for label in sorted(folder_of)]


def _read_list(path: Path, problems: ListProblems) -> list[tuple[str, int]]:
    """Returns (path, label from 1) of each row."""
    files, labels = _load(path)
    rows = []
    for number, (name, label) in enumerate(zip(files, labels, strict=True), start=1):
        folder, slash, image = name.partition("/") if isinstance(name, str) else ("", "", "")
        if not isinstance(name, str) or not (folder and slash and image):
            problems.add(f"{path.name}, row {number}: {str(name)[:80]!r}, expected <breed>/<file>")
        elif isinstance(label, str) or label not in range(1, OFFICIAL_CLASSES + 1):
            problems.add(f"{path.name}, row {number}: {name} has label {label}, expected 1 to {OFFICIAL_CLASSES}")
        else:
            rows.append((name, int(label)))
    return rows


def _load(path: Path) -> tuple[list[str | float], list[str | float]]:
    """Returns the variables ``file_list`` and ``labels`` of a MATLAB file."""
    try:
        content = read_mat_lists(path, ("file_list", "labels"), max_bytes=_MAX_LIST_BYTES, max_rows=_MAX_ROWS)
    except FileNotFoundError:
        raise InputError(f"There is no file '{path}', which the official data set has. {_RESTORE}") from None
    except (OSError, MatError) as error:
        raise InputError(f"'{path}' can't be read as a MATLAB file of version 5 to 7.2: {error}. {_RESTORE}") from error
    files, labels = content.get("file_list"), content.get("labels")
    if files is None or labels is None or len(files) != len(labels):
        raise InputError(f"'{path}': expected 'file_list' and 'labels' with one row for each image. {_RESTORE}")
    return files, labels
