"""CUB-200-2011: 200 species of birds, 5,994 training and 5,794 test photographs.

C. Wah, S. Branson, P. Welinder, P. Perona, S. Belongie, The Caltech-UCSD Birds-200-2011 Dataset, CNS-TR-2011-001, 2011.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tmkd_plugin.data.archives import ArchiveSource, prepare_folder
from tmkd_plugin.data.dataset import ImageDataset
from tmkd_plugin.data.image_folder import class_names_of
from tmkd_plugin.data.list_files import ListProblems, read_rows, whole_number
from tmkd_plugin.data.listed_images import ListedImage, ListedImages, dataset_from_list, say_counts
from tmkd_plugin.data.request import DatasetRequest

NAME = "cub200"
FOLDER = "CUB_200_2011"
ARCHIVE = ArchiveSource(
    url="https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
    file_name="CUB_200_2011.tgz",
    md5="97eceeb196236b17998738112f37df78",
    size=1_150_585_339,
    inside=FOLDER,  # beside it lies attributes.txt
)
OFFICIAL_COUNTS = {"train": 5994, "test": 5794}
IMAGE_SIZE = 224


def load_cub200(request: DatasetRequest) -> ImageDataset:
    """Loads CUB-200-2011, or a tree in its layout with fewer classes.

    Class names are the folders' as words, "Black footed Albatross". Validation takes 10 % of the training images by default.

    Args:
        request: What is asked for. By default images have 224 px and training images go through random resized crops.

    Raises:
        InputError: The folder is missing, or its lists and images don't agree; everything is named in one message.
    """
    root = prepare_folder(NAME, request, FOLDER, ARCHIVE, marker="images.txt", max_bytes=3 * 10**9)
    problems = ListProblems(NAME, root)
    listed = read_cub200(root, problems)
    say_counts(listed, OFFICIAL_COUNTS, request.say)
    return dataset_from_list(
        listed, request, default_size=IMAGE_SIZE, default_augmentation="resized_crop", problems=problems
    )


def read_cub200(root: Path, problems: ListProblems) -> ListedImages:
    """Reads the four list files: classes, images, their classes, and their splits. No image is looked for.

    Args:
        root: The folder ``CUB_200_2011``.
        problems: Takes rows that can't be used, image ids that are not in all files, and images whose folder is not their
            class; the images they belong to are left out.

    Returns:
        The images of each split in the order of their ids.
    """
    folders = _read_classes(root, problems)
    paths = _by_id(root, "images.txt", "path", problems)
    labels = _by_id(root, "image_class_labels.txt", "class id", problems)
    splits = _by_id(root, "train_test_split.txt", "1 for training or 0 for test", problems)
    files = {"images.txt": paths, "image_class_labels.txt": labels, "train_test_split.txt": splits}
    _compare_ids(files, problems)
    parts: dict[str, list[ListedImage]] = {"1": [], "0": []}
    for image in sorted(set(paths) & set(labels) & set(splits)):
        row = _image(image, paths[image], labels[image], folders, problems)
        if splits[image] not in parts:
            problems.add(
                f"train_test_split.txt: image {image} has {splits[image]!r}, expected 1 (training) or 0 (test)"
            )
        elif row is not None:
            parts[splits[image]].append(row)
    return ListedImages(NAME, root, class_names_of(folders), train=parts["1"], test=parts["0"])


def _read_classes(root: Path, problems: ListProblems) -> list[str]:
    """Returns the class folders; their ids must be 1 to K in order."""
    folders = []
    for number, (given, folder) in read_rows(root / "classes.txt", ("class id", "class folder"), problems):
        folders.append(folder)
        if whole_number(given) != len(folders):
            problems.add(f"classes.txt, row {number}: class id {given!r}, expected {len(folders)}")
    return folders


def _by_id(root: Path, name: str, column: str, problems: ListProblems) -> dict[int, str]:
    """Returns the second column of a list file by image id."""
    values: dict[int, str] = {}
    for number, (given, value) in read_rows(root / name, ("image id", column), problems):
        image = whole_number(given)
        if image is None:
            problems.add(f"{name}, row {number}: image id {given!r}, expected a whole number")
        elif image in values:
            problems.add(f"{name}, row {number}: image id {image} for the second time")
        else:
            values[image] = value
    return values


def _compare_ids(files: dict[str, dict[int, str]], problems: ListProblems) -> None:
    every: Iterable[int] = sorted(set().union(*files.values()))
    for image in every:
        absent = [name for name, values in files.items() if image not in values]
        present = [name for name, values in files.items() if image in values]
        if absent:
            problems.add(f"image {image}: in {' and '.join(present)}, but not in {' and '.join(absent)}")


def _image(image: int, path: str, label: str, folders: list[str], problems: ListProblems) -> ListedImage | None:
    place = whole_number(label)
    if place is None or not 1 <= place <= len(folders):
        problems.add(f"image_class_labels.txt: image {image} has class {label!r}, expected 1 to {len(folders)}")
        return None
    folder = folders[place - 1]
    if path.split("/")[0] != folder:
        problems.add(
            f"images.txt: image {image} is {path!r}, but image_class_labels.txt says class {place}, '{folder}'"
        )
        return None
    return ListedImage(f"images/{path}", place - 1)
