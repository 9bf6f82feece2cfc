"""Contrast and elastic transform against naive loops in float64; pixelation and JPEG against Pillow."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image

from tmkd_plugin.corruptions import corrupt
from tmkd_plugin.corruptions.digital import _affinely_moved
from tmkd_plugin.corruptions.draws import Draws
from tmkd_plugin.corruptions.severities import SIDES, STRENGTHS, strength_of


def hwc(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_contrast_is_the_formula(severity, images):
    (kept,) = strength_of("contrast", severity, 32)
    found = hwc(corrupt(images, "contrast", severity, seed=0, ids=range(6))).astype(np.float64)
    pixels = hwc(images) / 255
    for k, channel in np.ndindex(6, 3):
        values = pixels[k, :, :, channel]
        mean = math.fsum(values.ravel()) / values.size
        exact = 255 * np.clip((values - mean) * kept + mean, 0, 1)
        assert np.all(found[k, :, :, channel] <= exact + 1e-6)
        assert np.all(found[k, :, :, channel] >= exact - 1 - 1e-6)


@pytest.mark.parametrize("side", [32, 64, 100])
def test_pixelation_averages_boxes(side, make_images):
    images = make_images(2, side)
    (share,) = strength_of("pixelate", 4, side)
    small = int(side * share)
    for image, found in zip(hwc(images), hwc(corrupt(images, "pixelate", 4, seed=0, ids=[0, 1])), strict=True):
        shrunk = Image.fromarray(image).resize((small, small), Image.Resampling.BOX)
        np.testing.assert_array_equal(found, np.asarray(shrunk.resize((side, side), Image.Resampling.BOX)))


def test_jpeg_is_written_with_the_published_quality(images):
    for severity in (1, 5):
        (quality,) = strength_of("jpeg_compression", severity, 32)
        for image, found in zip(
            hwc(images), hwc(corrupt(images, "jpeg_compression", severity, seed=0, ids=range(6))), strict=True
        ):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=int(quality))
            np.testing.assert_array_equal(found, np.asarray(Image.open(file)))


def reflected(place: float, side: int) -> float:
    """Borders continued as in ``b a | a b c | c b``, for places between pixels too."""
    period = 2 * side
    place = (place + 0.5) % period
    return min(place, period - place) - 0.5


@pytest.mark.parametrize("severity", [2, 5])
def test_elastic_takes_pixels_from_displaced_places(severity, images):
    shares = strength_of("elastic_transform", severity, 32)
    height, sigma, corners = (share * 32 for share in shares)
    draws = Draws(4, "elastic_transform", severity, [6])
    moves = draws.uniform(-corners, corners, 3, 2).astype(np.float32)[0]
    across, down = (
        height * scipy.ndimage.gaussian_filter(field, sigma, mode="reflect", truncate=3)
        for field in draws.uniform(-1, 1, 2, 32, 32)[0]
    )
    moved = _affinely_moved(hwc(images[:1])[0].astype(np.float32) / np.float32(255), moves).astype(np.float64)
    found = hwc(corrupt(images[:1], "elastic_transform", severity, seed=4, ids=[6]))[0].astype(np.float64)
    for row, column in np.ndindex(32, 32):
        y = min(max(reflected(row + down[row, column], 32), 0), 31)
        x = min(max(reflected(column + across[row, column], 32), 0), 31)
        top, left = min(int(y), 30), min(int(x), 30)
        exact = sum(
            abs(1 - abs(y - (top + j))) * abs(1 - abs(x - (left + i))) * moved[top + j, left + i]
            for j in (0, 1)
            for i in (0, 1)
        )
        difference = 255 * np.clip(exact, 0, 1) - found[row, column]
        assert difference.min() > -0.01
        assert difference.max() < 1.01


def test_the_affine_part_moves_three_corners():
    """On a ramp the warped value at a moved corner is the value at the corner."""
    ramp = np.stack([np.tile(np.arange(32.0), (32, 1)), np.tile(np.arange(32.0)[:, None], (1, 32)), np.zeros((32, 32))])
    moves = np.array([[1, 2], [-2, 1], [0, -1]], dtype=np.float32)
    moved = _affinely_moved(ramp.transpose(1, 2, 0).astype(np.float32), moves)
    for corner, move in zip(([26, 26], [26, 6], [6, 6]), moves, strict=True):
        x, y = (np.array(corner) + move).astype(int)
        np.testing.assert_allclose(moved[y, x, :2], corner, atol=0.1)


@pytest.mark.parametrize("side", SIDES)
def test_elastic_lengths_are_the_published_ones(side):
    """In pixels: 32 px has a displacement of 0.1 x 32 at severity 5, 64 px of 0.16 x 64, 224 px of 0.12 x 244."""
    height = STRENGTHS["elastic_transform"][side][4][0] * side
    assert height == pytest.approx({32: 3.2, 64: 10.24, 224: 29.28}[side])
