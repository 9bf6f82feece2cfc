"""Snow, frost, fog and brightness against naive loops in float64, and frost's pictures."""

from __future__ import annotations

import colorsys
import math

import cv2
import numpy as np
import pytest
import torch

from tmkd_plugin.corruptions import corrupt
from tmkd_plugin.corruptions.blur import smeared
from tmkd_plugin.corruptions.draws import Draws
from tmkd_plugin.corruptions.fractal import plasma_fractal, power_of_two
from tmkd_plugin.corruptions.frost_pictures import fitted, procedural_pictures, read_pictures
from tmkd_plugin.corruptions.severities import strength_of
from tmkd_plugin.errors import InputError


def hwc(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy().astype(np.float64)


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_brightness_adds_to_the_value_in_hsv(severity, images):
    (added,) = strength_of("brightness", severity, 32)
    found = hwc(corrupt(images, "brightness", severity, seed=0, ids=range(6)))
    pixels = hwc(images) / 255
    for place in np.ndindex(6, 8, 8):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixels[place])
        exact = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, min(value + added, 1)))
        assert np.all(np.abs(found[place] - exact) <= 1 + 1e-6)


def test_plasma_is_the_diamond_square_algorithm_written_out():
    side, decay = 8, 2.0
    drawn = np.random.default_rng(0).uniform(-1, 1, (1, side * side - 1))
    heights, stream = np.zeros((side, side)), iter(drawn[0])
    bound, step = 100.0, side
    while step >= 2:
        half = step // 2
        for row in range(0, side, step):
            for column in range(0, side, step):
                right, below = (column + step) % side, (row + step) % side
                corners = [heights[row, column], heights[row, right], heights[below, column], heights[below, right]]
                heights[row + half, column + half] = sum(corners) / 4 + bound**2 * next(stream)
        for down, across in ((0, half), (half, 0)):
            for row in range(0, side, step):
                for column in range(0, side, step):
                    y, x = row + down, column + across
                    near = [
                        ((y - half) % side, x),
                        ((y + half) % side, x),
                        (y, (x - half) % side),
                        (y, (x + half) % side),
                    ]
                    heights[y, x] = sum(heights[place] for place in near) / 4 + bound**2 * next(stream)
        bound, step = bound / decay, half
    assert next(stream, None) is None
    heights -= heights.min()
    np.testing.assert_allclose(plasma_fractal(side, decay, lambda count: drawn[:, :count])[0], heights / heights.max())


@pytest.mark.parametrize(("side", "power"), [(8, 8), (9, 16), (32, 32), (33, 64), (224, 256)])
def test_clouds_are_powers_of_two(side, power):
    assert power_of_two(side) == power


def test_fog_keeps_the_brightest_value(images):
    thickness, decay = strength_of("fog", 4, 32)
    found = hwc(corrupt(images, "fog", 4, seed=5, ids=range(6)))
    for k in range(6):
        cloud = plasma_fractal(32, decay, lambda count, k=k: Draws(5, "fog", 4, [k]).uniform(-1, 1, count))[0]
        pixels = hwc(images)[k] / 255
        largest = pixels.max()
        exact = (pixels + thickness * cloud[..., None]) * largest / (largest + thickness)
        np.testing.assert_array_equal(found[k], np.floor(np.clip(exact, 0, 1) * 255))
    assert found[4].max() == 0  # a black image has nothing to scatter
    assert found[3].max() == 255


@pytest.mark.parametrize("severity", [1, 4])
def test_snow_whitens_and_lays_flakes_over(severity, images):
    mean, sd, zoom, threshold, radius, sigma, kept = strength_of("snow", severity, 32)
    draws = Draws(0, "snow", severity, [3])
    from tmkd_plugin.corruptions.blur import clipped_zoom

    flakes = clipped_zoom(mean + sd * draws.normal(32, 32), zoom)[0]
    flakes = np.floor(np.clip(np.where(flakes < threshold, 0, flakes), 0, 1) * 255).astype(np.uint8)
    layer = smeared(flakes, radius, sigma, draws.uniform(-135, -45)[0]) / 255
    pixels = hwc(images[:1])[0] / 255
    found = hwc(corrupt(images[:1], "snow", severity, seed=0, ids=[3]))[0]
    for row, column in np.ndindex(32, 32):
        red, green, blue = pixels[row, column]
        grey = 1.5 * (0.299 * red + 0.587 * green + 0.114 * blue) + 0.5
        white = kept * pixels[row, column] + (1 - kept) * np.maximum(pixels[row, column], grey)
        exact = 255 * np.clip(white + layer[row, column] + layer[31 - row, 31 - column], 0, 1)
        assert np.all(found[row, column] <= exact + 1e-2)
        assert np.all(found[row, column] >= exact - 1 - 1e-2)


