"""What is asked of a data set: one request that every loader by name understands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tmkd_plugin.data.dataset import DEFAULT_MAX_GIGABYTES, Limits

AugmentationName = Literal["crop_flip", "resized_crop"]


def _silent(line: str) -> None:
    """Says nothing."""


@dataclass(frozen=True)
class DatasetRequest:
    """A data set by name, and how it is to be loaded.

    Attributes:
        name: The data set's name, such as ``cub200``.
        data_dir: The folder that holds data sets, each in the folder that its archive unpacks to.
        image_size: Height and width of the images in pixels; ``None`` for the data set's own.
        limits: The most images of each split.
        validation_fraction: Share of the training images that validation takes; ``None`` for the data set's own. Without
            effect where the official split has a validation part.
        augmentation: ``crop_flip`` (padding by an eighth, random crop, flip; pixels are held in memory) or
            ``resized_crop`` (random resized crop, flip; files are decoded again in each epoch); ``None`` for the
            data set's own.
        max_gigabytes: The most memory that pixels may take, in 1e9 bytes.
        workers: Processes that decode files of a streamed data set; 0 decodes in the training process. No result depends
            on it.
        download: Whether files that are missing may be downloaded.
        progress: Called as ``progress(done, total)`` while images are read.
        say: Called with each line for the user, such as what is being downloaded.
    """

    name: str
    data_dir: Path
    image_size: int | None = None
    limits: Limits = field(default_factory=Limits)
    validation_fraction: float | None = None
    augmentation: AugmentationName | None = None
    max_gigabytes: float = DEFAULT_MAX_GIGABYTES
    workers: int = 0
    download: bool = True
    progress: Callable[[int, int], None] | None = None
    say: Callable[[str], None] = _silent
