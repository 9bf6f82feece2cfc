"""Defocus, glass, motion and zoom blur."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from tmkd_plugin.corruptions.draws import Draws
from tmkd_plugin.corruptions.pixels import Images, fractions, truncated
from tmkd_plugin.corruptions.severities import Strength

_LARGEST_SMALL_DISC = 8
"""Up to this radius the published disc stands in 17 x 17 pixels and is smoothed by 3 x 3, beyond it by 5 x 5."""


def defocus_blur(images: Images, strength: Strength, draws: Draws) -> Images:
    """Convolves with a disc whose edge is smoothed; ``strength``: its radius and the smoothing's sigma in pixels.

    The published operation (OpenCV's ``filter2D`` in float64, borders mirrored without the edge pixel), except that the disc's
    empty margin is cut off: that moves sums by some 1e-16, and a pixel by one level where its exact value is whole.
    """
    del draws  # nothing is random here
    kernel = disc_kernel(*strength)
    return np.stack([truncated(cv2.filter2D(image, -1, kernel)) for image in fractions(images)])


def disc_kernel(radius: float, smoothing: float) -> NDArray[np.float32]:
    """Returns the smoothed disc, float32, odd and square.

    Its sum is 1, but 1.013 and 1.011 for radii of 8 and 10: the published disc reaches the border there, and smoothing
    mirrors it.
    """
    small = radius <= _LARGEST_SMALL_DISC
    reach = _LARGEST_SMALL_DISC if small else radius
    steps = np.arange(-reach, reach + 1)
    disc = (steps[:, None] ** 2 + steps[None, :] ** 2 <= radius**2).astype(np.float32)
    disc /= disc.sum()
    size = 3 if small else 5
    kernel: NDArray[np.float32] = cv2.GaussianBlur(disc, (size, size), sigmaX=smoothing)
    margin = int(np.flatnonzero(kernel.any(axis=0))[0])
    return kernel[margin : len(kernel) - margin, margin : len(kernel) - margin].copy()


def glass_blur(images: Images, strength: Strength, draws: Draws) -> Images:
    """Blurs, lets pixels take the place of near ones, and blurs again.

    ``strength``: sigma of both blurs, how far a pixel is taken from, and how often the image is passed over.

    The published program means to swap two pixels. Its swap of NumPy views copies instead: a pixel is overwritten by one that
    lies 1 to d up or left, 0 to d - 1 down or right, or itself, and nothing comes back. This does what it does. The order
    (from the bottom right) and the margin that stays are the published ones; the blur is SciPy's, which scikit-image calls.
    """
    sigma, distance, passes = strength[0], int(strength[1]), int(strength[2])
    side = images.shape[1]
    blurred = (_gaussian(fractions(images), sigma) * 255).astype(np.uint8)
    rows = np.arange(side - distance, distance, -1)
    targets = (rows[:, None] * side + rows[None, :]).ravel()
    shifts = draws.integers(-distance, distance, passes, len(targets), 2)
    sources = targets + shifts[..., 0] * side + shifts[..., 1]
    order = targets.tolist()
    for image, of_image in zip(blurred, sources, strict=True):
        places = list(range(side * side))
        for of_pass in of_image.tolist():
            for target, source in zip(order, of_pass, strict=True):
                places[target] = places[source]
        image[:] = image.reshape(-1, 3)[places].reshape(image.shape)
    return truncated(_gaussian(fractions(blurred), sigma))


def _gaussian(values: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Smooths each channel of (N, S, S, 3); borders are continued by the edge pixel."""
    smooth: NDArray[np.float64] = gaussian_filter(values, (0, sigma, sigma, 0), mode="nearest", truncate=4.0)
    return smooth


def motion_blur(images: Images, strength: Strength, draws: Draws) -> Images:
    """Smears each image along a line whose angle is drawn from -45 to 45 degrees; ``strength``: radius and sigma in pixels."""
    radius, sigma = strength
    angles = draws.uniform(-45, 45)
    return np.stack([smeared(image, radius, sigma, angle) for image, angle in zip(images, angles, strict=True)])


def smeared(image: NDArray[np.uint8], radius: float, sigma: float, angle: float) -> NDArray[np.uint8]:
    """Smears an image along a line.

    ImageMagick's ``MotionBlurImage``, which the published generators call, written anew: half a Gaussian of
    ``2 * ceil(radius) + 1`` taps, each at the nearest whole pixel along the line, the edge pixels continued. ImageMagick
    computes with 16 bits a value and rounds when it writes 8; here the float64 sum is rounded once, which can differ
    by one grey level at a tie.

    Args:
        image: uint8 (S, S, 3) or (S, S).
        radius: Of the half Gaussian, in pixels.
        sigma: Its standard deviation, in pixels.
        angle: Of the line that a pixel's taps lie on, in degrees, from right towards down.
    """
    taps = 2 * math.ceil(radius) + 1
    weights = np.exp(-(np.arange(taps) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    across, down = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    height, width = image.shape[:2]
    padded = np.pad(image, [(taps, taps)] * 2 + [(0, 0)] * (image.ndim - 2), mode="edge")
    total = np.zeros(image.shape)
    for step, weight in enumerate(weights):
        top = taps + math.ceil(step * down - 0.5)
        left = taps + math.ceil(step * across - 0.5)
        total += weight * padded[top : top + height, left : left + width]
    rounded: NDArray[np.uint8] = np.floor(total + 0.5).clip(0, 255).astype(np.uint8)
    return rounded


def zoom_blur(images: Images, strength: Strength, draws: Draws) -> Images:
    """Averages the image with enlarged copies of itself; ``strength``: the end of their factors, from 1, and the step.

    The published operation, in float32 as there; the copies are interpolated by ``clipped_zoom``.
    """
    del draws  # nothing is random here
    end, step = strength
    factors = np.arange(1, end, step)  # as published: rounding decides whether the end itself is among them
    pixels = fractions(images).astype(np.float32)
    total = np.zeros_like(pixels)
    for factor in factors:
        total += clipped_zoom(pixels, float(factor))
    return truncated((pixels + total) / (len(factors) + 1))


def clipped_zoom(values: NDArray[Any], factor: float) -> NDArray[Any]:
    """Enlarges the middle of square arrays linearly and cuts off what lies beyond their size.

    Equal to the published ``scipy.ndimage.zoom(..., order=1)`` of the middle up to rounding, but for a whole batch at once.

    Args:
        values: Floating (N, S, S) or (N, S, S, C).
        factor: At least 1.
    """
    side = values.shape[1]
    crop = math.ceil(side / factor)
    top = (side - crop) // 2
    enlarged = round(crop * factor)
    trim = (enlarged - side) // 2
    places = np.arange(trim, trim + side) * ((crop - 1) / max(enlarged - 1, 1))
    low = np.minimum(np.floor(places).astype(np.int64), crop - 1)
    high = np.minimum(low + 1, crop - 1)
    share = places - low
    rows = share.reshape(-1, 1, *[1] * (values.ndim - 3))
    columns = share.reshape(-1, *[1] * (values.ndim - 3))
    tall = values[:, top + low] * (1 - rows) + values[:, top + high] * rows
    wide = tall[:, :, top + low] * (1 - columns) + tall[:, :, top + high] * columns
    zoomed: NDArray[Any] = wide.astype(values.dtype)
    return zoomed
