"""Both Canny implementations against `cv2.Canny`, plane by plane and pixel by pixel."""

import math
import os
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pictures import canny_plane_by_plane, photographs, random_pixels, read_jpegs, synthetic_images

from tmkd_plugin import canny as canny_module
from tmkd_plugin import plane_parts
from tmkd_plugin.errors import InputError
from tmkd_plugin.views import canny, canny_torch, high_frequency_view

CANNY_IMPLEMENTATIONS = pytest.mark.parametrize("implementation", [canny, canny_torch], ids=["cv2", "torch"])
NORMS = pytest.mark.parametrize("l2_gradient", [False, True], ids=["L1", "L2"])


class TestCanny:
    @CANNY_IMPLEMENTATIONS
    @NORMS
    @pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 3), (3, 40), (32, 32), (33, 57), (64, 64)])
    def test_equals_cv2_on_random_images_of_any_size(self, implementation, l2_gradient, size):
        images = torch.cat([random_pixels(4, 3, *size), random_pixels(4, 3, *size, seed=1, top=60)])
        expected = canny_plane_by_plane(images, 60, 150, l2_gradient)
        found = implementation(images, 60, 150, l2_gradient)
        assert found.dtype == torch.bool
        assert torch.equal(found, expected)
        assert expected.any() or 1 in size

    @CANNY_IMPLEMENTATIONS
    @NORMS
    @pytest.mark.parametrize("size", [32, 64, 224])
    def test_equals_cv2_on_photographs(self, implementation, l2_gradient, size):
        images = photographs(size)
        expected = canny_plane_by_plane(images, l2_gradient=l2_gradient)
        assert 0.01 < expected.float().mean() < 0.5
        assert torch.equal(implementation(images, l2_gradient=l2_gradient), expected)

    @CANNY_IMPLEMENTATIONS
    @NORMS
    @pytest.mark.parametrize("thresholds", [(100, 200), (1, 4), (10, 30), (0, 0), (3, 900)])
    def test_equals_cv2_on_ramps_ties_and_diagonals(self, implementation, l2_gradient, thresholds):
        images = synthetic_images()
        found = implementation(images, *thresholds, l2_gradient)
        assert torch.equal(found, canny_plane_by_plane(images, *thresholds, l2_gradient))

    @CANNY_IMPLEMENTATIONS
    def test_equals_cv2_on_handwritten_digits(self, implementation):
        from sklearn.datasets import load_digits

        digits = torch.from_numpy((load_digits().images * 255 / 16).astype(np.uint8))[:1500].view(-1, 3, 8, 8)
        assert torch.equal(implementation(digits), canny_plane_by_plane(digits))

    @CANNY_IMPLEMENTATIONS
    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_equals_cv2_for_any_image_and_thresholds(self, implementation, data):
        shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 20), st.integers(1, 20)))
        spread = data.draw(st.sampled_from([2, 16, 256]))
        images = torch.from_numpy(data.draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, spread - 1))))
        # Some builds of the libraries here switch subnormal numbers off, which hypothesis minds.
        ranges = ((-50, 2200), (-50, 60), (-3e4, 1e8))
        floats = [st.floats(low, high, allow_subnormal=False) for low, high in ranges]
        threshold = st.one_of(st.integers(-50, 2200), *floats)
        low, high, l2_gradient = data.draw(threshold), data.draw(threshold), data.draw(st.booleans())
        expected = canny_plane_by_plane(images, low, high, l2_gradient)
        assert torch.equal(implementation(images, low, high, l2_gradient), expected)

    @CANNY_IMPLEMENTATIONS
    @NORMS
    @pytest.mark.parametrize("cv2_threads", [0, 1, 2, 3])
    @pytest.mark.parametrize(
        "thresholds",
        [(200, 100), (99.9, 150.2), (-20, 90), (-1, 1), (-90, -20), (0.5, 0.9), (40000, 90000), (100, 4e4)],
    )
    def test_thresholds_are_swapped_floored_and_clamped_as_in_cv2(
        self, implementation, l2_gradient, thresholds, cv2_threads
    ):
        images = torch.cat([photographs(32), random_pixels(4, 3, 32, 32, top=4)])
        before = cv2.getNumThreads()
        try:
            cv2.setNumThreads(cv2_threads)  # OpenCV takes other paths with one thread
            found = implementation(images, *thresholds, l2_gradient)
        finally:
            cv2.setNumThreads(before)
        assert torch.equal(found, canny_plane_by_plane(images, *thresholds, l2_gradient))

    @CANNY_IMPLEMENTATIONS
    @NORMS
    def test_thresholds_too_large_for_an_integer_find_nothing(self, implementation, l2_gradient):
        # cv2 alone overflows here and, with L1, takes every local maximum for an edge.
        assert not implementation(photographs(32), 1e10, 1e11, l2_gradient).any()

    @CANNY_IMPLEMENTATIONS
    def test_long_weak_edges_are_followed_to_their_end(self, implementation):
        image = np.zeros((120, 120), np.uint8)
        points = [(x, 20 + 80 * (x // 8 % 2)) for x in range(4, 116, 4)]
        cv2.polylines(image, [np.array(points)], isClosed=False, color=30, thickness=2)
        image[18:22, 2:6] = 255
        images = torch.from_numpy(image).view(1, 1, 120, 120)
        expected = canny_plane_by_plane(images, 50, 600)
        assert expected[..., 100:].any(), "the line should reach the far side"
        assert torch.equal(implementation(images, 50, 600), expected)

    def test_hysteresis_looks_at_the_device_seldom_and_stops_when_nothing_changes(self, monkeypatch):
        # A weak line wound like a snake, strong at one end: each sweep follows it by one pixel.
        image = np.zeros((90, 90), np.uint8)
        turns = [(x, y) for row, y in enumerate(range(10, 80, 10)) for x in ((8, 80) if row % 2 == 0 else (80, 8))]
        cv2.polylines(image, [np.array(turns)], isClosed=False, color=30, thickness=2)
        image[8:12, 4:9] = 255
        images = torch.from_numpy(image).view(1, 1, 90, 90)
        looks, sweeps = [], []
        equal, sweep = torch.equal, canny_module._sweep
        monkeypatch.setattr(canny_module.torch, "equal", lambda *pair: looks.append(1) or equal(*pair))
        monkeypatch.setattr(canny_module, "_sweep", lambda *given: sweeps.append(1) or sweep(*given))
        found = canny_torch(images, 50, 600)
        monkeypatch.undo()
        assert torch.equal(found, canny_plane_by_plane(images, 50, 600))
        assert found[..., 70:, :].any(), "the line should be followed to its end"
        assert len(sweeps) > 300
        assert len(looks) == math.log2(len(sweeps) / 8) + 1
        looks.clear()
        sweeps.clear()
        monkeypatch.setattr(canny_module.torch, "equal", lambda *pair: looks.append(1) or equal(*pair))
        monkeypatch.setattr(canny_module, "_sweep", lambda *given: sweeps.append(1) or sweep(*given))
        canny_torch(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
        assert (len(looks), len(sweeps)) == (1, 8)

    @CANNY_IMPLEMENTATIONS
    def test_edges_do_not_cross_from_one_plane_to_the_next(self, implementation):
        # A step along a column is strong in the first plane and weak in the second, just below it in memory.
        images = torch.zeros(1, 2, 6, 6, dtype=torch.uint8)
        images[0, 0, :, 3:] = 255
        images[0, 1, :, 3:] = 30
        found = implementation(images, 100, 200)
        assert found[0, 0].any()
        assert not found[0, 1].any()

    @CANNY_IMPLEMENTATIONS
    def test_many_planes_in_several_calls_and_any_memory_layout(self, implementation, monkeypatch):
        monkeypatch.setattr(plane_parts, "PIXELS_PER_PART", 3000)
        images = random_pixels(7, 3, 30, 41, top=120)
        expected = canny_plane_by_plane(images)
        assert torch.equal(implementation(images), expected)
        assert torch.equal(implementation(images.contiguous(memory_format=torch.channels_last)), expected)
        assert torch.equal(implementation(images.transpose(2, 3)), canny_plane_by_plane(images.transpose(2, 3)))

    @CANNY_IMPLEMENTATIONS
    def test_constant_images_have_no_edges_and_empty_batches_stay_empty(self, implementation):
        assert not implementation(torch.full((2, 3, 16, 16), 77, dtype=torch.uint8), 0, 0).any()
        assert implementation(torch.empty(0, 3, 16, 16, dtype=torch.uint8)).shape == (0, 3, 16, 16)

    @CANNY_IMPLEMENTATIONS
    def test_leaves_its_input_alone(self, implementation):
        images = photographs(32)
        before = images.clone()
        implementation(images)
        assert torch.equal(images, before)

    @CANNY_IMPLEMENTATIONS
    def test_unusable_input_is_refused(self, implementation):
        with pytest.raises(InputError, match=r"uint8 of shape \(B, C, H, W\); got torch.float32"):
            implementation(torch.zeros(1, 3, 4, 4))
        with pytest.raises(InputError, match=r"got torch.uint8 of shape \(3, 4, 4\)"):
            implementation(torch.zeros(3, 4, 4, dtype=torch.uint8))
        with pytest.raises(InputError, match="finite numbers; got low=nan"):
            implementation(random_pixels(1, 3, 4, 4), math.nan, 200)

    def test_without_cv2_torch_takes_over_and_says_so_once(self, without_cv2):
        images = photographs(32)
        expected = canny_plane_by_plane(images)
        with pytest.warns(RuntimeWarning, match="OpenCV can't be imported"):
            assert torch.equal(canny(images), expected)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(canny(images), expected)
            assert (high_frequency_view(images) - images).abs().max() > 1

    @pytest.mark.skipif("TMKD_SHARED" not in os.environ, reason="TMKD_SHARED names no folder with real images")
    @CANNY_IMPLEMENTATIONS
    @NORMS
    def test_equals_cv2_on_shared_real_images(self, implementation, l2_gradient):
        archive = Path(os.environ["TMKD_SHARED"], "data", "cifar10_jpeg_full.npz")
        if not archive.exists():
            pytest.skip(f"{archive} is not there")
        images = read_jpegs(archive, 500)
        expected = canny_plane_by_plane(images, l2_gradient=l2_gradient)
        assert torch.equal(implementation(images, l2_gradient=l2_gradient), expected)
