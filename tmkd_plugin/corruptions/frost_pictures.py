"""Pictures of frost: a folder of the user's, or procedural ones with the colours and contrasts of the published photographs."""

from __future__ import annotations

import functools
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from tmkd_plugin.corruptions.fractal import plasma_fractal
from tmkd_plugin.corruptions.pixels import Images
from tmkd_plugin.corruptions.severities import nearest_side
from tmkd_plugin.errors import InputError
from tmkd_plugin.randomness import generator_for

SIDE = 512
"""Height and width of a procedural picture in pixels; the photographs have 315 x 560 to 600 x 900."""

_SCALE = {32: 0.2, 64: 0.3, 224: 1.0}
"""By how much the published generators shrink the photographs, by the side of their images."""

# Mean and standard deviation of red, green and blue in the five photographs that are drawn from; two of them are the same.
_COLOURS = (
    ((78, 149, 166), (27, 16, 15)),
    ((201, 205, 214), (21, 22, 23)),
    ((201, 205, 214), (21, 22, 23)),
    ((138, 153, 165), (28, 28, 30)),
    ((112, 123, 135), (44, 43, 42)),
)
_DECAY = 1.1  # neighbouring pixels then differ as much, for the picture's spread, as in the photographs
_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


_PUBLISHED = [f"frost{number}" for number in range(1, 7)]
_DRAWN = 5  # of the six published pictures the published generators draw from the first five: randint(5)


@functools.cache
def procedural_pictures() -> tuple[Images, ...]:
    """Returns five pictures, uint8 (SIDE, SIDE, 3) each, RGB; always the same.

    Ridges of a random cloud stand for the crystals; each picture has the means and spreads of the colours of one photograph.
    """
    return tuple(_procedural_picture(index) for index in range(len(_COLOURS)))


def _procedural_picture(index: int) -> Images:
    generator = generator_for(0, "frost picture", index)

    def uniform(count: int) -> NDArray[np.float64]:
        return (2 * torch.rand(1, count, generator=generator, dtype=torch.float64) - 1).numpy()

    heights = plasma_fractal(SIDE, _DECAY, uniform)[0]
    crystals = 1 - np.abs(2 * heights - 1)
    crystals = (crystals - crystals.mean()) / crystals.std()
    mean, sd = (np.array(values, dtype=np.float64) for values in _COLOURS[index])
    picture: Images = np.clip(mean + sd * crystals[..., None], 0, 255).astype(np.uint8)
    return picture


@functools.lru_cache(maxsize=1)
def read_pictures(folder: Path) -> tuple[Images, ...]:
    """Reads the pictures of a folder, by name, once for a process: the last folder's stay in memory.

    Args:
        folder: With the six published pictures, ``frost1`` to ``frost6``, of which the first five are read: the published
            generators draw no other. Of any other folder all are.

    Returns:
        uint8 (h, w, 3) each, RGB.

    Raises:
        InputError: There is no folder, it holds no picture, or one can't be read.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder} with pictures of frost. Leave it out for procedural ones.")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _ENDINGS)
    if not files:
        raise InputError(
            f"The folder {folder} holds no picture of frost: expected files that end in {', '.join(_ENDINGS)}."
        )
    if [file.stem for file in files] == _PUBLISHED:
        files = files[:_DRAWN]
    pictures = []
    for file in files:
        pixels = cv2.imdecode(np.frombuffer(file.read_bytes() or b"\0", dtype=np.uint8), cv2.IMREAD_COLOR)
        if pixels is None:
            raise InputError(f"The picture of frost {file} can't be read. Replace or remove it.")
        pictures.append(np.ascontiguousarray(pixels[..., ::-1], dtype=np.uint8))
    return tuple(pictures)


def fitted(picture: Images, side: int) -> Images:
    """Shrinks a picture as the published generators do for images of this side, and no further than they need.

    Args:
        picture: uint8 (h, w, 3).
        side: Of the images, in pixels.

    Returns:
        uint8, at least (side + 1, side + 1, 3).
    """
    published = _SCALE[nearest_side(side)]
    needed = (side + 1) / min(picture.shape[:2])
    if needed > published:
        size = [max(side + 1, round(length * needed)) for length in picture.shape[1::-1]]
        large: Images = cv2.resize(picture, size)
        return large
    small: Images = picture if published == 1 else cv2.resize(picture, (0, 0), fx=published, fy=published)
    return small
