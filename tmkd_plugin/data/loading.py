"""Data sets by name or by folder."""

from __future__ import annotations

import os
from collections.abc import Callable

from tmkd_plugin.data.dataset import DEFAULT_MAX_GIGABYTES, ImageDataset, Limits
from tmkd_plugin.errors import InputError, unknown_name

NAMED_DATASETS = ("digits",)


def load_dataset(
    name_or_path: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    train_limit: int | None = None,
    validation_limit: int | None = None,
    test_limit: int | None = None,
    validation_fraction: float | None = None,
    max_gigabytes: float = DEFAULT_MAX_GIGABYTES,
    progress: Callable[[int, int], None] | None = None,
) -> ImageDataset:
    """Loads a data set into memory. Splits and limits are fixed rules: they depend on no seed.

    Args:
        name_or_path: ``"digits"``, or a folder with ``train/<class>/`` and ``test/<class>/`` (and ``val/`` or
            ``validation/`` if there is one), or a folder with one tree ``<class>/``, which is split by a hash of the
            file names into 20 % test and the rest.
        image_size: Height and width of the images in pixels. By default 32 for digits and for folders whose images are
            at most 48 px on the short side, else 64.
        train_limit: The most training images, equally many of each class; the same ones for every seed. Only images
            that are kept are read.
        validation_limit: The same for the validation split.
        test_limit: The same for the test split.
        validation_fraction: Share of the training images that validation takes: 0.3 for digits, 0.2 for folders by
            default. Has no effect on a folder that brings its own validation split.
        max_gigabytes: The most memory that the pixels may take, in 1e9 bytes.
        progress: Called as ``progress(done, total)`` while images are read.

    Raises:
        InputError: The name is unknown, or the folder can't be used; the message names everything that is wrong.
    """
    limits = Limits(train_limit, validation_limit, test_limit)
    name = os.fspath(name_or_path)
    if name == "digits":
        from tmkd_plugin.data.digits import load_digits_dataset

        return load_digits_dataset(
            image_size=image_size, limits=limits, validation_fraction=validation_fraction, max_gigabytes=max_gigabytes
        )
    if not _is_path(name):
        hint = "A folder of images is given by its path, with a slash: './my_images'."
        raise InputError(f"{unknown_name('data set', name, NAMED_DATASETS)} {hint}")
    from tmkd_plugin.data.image_folder import load_image_folder

    return load_image_folder(
        name,
        image_size=image_size,
        limits=limits,
        validation_fraction=validation_fraction,
        max_gigabytes=max_gigabytes,
        progress=progress,
    )


def _is_path(name: str) -> bool:
    separators = {os.sep, os.altsep or os.sep, "/"}
    return any(separator in name for separator in separators) or name.startswith(("~", ".")) or os.path.lexists(name)
