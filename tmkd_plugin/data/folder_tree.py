"""Finds the images of a folder: its splits, its classes, the files of each; nothing is opened.

Files count by their ending, folders below a class folder belong to the class, hidden files are ignored, links followed.
"""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from tmkd_plugin.errors import InputError

IMAGE_ENDINGS = frozenset(
    (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
SPLIT_FOLDERS = {
    "train": "train",
    "test": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}
EXPECTED = "Expected train/<class>/ and test/<class>/ (val/<class>/ if you have one), or one folder for each class"
_IGNORED = frozenset(("thumbs.db", "desktop.ini", "__macosx"))
_SHOWN = 10


@dataclass(frozen=True)
class FolderTree:
    """The images of a folder by split and class.

    Attributes:
        root: The folder that was given.
        classes: Names of the class folders, sorted; the place of a name is its label.
        folders: The folder of each split: ``train``, ``test`` and perhaps ``validation``, or only ``all``.
        files: For each split and class: paths below the split's folder, with ``/``, sorted.
    """

    root: Path
    classes: list[str]
    folders: dict[str, Path]
    files: dict[str, dict[str, list[str]]]


def read_tree(root: Path, *, least_classes: int = 2) -> FolderTree:
    """Lists a folder of images and refuses whatever can't be trained on.

    Args:
        root: The folder.
        least_classes: With fewer it is refused: 2 to train on it, 1 to measure on it.

    Raises:
        InputError: The folder is missing, a file, empty or unreadable; no, one, empty or differing classes.
    """
    _check_folder(root)
    folders = _find_splits(root)
    files = {split: _list_classes(folder) for split, folder in folders.items()}
    _check_classes(root, folders, files, least_classes)
    return FolderTree(root, sorted(next(iter(files.values()))), folders, files)


def _find_splits(root: Path) -> dict[str, Path]:
    subfolders = _subfolders(root)
    found: dict[str, list[Path]] = {}
    for folder in subfolders:
        split = SPLIT_FOLDERS.get(folder.name.lower())
        if split:
            found.setdefault(split, []).append(folder)
    # A class may be called "train": on its own, and with images of its own, it is one class of several.
    if not found or ("train" not in found and len(found) < len(subfolders)):
        return {"all": root}
    if len(found) == 1 and any(_has_images(folder) for candidates in found.values() for folder in candidates):
        return {"all": root}
    for split, candidates in found.items():
        if len(candidates) > 1:
            names = ", ".join(f"'{folder.name}'" for folder in candidates)
            raise InputError(f"'{root}' has several folders for the {split} split: {names}. Keep one of them.")
    for split in ("train", "test"):
        if split not in found:
            present = ", ".join(f"{candidates[0].name}/" for candidates in found.values())
            raise InputError(
                f"'{root}' has {present} but no {split}/. {EXPECTED}. Rename a folder, add the missing one, or give "
                "the path of a folder that holds the classes directly; it is split for you."
            )
    folders = {split: candidates[0] for split, candidates in found.items()}
    for (split, folder), (other_split, other) in combinations(folders.items(), 2):
        if _identity(folder) == _identity(other):
            raise InputError(
                f"The {split} and the {other_split} split of '{root}' are the same folder: {folder}, {other}."
            )
    return folders


def _list_classes(folder: Path) -> dict[str, list[str]]:
    classes = {}
    for subfolder in _subfolders(folder):
        classes[subfolder.name] = sorted(_image_keys(subfolder, subfolder.name, {_identity(folder)}))
    return classes


def _check_classes(
    root: Path, folders: dict[str, Path], files: dict[str, dict[str, list[str]]], least_classes: int
) -> None:
    for split, classes in files.items():
        if not classes:
            raise InputError(_no_classes(folders[split]))
    empty = [
        str(folders[split] / name) for split, classes in files.items() for name, paths in classes.items() if not paths
    ]
    if empty:
        hint = _nested_hint(root) if "all" in files else ""
        raise InputError(
            f"{len(empty)} class folder(s) of '{root}' hold no images: {_some(empty)}. "
            f"Images end in {', '.join(sorted(IMAGE_ENDINGS))}. Add images or remove these folders.{hint}"
        )
    for split, classes in files.items():
        if len(classes) == 1 < least_classes:
            (name,) = classes
            raise InputError(
                f"'{folders[split]}' has only one class, '{name}': expected two or more class folders."
                f"{_nested_hint(folders[split])}"
            )
    if "train" in files:
        differences = [_difference(folders["train"], files["train"], folders[split], files[split]) for split in files]
        if any(differences):
            raise InputError(
                f"The class folders of '{root}' differ: {'; '.join(filter(None, differences))}. "
                "Expected the same class folders in every split; rename or remove these."
            )


def _difference(train: Path, classes: dict[str, list[str]], other: Path, others: dict[str, list[str]]) -> str:
    missing, added = sorted(set(classes) - set(others)), sorted(set(others) - set(classes))
    parts = [f"only in {train.name}/: {_some(missing)}"] if missing else []
    parts += [f"only in {other.name}/: {_some(added)}"] if added else []
    return "; ".join(parts)


def _no_classes(folder: Path) -> str:
    names = [entry.name for entry in _entries(folder)]
    if not names:
        return f"The folder '{folder}' is empty. {EXPECTED}."
    if any(_is_image_name(name) for name in names):
        return f"The folder '{folder}' holds images but no class folders. {EXPECTED}; move each image into its class."
    return f"The folder '{folder}' holds no folders, only files: {_some(names)}. {EXPECTED}."


def _nested_hint(folder: Path) -> str:
    """Names the folder below that looks like what was meant, such as ``CUB_200_2011/images``."""
    for subfolder in _subfolders(folder):
        if len(_subfolders(subfolder)) > 1:
            return f" Did you mean '{subfolder}', which holds several folders?"
    return ""


def _check_folder(root: Path) -> None:
    try:
        mode = os.stat(root).st_mode
    except PermissionError:
        raise InputError(f"No permission to read '{root}'. Change its permissions or give another folder.") from None
    except (OSError, ValueError):
        raise InputError(f"There is no folder '{root}'.{_nearest(root)} {EXPECTED}.") from None
    if not stat.S_ISDIR(mode):
        unpack = " Unpack it first." if root.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".npz") else ""
        raise InputError(f"'{root}' is a file, not a folder of images.{unpack} {EXPECTED}.")


def _nearest(root: Path) -> str:
    """Suggests what a wrong path may have meant: the sibling with the most similar name."""
    missing = root
    while not os.path.isdir(missing.parent) and missing.parent != missing:
        missing = missing.parent
    try:
        siblings = sorted(entry.name for entry in os.scandir(missing.parent) if _is_folder(entry))
    except OSError:
        return ""
    near = difflib.get_close_matches(missing.name, siblings, n=1, cutoff=0.5)
    if near:
        return f" Did you mean '{missing.parent / near[0]}'?"
    return f" The nearest folder that exists is '{missing.parent}'."


def _subfolders(folder: Path) -> list[Path]:
    return [folder / entry.name for entry in _entries(folder) if _is_folder(entry)]


def _has_images(folder: Path) -> bool:
    return any(_is_image_name(entry.name) and not _is_folder(entry) for entry in _entries(folder))


def _image_keys(folder: Path, key: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    """Yields the images below a folder as ``key/...``; no folder is read twice, so that links in a circle end."""
    identity = _identity(folder)
    if identity in seen:
        return
    seen.add(identity)
    for entry in _entries(folder):
        if _is_folder(entry):
            yield from _image_keys(folder / entry.name, f"{key}/{entry.name}", seen)
        elif _is_image_name(entry.name):
            yield f"{key}/{entry.name}"


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Lists a folder without hidden files, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if entry.name[0] != "." and entry.name.lower() not in _IGNORED]
    except OSError as error:
        raise InputError(
            f"Can't read the folder '{folder}': {error.strerror}. Change its permissions or give another folder."
        ) from None
    return sorted(visible, key=lambda entry: entry.name)


def _identity(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_ENDINGS


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:_SHOWN]) + more
