"""DTD, Describable Textures: 47 textures, 1,880 images each for training, validation and test (official split 1).

M. Cimpoi, S. Maji, I. Kokkinos, S. Mohamed, A. Vedaldi, Describing Textures in the Wild, CVPR 2014.
"""

from __future__ import annotations

from pathlib import Path

from tmkd_plugin.data.archives import ArchiveSource, prepare_folder
from tmkd_plugin.data.dataset import ImageDataset
from tmkd_plugin.data.list_files import ListProblems, read_rows
from tmkd_plugin.data.listed_images import ListedImage, ListedImages, dataset_from_list, say_counts
from tmkd_plugin.data.request import DatasetRequest

NAME = "dtd"
FOLDER = "dtd"
# Address and checksum as in torchvision.datasets.DTD.
ARCHIVE = ArchiveSource(
    url="https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
    file_name="dtd-r1.0.1.tar.gz",
    md5="fff73e5086ae6bdbea199a49dfb8a4c1",
    size=625_239_812,
    inside=FOLDER,
)
LISTS = {"train": "train1.txt", "validation": "val1.txt", "test": "test1.txt"}
OFFICIAL_COUNTS = {"train": 1880, "validation": 1880, "test": 1880}
IMAGE_SIZE = 224


def load_dtd(request: DatasetRequest) -> ImageDataset:
    """Loads DTD with the first of its ten official splits, which has a validation part of its own.

    Class names are the folders' as words: "lacelike", "polka dotted". Labels follow the sorted folders, as in torchvision.

    Args:
        request: What is asked for. By default images have 224 px and training images go through random resized crops.
            ``validation_fraction`` is without effect.

    Raises:
        InputError: The folder is missing, or its lists and images don't agree; everything is named in one message.
    """
    root = prepare_folder(NAME, request, FOLDER, ARCHIVE, marker="labels/train1.txt", max_bytes=2 * 10**9)
    problems = ListProblems(NAME, root)
    listed = read_dtd(root, problems)
    say_counts(listed, OFFICIAL_COUNTS, request.say)
    return dataset_from_list(
        listed, request, default_size=IMAGE_SIZE, default_augmentation="resized_crop", problems=problems
    )


def read_dtd(root: Path, problems: ListProblems) -> ListedImages:
    """Reads the list files of split 1, whose rows are ``banded/banded_0002.jpg``. No image is looked for.

    Args:
        root: The folder that holds ``images`` and ``labels``.
        problems: Takes rows that can't be used; they are left out.

    Returns:
        The images of each split in the order of the lists.
    """
    rows = {split: _read_list(root / "labels" / name, problems) for split, name in LISTS.items()}
    classes = sorted({texture for part in rows.values() for texture, _ in part})
    labels = {texture: label for label, texture in enumerate(classes)}
    parts = {
        split: [ListedImage(f"images/{texture}/{image}", labels[texture]) for texture, image in part]
        for split, part in rows.items()
    }
    class_names = [texture.replace("_", " ").replace("-", " ") for texture in classes]
    return ListedImages(NAME, root, class_names, parts["train"], parts["test"], parts["validation"])


def _read_list(path: Path, problems: ListProblems) -> list[tuple[str, str]]:
    """Returns (class, file) of each row."""
    rows = []
    for number, (given,) in read_rows(path, ("path",), problems):
        texture, slash, image = given.partition("/")
        if not (texture and slash and image) or "/" in image:
            problems.add(f"{path.name}, row {number}: {given[:80]!r}, expected <class>/<file>")
        else:
            rows.append((texture, image))
    return rows
