"""Blurs against naive loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import torch

from tmkd_plugin.corruptions import corrupt
from tmkd_plugin.corruptions.blur import clipped_zoom, disc_kernel, smeared
from tmkd_plugin.corruptions.draws import Draws
from tmkd_plugin.corruptions.severities import SIDES, STRENGTHS, strength_of


def hwc(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy().astype(np.float64)


def mirrored(place: int, side: int) -> int:
    """Borders continued as in ``c b | a b c | b a``."""
    place = abs(place)
    return place if place < side else 2 * (side - 1) - place


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_defocus_is_a_convolution_with_a_smoothed_disc(severity, images):
    radius, smoothing = strength_of("defocus_blur", severity, 32)
    # The disc on 17 x 17 whole pixels, then a Gaussian of 3 taps down and across.
    disc = np.array([[float(x * x + y * y <= radius**2) for x in range(-8, 9)] for y in range(-8, 9)])
    disc /= disc.sum()
    taps = np.array([math.exp(-(k**2) / (2 * smoothing**2)) for k in (-1, 0, 1)])
    taps /= taps.sum()
    kernel = np.zeros((17, 17))
    for y in range(17):
        for x in range(17):
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    kernel[y, x] += taps[dy + 1] * taps[dx + 1] * disc[mirrored(y + dy, 17), mirrored(x + dx, 17)]
    found = hwc(corrupt(images, "defocus_blur", severity, seed=0, ids=range(6)))
    pixels = hwc(images) / 255
    for row, column in ((0, 0), (31, 5), (12, 17), (3, 31)):
        expected = np.zeros((6, 3))
        for y in range(-8, 9):
            for x in range(-8, 9):
                expected += kernel[y + 8, x + 8] * pixels[:, mirrored(row + y, 32), mirrored(column + x, 32)]
        exact = np.clip(expected, 0, 1) * 255
        assert np.all(found[:, row, column] <= exact + 1e-3)
        assert np.all(found[:, row, column] >= exact - 1 - 1e-3)


@pytest.mark.parametrize("side", SIDES)
def test_discs_keep_the_brightness(side):
    for radius, smoothing in STRENGTHS["defocus_blur"][side]:
        kernel = disc_kernel(radius, smoothing)
        assert kernel.sum() == pytest.approx({8: 1.012975, 10: 1.010786}.get(radius, 1), abs=1e-5)
        assert len(kernel) % 2 == 1
        np.testing.assert_allclose(kernel, kernel[::-1, ::-1].T, atol=1e-7)


@pytest.mark.parametrize("severity", [1, 2, 5])
def test_glass_takes_near_pixels_one_after_the_other(severity, images):
    sigma, reach, passes = strength_of("glass_blur", severity, 32)
    shifts = Draws(2, "glass_blur", severity, [11]).integers(-1, 1, int(passes), 30 * 30, 2)[0]
    image = hwc(images[:1])[0] / 255

    def smooth(values):
        return scipy.ndimage.gaussian_filter(values, (sigma, sigma, 0), mode="nearest", truncate=4)

    blurred = np.floor(smooth(image) * 255)
    for one_pass in shifts:
        step = 0
        for row in range(32 - int(reach), int(reach), -1):
            for column in range(32 - int(reach), int(reach), -1):
                down, across = one_pass[step]
                blurred[row, column] = blurred[row + down, column + across]
                step += 1
    expected = np.floor(np.clip(smooth(blurred / 255), 0, 1) * 255)
    found = hwc(corrupt(images[:1], "glass_blur", severity, seed=2, ids=[11]))[0]
    assert np.abs(found - expected).max() <= 1  # at whole values rounding decides
    assert (found != expected).mean() < 0.01


def test_glass_reaches_down_and_right_where_it_is_strong(make_images):
    """From a reach of 2 on, pixels that were overwritten before are taken again: the order counts."""
    images = make_images(1, 64)
    corrupted = corrupt(images, "glass_blur", 5, seed=0, ids=[0])
    assert torch.isin(corrupted, images).any()
    assert (corrupted.float() - images.float()).abs().mean() > 0.5


@pytest.mark.parametrize("angle", [-45.0, -10.0, 0.0, 33.0, -135.0, 80.0])
def test_a_smear_is_half_a_gaussian_along_a_line(angle):
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    radius, sigma = 6, 2.0
    taps = 2 * radius + 1
    weights = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(taps)]
    expected = np.zeros((20, 20, 3))
    for row in range(20):
        for column in range(20):
            for k in range(taps):
                down = math.ceil(k * math.sin(math.radians(angle)) - 0.5)
                across = math.ceil(k * math.cos(math.radians(angle)) - 0.5)
                y, x = min(max(row + down, 0), 19), min(max(column + across, 0), 19)
                expected[row, column] += weights[k] / sum(weights) * image[y, x]
    found = smeared(image, radius, sigma, angle).astype(np.float64)
    assert np.abs(found - expected).max() <= 0.5 + 1e-9


def test_a_smear_of_grey_is_that_of_a_channel():
    image = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for channel in range(3):
        np.testing.assert_array_equal(
            smeared(image[..., channel], 8, 3, 20.0), smeared(image, 8, 3, 20.0)[..., channel]
        )


def test_motion_blur_draws_angles_on_both_sides():
    """A dot is smeared to the left, up or down: the taps lie to the right of each pixel."""
    dot = torch.zeros(40, 3, 32, 32, dtype=torch.uint8)
    dot[:, :, 16, 16] = 255
    blurred = hwc(corrupt(dot, "motion_blur", 5, seed=0, ids=range(40))).sum(axis=-1)
    assert blurred[:, :, 17:].sum() == 0
    assert (blurred[:, 17:].sum(axis=(1, 2)) > 0).any()
    assert (blurred[:, :16].sum(axis=(1, 2)) > 0).any()


@pytest.mark.parametrize("factor", [1.0, 1.01, 1.1, 1.25, 1.75, 2.25, 4.5])
@pytest.mark.parametrize("side", [8, 31, 32, 64])
def test_zoom_is_scipy_s(factor, side):
    values = np.random.default_rng(2).random((2, side, side, 3))
    crop = math.ceil(side / factor)
    top = (side - crop) // 2
    middle = values[:, top : top + crop, top : top + crop]
    large = np.stack([scipy.ndimage.zoom(one, (factor, factor, 1), order=1) for one in middle])
    trim = (large.shape[1] - side) // 2
    expected = large[:, trim : trim + side, trim : trim + side]
    np.testing.assert_allclose(clipped_zoom(values, factor), expected, atol=1e-12)
    np.testing.assert_allclose(clipped_zoom(values[..., 0], factor), expected[..., 0], atol=1e-12)


def test_zoom_blur_is_the_mean_of_the_zooms(images):
    pixels = hwc(images) / 255
    factors = np.arange(1, 1.16, 0.01)
    expected = (pixels + sum(clipped_zoom(pixels, float(factor)) for factor in factors)) / (len(factors) + 1)
    found = hwc(corrupt(images, "zoom_blur", 3, seed=0, ids=range(6)))
    difference = np.clip(expected, 0, 1) * 255 - found
    assert difference.min() > -1e-3
    assert difference.max() < 1 + 1e-3
