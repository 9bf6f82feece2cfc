"""Contrast, elastic transform, pixelation and JPEG compression."""

from __future__ import annotations

import io

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from tmkd_plugin.corruptions.draws import Draws
from tmkd_plugin.corruptions.pixels import Images, fractions, truncated
from tmkd_plugin.corruptions.severities import Strength


def contrast(images: Images, strength: Strength, draws: Draws) -> Images:
    """Moves every value towards the mean of its channel in its image; ``strength``: the share of the distance that stays.

    The published formula in float64.
    """
    del draws  # nothing is random here
    (kept,) = strength
    pixels = fractions(images)
    means = pixels.mean(axis=(1, 2), keepdims=True)
    return truncated((pixels - means) * kept + means)


def elastic_transform(images: Images, strength: Strength, draws: Draws) -> Images:
    """Warps each image affinely, then locally by a smooth random displacement.

    ``strength``: height and sigma of the displacement and the range of the affine map's three corners, each as a share of the
    side. The published operation with the same functions (OpenCV's ``warpAffine``; SciPy's Gaussian, which scikit-image calls,
    and ``map_coordinates``), in distribution.
    """
    side = images.shape[1]
    height, sigma, corner_range = (share * side for share in strength)
    moves = draws.uniform(-corner_range, corner_range, 3, 2).astype(np.float32)
    fields = draws.uniform(-1, 1, 2, side, side)
    smooth = gaussian_filter(fields, (0, 0, sigma, sigma), mode="reflect", truncate=3) * height
    warped = np.empty_like(images)
    for position, image in enumerate(images):
        pixels = (image / np.float32(255)).astype(np.float32)
        moved = _affinely_moved(pixels, moves[position])
        warped[position] = truncated(_displaced(moved, *smooth[position].astype(np.float32)))
    return warped


def _affinely_moved(pixels: NDArray[np.float32], moves: NDArray[np.float32]) -> NDArray[np.float32]:
    """Warps an image so that three corners of its middle third move by (3, 2) pixels; borders are mirrored."""
    side = pixels.shape[0]
    middle, third = side // 2, side // 3
    corners = np.array([[1, 1], [1, -1], [-1, -1]], dtype=np.float32) * third + np.float32(middle)
    matrix = cv2.getAffineTransform(corners, corners + moves)
    moved: NDArray[np.float32] = cv2.warpAffine(pixels, matrix, (side, side), borderMode=cv2.BORDER_REFLECT_101)
    return moved


def _displaced(
    pixels: NDArray[np.float32], across: NDArray[np.float32], down: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Takes each pixel from elsewhere, linearly interpolated; ``across`` and ``down`` are float32 (S, S) in pixels."""
    rows, columns = np.indices(pixels.shape[:2])
    places = np.stack([rows + down, columns + across])
    channels = [map_coordinates(pixels[..., channel], places, order=1, mode="reflect") for channel in range(3)]
    return np.stack(channels, axis=-1)


def pixelate(images: Images, strength: Strength, draws: Draws) -> Images:
    """Shrinks and enlarges each image with box filters; ``strength``: the share of the side that is left between.

    The published calls of Pillow, bit for bit.
    """
    del draws  # nothing is random here
    side = images.shape[1]
    small = int(side * strength[0])
    box = Image.Resampling.BOX
    return np.stack(
        [np.asarray(Image.fromarray(image).resize((small, small), box).resize((side, side), box)) for image in images]
    )


def jpeg_compression(images: Images, strength: Strength, draws: Draws) -> Images:
    """Writes each image as JPEG and reads it again; ``strength``: the quality.

    The published calls of Pillow, bit for bit where its JPEG library is the same.
    """
    del draws  # nothing is random here
    return np.stack([_through_jpeg(image, int(strength[0])) for image in images])


def _through_jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    with Image.open(file) as read:
        return np.asarray(read)