def test_snow_falls():
    """Flakes are smeared more down than across."""
    black = torch.zeros(20, 3, 64, 64, dtype=torch.uint8)
    snowy = hwc(corrupt(black, "snow", 5, seed=0, ids=range(20)))[..., 0]
    down, across = np.abs(np.diff(snowy, axis=1)).mean(), np.abs(np.diff(snowy, axis=2)).mean()
    assert down < across


def test_frost_adds_a_piece_of_a_picture(images, tmp_path):
    of_image, of_frost = strength_of("frost", 3, 32)
    pixels = np.random.default_rng(0).integers(0, 256, (300, 260, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "one.png"), pixels[..., ::-1])
    small = cv2.resize(pixels, (0, 0), fx=0.2, fy=0.2)
    found = hwc(corrupt(images, "frost", 3, seed=1, ids=range(6), frost_dir=tmp_path))
    for k in range(6):
        pieces = (
            np.floor(np.clip(of_image * hwc(images)[k] + of_frost * small[y : y + 32, x : x + 32], 0, 255))
            for y in range(small.shape[0] - 32)
            for x in range(small.shape[1] - 32)
        )
        assert any(np.array_equal(found[k], piece) for piece in pieces)


def test_frost_without_pictures_is_bluish_and_the_same_each_time():
    first = procedural_pictures()
    procedural_pictures.cache_clear()
    for before, after in zip(first, procedural_pictures(), strict=True):
        np.testing.assert_array_equal(before, after)
        red, _, blue = before.reshape(-1, 3).mean(axis=0)
        assert blue > red
    assert not np.array_equal(first[1], first[2])


@pytest.mark.parametrize("side", [8, 32, 64, 224, 700])
def test_pictures_are_large_enough_for_every_image(side):
    small = np.zeros((40, 50, 3), dtype=np.uint8)
    for picture in (procedural_pictures()[0], small):
        assert min(fitted(picture, side).shape[:2]) >= side + 1
    assert fitted(procedural_pictures()[0], 32).shape[:2] == (102, 102)


def test_folders_of_frost_that_can_t_be_used(tmp_path, images):
    with pytest.raises(InputError, match=r"no folder .*nowhere"):
        read_pictures(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no picture of frost: expected files that end in \.png"):
        corrupt(images, "frost", 1, seed=0, ids=range(6), frost_dir=tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.png can't be read"):
        read_pictures(tmp_path)


def grey_pictures(folder, *names):
    for number, name in enumerate(names):
        cv2.imwrite(str(folder / name), np.full((200, 300, 3), 40 * number + 10, np.uint8))


@pytest.mark.parametrize(
    ("names", "drawn"),
    [
        (["frost1.png", "frost2.png", "frost3.png", "frost4.bmp", "frost5.bmp", "frost6.bmp"], 5),
        (["1.png", "2.png", "3.png", "4.png", "5.png", "6.png"], 6),
        (["frost1.png", "frost2.png"], 2),
    ],
)
def test_of_the_six_published_pictures_the_last_is_not_drawn(tmp_path, names, drawn):
    grey_pictures(tmp_path, *names)
    frosted = corrupt(
        torch.zeros(200, 3, 32, 32, dtype=torch.uint8), "frost", 1, seed=0, ids=range(200), frost_dir=tmp_path
    )
    of_frost = strength_of("frost", 1, 32)[1]
    assert set(frosted.unique().tolist()) == {int(of_frost * (40 * number + 10)) for number in range(drawn)}


def test_a_folder_of_frost_is_read_once(tmp_path, images, monkeypatch):
    grey_pictures(tmp_path, "a.png")
    reads, read = [], cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda *given: reads.append(1) or read(*given))
    first, second = (corrupt(images, "frost", 1, seed=0, ids=range(6), frost_dir=tmp_path) for _ in range(2))
    assert torch.equal(first, second)
    assert len(reads) == 1


def test_colours_of_pictures_are_read_as_they_are(tmp_path):
    red = np.zeros((10, 10, 3), dtype=np.uint8)
    red[..., 0] = 200
    cv2.imwrite(str(tmp_path / "red.png"), red[..., ::-1])
    (picture,) = read_pictures(tmp_path)
    np.testing.assert_array_equal(picture, red)
    assert math.isclose(picture[..., 0].mean(), 200)
