"""RAF-DB, basic emotions: faces with one of seven expressions, 12,271 for training and 3,068 for test.

S. Li, W. Deng, J. Du, Reliable Crowdsourcing and Deep Locality-Preserving Learning for Expression Recognition in the Wild,
CVPR 2017. The licence lets nobody pass the images on: everyone requests them from the authors.
"""

from __future__ import annotations

from pathlib import Path

from tmkd_plugin.data.archives import prepare_folder
from tmkd_plugin.data.dataset import ImageDataset
from tmkd_plugin.data.list_files import ListProblems, read_rows, whole_number
from tmkd_plugin.data.listed_images import ListedImage, ListedImages, dataset_from_list, say_counts
from tmkd_plugin.data.request import DatasetRequest
from tmkd_plugin.errors import InputError

NAME = "rafdb"
FOLDER = "RAF-DB"
LIST = "EmoLabel/list_patition_label.txt"  # the official spelling
IMAGES = "Image/aligned"
CLASS_NAMES = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")  # labels 1 to 7
INSTRUCTIONS = (
    "Its licence lets nobody pass the images on, so they can't be downloaded here. Request them from the authors as RAF-DB's "
    "page says (http://www.whdeng.cn/RAF/model1.html), with an e-mail address of your university or institute, and put in that "
    "folder, from the part 'basic': EmoLabel/list_patition_label.txt and, from Image/aligned.zip, "
    "Image/aligned/train_00001_aligned.jpg and the others (15,339 images)."
)
OFFICIAL_COUNTS = {"train": 12271, "test": 3068}
IMAGE_SIZE = 224


def load_rafdb(request: DatasetRequest) -> ImageDataset:
    """Loads the aligned faces of RAF-DB, single-label (basic emotions).

    Validation takes 10 % of the training images by default. Nothing is downloaded: the licence forbids it.

    Args:
        request: What is asked for. By default images have 224 px and training images go through random resized crops.

    Raises:
        InputError: The folder is missing (the message says where to request it and where to put what), or its list and
            images don't agree; everything is named in one message.
    """
    root = _prepare(request)
    problems = ListProblems(NAME, root)
    listed = read_rafdb(root, problems)
    say_counts(listed, OFFICIAL_COUNTS, request.say)
    return dataset_from_list(
        listed, request, default_size=IMAGE_SIZE, default_augmentation="resized_crop", problems=problems
    )


def read_rafdb(root: Path, problems: ListProblems) -> ListedImages:
    """Reads the list file, whose rows are ``train_00001.jpg 5``. No image is looked for.

    Args:
        root: The folder that holds ``EmoLabel`` and ``Image``.
        problems: Takes rows that can't be used; they are left out.

    Returns:
        The images of each split in the order of the list.
    """
    parts: dict[str, list[ListedImage]] = {"train": [], "test": []}
    name = LIST.rpartition("/")[2]
    for number, (image, given) in read_rows(root / LIST, ("image", "label"), problems):
        split, stem = image.partition("_")[0], image.removesuffix(".jpg")
        label = whole_number(given)
        if split not in parts or stem == image or "/" in image:
            problems.add(f"{name}, row {number}: {image!r}, expected train_<number>.jpg or test_<number>.jpg")
        elif label is None or not 1 <= label <= len(CLASS_NAMES):
            problems.add(f"{name}, row {number}: {image} has label {given!r}, expected 1 to {len(CLASS_NAMES)}")
        else:
            parts[split].append(ListedImage(f"{IMAGES}/{stem}_aligned.jpg", label - 1))
    return ListedImages(NAME, root, list(CLASS_NAMES), train=parts["train"], test=parts["test"])


def _prepare(request: DatasetRequest) -> Path:
    # The authors' folder `basic` may be there as it came, below RAF-DB or without it.
    for folder in (request.data_dir / FOLDER / "basic", request.data_dir / "basic"):
        if (folder / LIST).exists():
            return _with_images(folder)
    root = prepare_folder(NAME, request, FOLDER, (), marker=LIST, max_bytes=0, instructions=INSTRUCTIONS)
    return _with_images(root)


def _with_images(root: Path) -> Path:
    if not (root / IMAGES).is_dir():
        raise InputError(
            f"The data set '{NAME}' in '{root}' has its list but no folder '{IMAGES}'. Unpack Image/aligned.zip there; its "
            "files are called train_00001_aligned.jpg."
        )
    return root
