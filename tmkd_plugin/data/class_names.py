"""The class names of a data set in the order of its labels, without its images."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from tmkd_plugin.data.list_files import ListProblems, read_rows
from tmkd_plugin.data.loading import NAMED_DATASETS, default_data_dir
from tmkd_plugin.errors import InputError, unknown_name
from tmkd_plugin.prompts import check_class_names, readable

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle caterpillar
cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl
hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road
rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
DTD = """
banded blotchy braided bubbly bumpy chequered cobwebbed cracked crosshatched crystalline dotted fibrous flecked freckled frilly
gauzy grid grooved honeycombed interlaced knitted lacelike lined marbled matted meshed paisley perforated pitted pleated
polka_dotted porous potholed scaly smeared spiralled sprinkled stained stratified striped studded swirly veined waffled woven
wrinkled zigzagged
"""
"""Official names of classes; a space in a name is written ``_``."""

_LISTS = {
    "cub200": "classes.txt",
    "dtd": "labels/train1.txt",
    "stanford_dogs": "train_list.mat",
    "tiny_imagenet": "wnids.txt",
}
"""The file of a data set's folder that tells its class names, the first of them where there are several."""
_MODULES = {"cub200": "cub"}


def class_names_of_dataset(name_or_path: str, data_dir: str | Path | None = None) -> list[str]:
    """Returns the class names of a data set, those that ``load_dataset`` gives it; no image is read.

    Names that differ from one copy of a data set to the next come from its list files, the others from here.

    Args:
        name_or_path: One of ``NAMED_DATASETS``, or a folder of images.
        data_dir: The folder of the data sets by name; None for ``default_data_dir()``.

    Raises:
        InputError: There is no such data set, or its names are in list files that are not there or can't be used.
    """
    folder = default_data_dir() if data_dir is None else Path(data_dir).expanduser()
    if name_or_path in _LISTS and (root := _root(name_or_path, folder)) is not None:
        return check_class_names(_from_lists(name_or_path, root))
    if (fixed := _fixed_names(name_or_path)) is not None:
        return check_class_names(fixed)
    if name_or_path in _LISTS:
        expected = folder / _module(name_or_path).FOLDER / _LISTS[name_or_path]
        raise InputError(
            f"The class names of '{name_or_path}' are in its list files, but there is no {expected}. Give the "
            "folder that holds them with --data-dir, or the names themselves with --classes FILE, one a line, in order."
        )
    path = Path(name_or_path).expanduser()
    if not path.is_dir():
        hint = "A folder of images is given by its path."
        raise InputError(f"{unknown_name('data set', name_or_path, NAMED_DATASETS)} {hint}")
    from tmkd_plugin.data.folder_tree import read_tree
    from tmkd_plugin.data.image_folder import class_names_of

    return check_class_names(class_names_of(read_tree(path).classes))


def _fixed_names(name: str) -> list[str] | None:
    if name == "digits":
        from tmkd_plugin.data import digits

        return list(digits.CLASS_NAMES)
    if name == "rafdb":
        from tmkd_plugin.data import rafdb

        return list(rafdb.CLASS_NAMES)
    names = {"cifar10": CIFAR10, "cifar100": CIFAR100, "dtd": DTD}.get(name)
    return None if names is None else [readable(word) for word in names.split()]


def _root(name: str, data_dir: Path) -> Path | None:
    """Returns the data set's folder: one in the folder of data sets, or that folder itself; None if it is not there."""
    candidates = (data_dir / _module(name).FOLDER, data_dir)
    return next((root for root in candidates if (root / _LISTS[name]).exists()), None)


def _from_lists(name: str, root: Path) -> list[str]:
    problems = ListProblems(name, root)
    if name == "cub200":  # the other lists are about images
        from tmkd_plugin.data.image_folder import class_names_of

        rows = read_rows(root / _LISTS[name], ("class id", "class folder"), problems)
        names = class_names_of([folder for _, (_, folder) in rows])
    else:
        names = getattr(_module(name), f"read_{name}")(root, problems).class_names
    problems.raise_if_any()
    return names


def _module(name: str) -> Any:
    return importlib.import_module(f"tmkd_plugin.data.{_MODULES.get(name, name)}")
