"""The 15 standard corruptions at 5 severities of Hendrycks and Dietterich (arXiv 1903.12261).

    corrupted = corrupt(images, "fog", 3, seed=0, ids=split.ids)

The operations are the published ones with the published parameters (``severities``). Every draw is a function of seed,
corruption, severity and image id, so a corrupted image depends on nothing else in its batch, and draws are equal to the
published ones in distribution only. What else differs is said at each function; in short: frost has procedural pictures unless
a folder of pictures is given, motion blur and the smear of snow are ImageMagick's algorithm without ImageMagick, and images
are not written to disk as JPEG in between, as those of ImageNet-C and Tiny-ImageNet-C were.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from tmkd_plugin.corruptions.blur import defocus_blur, glass_blur, motion_blur, zoom_blur
from tmkd_plugin.corruptions.digital import contrast, elastic_transform, jpeg_compression, pixelate
from tmkd_plugin.corruptions.draws import Draws
from tmkd_plugin.corruptions.frost_pictures import read_pictures
from tmkd_plugin.corruptions.noise import gaussian_noise, impulse_noise, shot_noise
from tmkd_plugin.corruptions.pixels import Images
from tmkd_plugin.corruptions.severities import SEVERITIES, Strength, strength_of
from tmkd_plugin.corruptions.weather import brightness, fog, frost, snow
from tmkd_plugin.errors import InputError

Corruption: TypeAlias = Callable[[Images, Strength, Draws], Images]

CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
}
"""Name -> function, in the order of the publication."""

VERSION = 1
"""Raised whenever the same arguments give other pixels, so that no result of older ones is taken for one of these."""

SMALLEST_SIDE = 8
_VALUES = 2**18  # in one go: arrays of float64 then stay in a processor's cache

__all__ = ["CORRUPTIONS", "SEVERITIES", "SMALLEST_SIDE", "VERSION", "Corruption", "corrupt"]


def corrupt(
    images: Tensor, name: str, severity: int, *, seed: int, ids: Tensor | Iterable[int], frost_dir: Path | None = None
) -> Tensor:
    """Corrupts images.

    Args:
        images: uint8 (N, 3, S, S), RGB, S at least 8; on any device. The parameters are those of the published side (32, 64,
            224) that is nearest to S.
        name: One of ``CORRUPTIONS``.
        severity: From 1, the weakest, to 5.
        seed: Of the draws, at least 0.
        ids: int64 (N,), the id of each image: images of the same id get the same draws.
        frost_dir: A folder with pictures of frost; ``None`` for procedural ones.

    Returns:
        uint8 (N, 3, S, S) on the device of ``images``; they are not changed.

    Raises:
        InputError: Unknown name or severity, images of another shape or type, or not one id for each of them.
    """
    _check_images(images)
    side = images.shape[-1]
    strength = strength_of(name, severity, side)
    places = [int(each) for each in (ids.tolist() if isinstance(ids, Tensor) else ids)]
    if len(places) != len(images):
        raise InputError(f"{len(places)} ids for {len(images)} images: expected one id for each image.")
    if not places:
        return images.clone()
    function = CORRUPTIONS[name]
    if name == "frost" and frost_dir is not None:
        function = functools.partial(frost, pictures=read_pictures(frost_dir))
    pixels = images.cpu().permute(0, 2, 3, 1).contiguous().numpy()
    corrupted = np.empty_like(pixels)
    each = max(1, _VALUES // pixels[0].size)
    for start in range(0, len(pixels), each):
        part = slice(start, start + each)
        corrupted[part] = function(pixels[part], strength, Draws(seed, name, severity, places[part]))
    return torch.from_numpy(corrupted).permute(0, 3, 1, 2).contiguous().to(images.device)


def _check_images(images: Tensor) -> None:
    shape = tuple(images.shape)
    square = len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3] >= SMALLEST_SIDE
    if images.dtype != torch.uint8 or not square:
        raise InputError(
            f"Images of shape {shape} and dtype {images.dtype}: expected uint8 (N, 3, S, S), square with S of at least "
            f"{SMALLEST_SIDE} pixels."
        )
