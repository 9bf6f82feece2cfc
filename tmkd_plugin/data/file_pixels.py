"""Pixels from the files of a split: decoded, cropped and flipped, in worker processes where there are any.

Each image's draws are a function of seed, epoch and its place in the split, so that the pixels depend neither on the number
of workers nor on the batches.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from tmkd_plugin.data.crop_flip import augment, draw_augmentation
from tmkd_plugin.data.dataset import Augmentation
from tmkd_plugin.data.decode import MAX_PIXELS, UnusableImageError, decode_image, read_image
from tmkd_plugin.data.file_split import FileSplit
from tmkd_plugin.errors import InputError, RunError
from tmkd_plugin.randomness import forked_random_state, generator_for

_SECONDS_BETWEEN_LOOKS = 1.0

Pixels: TypeAlias = NDArray[np.uint8]
ReadImage: TypeAlias = Callable[[Path, int], Pixels]
"""Reads the file of one image, given also its place in the split; returns uint8 (S,S,3)."""


def training_pixels(
    split: FileSplit, parts: Sequence[Tensor], augmentation: Augmentation, seed: int, epoch: int
) -> Iterator[Tensor]:
    """Returns the augmented images of one epoch, batch by batch.

    With ``resized_crop``: torchvision's RandomResizedCrop (aspect ratios 3/4 to 4/3, bilinear with antialiasing) and
    RandomHorizontalFlip. Otherwise what a split in memory goes through: the central square of an image is resized to the image
    size, padded, cropped and flipped.

    Args:
        split: The files.
        parts: The places in the split that each batch has, int64 (B,) each.
        augmentation: What happens to the images.
        seed: Of the draws.
        epoch: Likewise.

    Returns:
        An iterator over uint8 (B,3,S,S) on the CPU; a file that can't be used ends it with an ``InputError``.
    """
    read: ReadImage
    if augmentation.resized_crop is None:
        draws = draw_augmentation(len(split), augmentation, seed, epoch)
        read = partial(_cropped_and_flipped, size=split.image_size, draws=draws, padding=augmentation.crop_padding)
    else:
        flip = [v2.RandomHorizontalFlip()] if augmentation.flip else []
        crop = v2.RandomResizedCrop(split.image_size, scale=augmentation.resized_crop, antialias=True)
        read = partial(_transformed, transform=v2.Compose([crop, *flip]), seed=seed, epoch=epoch)
    return _pixels(split, parts, read, generator_for(seed, "loader workers", epoch))


def evaluation_pixels(split: FileSplit, parts: Sequence[Tensor]) -> Iterator[Tensor]:
    """Returns the images without augmentation: the short side is resized to 256/224 of S, the centre is cropped.

    Args:
        split: The files.
        parts: The places in the split that each batch has, int64 (B,) each.

    Returns:
        An iterator over uint8 (B,3,S,S) on the CPU; a file that can't be used ends it with an ``InputError``.
    """
    short = round(split.image_size * 256 / 224)
    transform = v2.Compose([v2.Resize(short, antialias=True), v2.CenterCrop(split.image_size)])
    read = partial(_resized, transform=transform, short=short)
    return _pixels(split, parts, read, generator_for(0, "loader workers"))


def _cropped_and_flipped(file: Path, row: int, *, size: int, draws: Tensor, padding: int) -> Pixels:
    image = torch.from_numpy(decode_image(file, size).transpose(2, 0, 1).copy())[None]
    pixels: Pixels = augment(image, draws[row : row + 1], padding)[0].numpy().transpose(1, 2, 0)
    return pixels


def _transformed(file: Path, row: int, *, transform: v2.Transform, seed: int, epoch: int) -> Pixels:
    image = read_image(file)
    # torchvision draws from the global generator, the only one that it knows.
    with forked_random_state(seed, "augmentation", epoch, row):
        return np.asarray(transform(image))


def _resized(file: Path, row: int, *, transform: v2.Transform, short: int) -> Pixels:
    image = read_image(file)
    # The long side grows along before the centre is cropped.
    if short**2 * max(image.size) / min(image.size) > MAX_PIXELS:
        raise UnusableImageError(f"{image.width} x {image.height} pixels: too narrow to be resized")
    return np.asarray(transform(image))


@dataclass(frozen=True)
class _Fault:
    """Why a batch could not be made; returned, as an error raised in a worker would arrive with its traceback."""

    message: str


class _Batches(Dataset[Pixels | _Fault]):
    """Makes a whole batch, (B,3,S,S), from the places of its images."""

    def __init__(self, split: FileSplit, read: ReadImage) -> None:
        self.root, self.paths, self.image_size, self.read = split.root, split.paths, split.image_size, read

    def __getitem__(self, rows: list[int]) -> Pixels | _Fault:
        pixels = np.empty((len(rows), 3, self.image_size, self.image_size), dtype=np.uint8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large or slightly damaged files: judged here, by name
            for position, row in enumerate(rows):
                file = self.root / self.paths[row]
                try:
                    pixels[position] = self.read(file, row).transpose(2, 0, 1)
                except UnusableImageError as error:
                    return _Fault(f"The image '{file}' can't be used: {error}. Replace or remove it.")
        return pixels


def _pixels(split: FileSplit, parts: Sequence[Tensor], read: ReadImage, generator: torch.Generator) -> Iterator[Tensor]:
    """Runs the reader over all batches, in order, in as many processes as the split says."""
    loader = DataLoader(
        _Batches(split, read),
        batch_size=None,
        sampler=[part.tolist() for part in parts],
        num_workers=split.workers,
        # Arrays travel through pipes. Tensors would take shared memory, of which containers often have 64 MB.
        collate_fn=_unchanged,
        worker_init_fn=_start_worker,
        generator=generator,  # without one, torch seeds its workers from the global generator
    )
    answers = iter(loader)
    try:
        for _ in parts:
            answer = _next(answers)
            if isinstance(answer, _Fault):
                raise InputError(answer.message)
            yield torch.from_numpy(answer)
    finally:
        # The workers end with this object, which an error would keep alive for as long as somebody holds the error.
        del answers


def _next(answers: Iterator[Any]) -> Pixels | _Fault:
    try:
        answer: Pixels | _Fault = next(answers)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise RunError(
            f"A process that decodes images ended ({error}). If memory is short, use fewer workers or smaller batches."
        ) from None
    return answer


def _unchanged(answer: Any) -> Any:
    return answer


def _start_worker(_: int) -> None:
    # Ctrl-C reaches the whole group of processes; the training process alone answers, and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    Image.init()


def _end_with_parent() -> None:
    """Ends this worker when the training process was killed: torch's own watch does not see it while a pipe is full."""
    parent = multiprocessing.parent_process()
    while parent is not None and os.getppid() == parent.pid:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)
