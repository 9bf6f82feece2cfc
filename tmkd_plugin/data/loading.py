"""Data sets by name or by folder."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast, get_args

from tmkd_plugin.data.dataset import DEFAULT_MAX_GIGABYTES, ImageDataset, Limits
from tmkd_plugin.data.file_split import check_workers
from tmkd_plugin.data.request import AugmentationName, DatasetRequest
from tmkd_plugin.errors import InputError, unknown_name

# Module of this package and function; each takes a DatasetRequest.
_LOADERS = {
    "cifar10": "cifar:load_cifar",
    "cifar100": "cifar:load_cifar",
    "cub200": "cub:load_cub200",
    "rafdb": "rafdb:load_rafdb",
    "dtd": "dtd:load_dtd",
    "stanford_dogs": "stanford_dogs:load_stanford_dogs",
    "tiny_imagenet": "tiny_imagenet:load_tiny_imagenet",
}
NAMED_DATASETS = ("digits", *_LOADERS)


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
    data_dir: str | os.PathLike[str] | None = None,
    augmentation: str | None = None,
    workers: int = 0,
    download: bool = True,
    say: Callable[[str], None] | None = None,
) -> ImageDataset:
    """Loads a data set. Splits and limits are fixed rules: they depend on no seed.

    Args:
        name_or_path: One of ``NAMED_DATASETS``, or a folder with ``train/<class>/`` and ``test/<class>/`` (and ``val/`` or
            ``validation/`` if there is one), or a folder with one tree ``<class>/``, which is split by a hash of the
            file names into 20 % test and the rest.
        image_size: Height and width of the images in pixels; None for the data set's own. Of a folder that is 32 for images of
            at most 48 px on the short side, else 64, and 224 with ``augmentation="resized_crop"``.
        train_limit: The most training images, equally many of each class; the same ones for every seed. Only images
            that are kept are read.
        validation_limit: The same for the validation split.
        test_limit: The same for the test split.
        validation_fraction: Share of the training images that validation takes; None for the data set's own, which is 0.2 for
            folders. Has no effect where there is a validation split already.
        max_gigabytes: The most memory that the pixels may take, in 1e9 bytes.
        progress: Called as ``progress(done, total)`` while images are read.
        data_dir: The folder of the data sets by name; None for ``default_data_dir()``.
        augmentation: ``"crop_flip"`` (padding by an eighth, random crop, flip; images are held in memory) or
            ``"resized_crop"`` (random resized crop, flip; files are decoded again in each epoch); None for the data set's own.
        workers: Processes that decode files in each epoch; 0 decodes in the calling process. No result depends on it.
        download: Whether files of a data set by name that are missing may be downloaded.
        say: Called with each line for the user, such as what is being downloaded; None for silence.

    Raises:
        InputError: The name is unknown, or the data set can't be used; the message names everything that is wrong.
    """
    limits = Limits(train_limit, validation_limit, test_limit)
    name = os.fspath(name_or_path)
    check_workers(workers)
    if augmentation not in (None, *get_args(AugmentationName)):
        raise unknown_name("augmentation", str(augmentation), get_args(AugmentationName))
    if name == "digits":
        from tmkd_plugin.data.digits import load_digits_dataset

        if augmentation is not None:
            raise InputError(
                f"augmentation={augmentation!r}: the digits have their own, a random crop after padding without a flip. "
                "Leave augmentation out."
            )
        return load_digits_dataset(
            image_size=image_size, limits=limits, validation_fraction=validation_fraction, max_gigabytes=max_gigabytes
        )
    request = DatasetRequest(
        name=name,
        data_dir=default_data_dir() if data_dir is None else Path(data_dir).expanduser(),
        image_size=image_size,
        limits=limits,
        validation_fraction=validation_fraction,
        augmentation=cast("AugmentationName | None", augmentation),
        max_gigabytes=max_gigabytes,
        workers=workers,
        download=download,
        progress=progress,
        say=say or _silent,
    )
    if name in _LOADERS:
        return _loader(_LOADERS[name])(request)
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
        augmentation=request.augmentation,
        workers=workers,
    )


def default_data_dir() -> Path:
    """Returns the folder of the data sets by name.

    It is the one named by the environment variable ``TMKD_DATA_DIR``, else ``datasets`` in the folder of all caches:
    ``$TMKD_CACHE``, else ``~/.cache/tmkd``.
    """
    given = os.environ.get("TMKD_DATA_DIR")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("TMKD_CACHE") or "~/.cache/tmkd").expanduser() / "datasets"


def _loader(place: str) -> Callable[[DatasetRequest], ImageDataset]:
    module, _, function = place.partition(":")
    load: Callable[[DatasetRequest], ImageDataset] = getattr(
        importlib.import_module(f"tmkd_plugin.data.{module}"), function
    )
    return load


def _silent(_: str) -> None:
    """Says nothing."""


def _is_path(name: str) -> bool:
    separators = {os.sep, os.altsep or os.sep, "/"}
    return any(separator in name for separator in separators) or name.startswith(("~", ".")) or os.path.lexists(name)
