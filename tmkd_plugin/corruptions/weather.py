"""Snow, frost, fog and brightness."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tmkd_plugin.corruptions.blur import clipped_zoom, smeared
from tmkd_plugin.corruptions.draws import Draws
from tmkd_plugin.corruptions.fractal import plasma_fractal, power_of_two
from tmkd_plugin.corruptions.frost_pictures import fitted, procedural_pictures
from tmkd_plugin.corruptions.pixels import Images, fractions, truncated
from tmkd_plugin.corruptions.severities import Strength

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def snow(images: Images, strength: Strength, draws: Draws) -> Images:
    """Whitens each image and lays falling flakes over it, and the same flakes turned by 180 degrees.

    ``strength``: mean and standard deviation of the flakes' noise, its enlargement, the threshold below which there is no
    flake, radius and sigma of their smear, and the share of the image that is not whitened.

    The published operation; the smear is that of ``motion_blur`` in place of ImageMagick's, along a line of -135 to -45
    degrees.
    """
    mean, sd, enlargement, threshold, radius, sigma, kept = strength
    count, side = images.shape[:2]
    flakes = clipped_zoom(mean + sd * draws.normal(side, side), enlargement)
    flakes[flakes < threshold] = 0
    layer = truncated(flakes)
    angles = draws.uniform(-135, -45)
    for position in range(count):
        layer[position] = smeared(layer[position], radius, sigma, angles[position])
    pixels = fractions(images).astype(np.float32)
    grey = (pixels * _LUMA).sum(axis=-1, keepdims=True)
    whitened = np.float32(kept) * pixels + np.float32(1 - kept) * np.maximum(pixels, grey * 1.5 + 0.5)
    falling = fractions(layer)[..., None]
    return truncated(whitened + falling + np.rot90(falling, k=2, axes=(1, 2)))


def fog(images: Images, strength: Strength, draws: Draws) -> Images:
    """Adds a cloud to each image and scales the sum back to the image's own largest value.

    ``strength``: how thick the cloud is, and the decay of its finer structure. The published operation, in distribution; the
    cloud's side is the smallest power of two that is at least that of the images (as published for 32, 64 and 224 px).
    """
    thickness, decay = strength
    side = images.shape[1]
    clouds = plasma_fractal(power_of_two(side), decay, lambda count: draws.uniform(-1, 1, count))
    pixels = fractions(images)
    brightest = pixels.max(axis=(1, 2, 3), keepdims=True)
    foggy = pixels + thickness * clouds[:, :side, :side, None]
    return truncated(foggy * brightest / (brightest + thickness))


def frost(images: Images, strength: Strength, draws: Draws, pictures: Sequence[Images] | None = None) -> Images:
    """Adds a random piece of a random picture of frost to each image; ``strength``: the weights of image and frost.

    The published formula. The published pictures are photographs that can't be passed on here; without ``pictures`` procedural
    ones stand in (see ``frost_pictures``), so that severities are alike and pixels are not.

    Args:
        images: uint8 (N, S, S, 3).
        strength: See above.
        draws: Which picture, and which piece of it.
        pictures: uint8 (h, w, 3) each, RGB, in full size; ``None`` for the procedural ones.
    """
    of_image, of_frost = strength
    side = images.shape[1]
    scaled = [fitted(picture, side) for picture in pictures or procedural_pictures()]
    chosen, places = draws.integers(0, len(scaled)), draws.uniform(0, 1, 2)
    frosted = np.empty_like(images)
    for position, (image, place) in enumerate(zip(images, places, strict=True)):
        picture = scaled[chosen[position]]
        # As published: the last row and column of places are never taken, unless there are no others.
        top, left = (int(share * max(1, size - side)) for share, size in zip(place, picture.shape, strict=False))
        piece = picture[top : top + side, left : left + side]
        frosted[position] = np.clip(of_image * image + of_frost * piece, 0, 255).astype(np.uint8)
    return frosted


def brightness(images: Images, strength: Strength, draws: Draws) -> Images:
    """Adds a constant to the value of each pixel in HSV; ``strength``: the constant, on the scale 0..1.

    With hue and saturation kept, HSV to RGB scales the three channels by the ratio of the values, and a black pixel becomes
    grey: that is computed directly. It is the published way through HSV up to rounding, at most one grey level.
    """
    del draws  # nothing is random here
    (added,) = strength
    pixels = fractions(images)
    value = pixels.max(axis=-1, keepdims=True)
    brighter = np.clip(value + added, 0, 1)
    scaled = pixels * (brighter / np.where(value > 0, value, 1))
    return truncated(np.where(value > 0, scaled, brighter))
