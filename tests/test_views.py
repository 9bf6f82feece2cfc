"""Views against the equations written as loops in float64."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import FrozenInstanceError

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pictures import canny_plane_by_plane, photographs, random_pixels

from tmkd_plugin import canny as canny_module
from tmkd_plugin import opencv_views, plane_parts
from tmkd_plugin import views as views_module
from tmkd_plugin.errors import InputError
from tmkd_plugin.settings import settings_table
from tmkd_plugin.views import (
    VIEW_NAMES,
    ViewSettings,
    canny,
    edge_view,
    gaussian_blur,
    gaussian_kernel,
    high_frequency_view,
    make_views,
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def edge_view_by_loops(images, alpha, low, high):
    """Eq 1, pixel by pixel in float64."""
    edges = canny_plane_by_plane(images, low, high)
    view = np.zeros(images.shape)
    for index in np.ndindex(*images.shape):
        value = float(images[index]) + alpha * (255.0 if edges[index] else 0.0)
        view[index] = min(max(value, 0.0), 255.0)
    return view


def reflect_101(index, length):
    """Walks back and forth between both ends, without repeating them."""
    position, step = 0, 1
    for _ in range(abs(index)):
        if length == 1:
            break
        if not 0 <= position + step < length:
            step = -step
        position += step
    return position


def high_frequency_view_by_loops(images, weight, size, sigma):
    """Eq 2, pixel by pixel in float64, with a two-dimensional Gaussian."""
    radius = size // 2
    height, width = images.shape[-2:]
    offsets = [(down, right) for down in range(-radius, radius + 1) for right in range(-radius, radius + 1)]
    weights = [math.exp(-(down**2 + right**2) / (2 * sigma**2)) for down, right in offsets]
    view = np.zeros(images.shape)
    for b, c, y, x in np.ndindex(*images.shape):
        blurred = 0.0
        for (down, right), tap in zip(offsets, weights, strict=True):
            row, column = reflect_101(y + down, height), reflect_101(x + right, width)
            blurred += tap / sum(weights) * float(images[b, c, row, column])
        pixel = float(images[b, c, y, x])
        view[b, c, y, x] = min(max(pixel + weight * (pixel - blurred), 0.0), 255.0)
    return view


def status_of(child, seconds):
    """Returns the exit status of a child process, which is killed if it takes longer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class TestEdgeView:
    @pytest.mark.parametrize("alpha", [0.0, 0.3, 2.0])
    def test_equals_equation_1(self, alpha):
        images = photographs(32)[:2]
        view = edge_view(images, alpha, low=80, high=160)
        assert view.dtype == torch.float32
        np.testing.assert_allclose(view.numpy(), edge_view_by_loops(images, alpha, 80, 160), atol=1e-4)

    def test_alpha_0_gives_the_image_back(self):
        images = photographs(32)
        assert torch.equal(edge_view(images, alpha=0), images.float())

    def test_l2_gradient_reaches_canny(self):
        images = photographs(32)
        marked = edge_view(images, alpha=1, l2_gradient=True) != images
        expected = canny(images, l2_gradient=True)
        assert torch.equal(marked, expected & (images < 255))
        assert not torch.equal(expected, canny(images))

    @pytest.mark.parametrize("alpha", [-0.1, math.inf, math.nan])
    def test_unusable_alpha_is_refused(self, alpha):
        with pytest.raises(InputError, match="alpha must be a finite number, 0 or more"):
            edge_view(random_pixels(1, 3, 4, 4), alpha=alpha)


class TestHighFrequencyView:
    @pytest.mark.parametrize(("weight", "size", "sigma"), [(1.0, 3, 0.8), (0.4, 5, 1.0), (3.0, 7, 2.5), (1.0, 1, 0.6)])
    @pytest.mark.parametrize("shape", [(1, 2, 12, 17), (1, 1, 1, 1), (1, 1, 2, 5), (1, 1, 5, 1)])
    def test_equals_equation_2(self, weight, size, sigma, shape):
        images = random_pixels(*shape)
        view = high_frequency_view(images, weight, size, sigma)
        assert view.dtype == torch.float32
        np.testing.assert_allclose(view.numpy(), high_frequency_view_by_loops(images, weight, size, sigma), atol=1e-3)

    @pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 3, 2, 3), (2, 3, 9, 4), (2, 3, 40, 31)])
    @pytest.mark.parametrize(("size", "sigma"), [(1, 1.0), (3, 0.8), (5, 1.0), (9, 2.0), (31, 4.0)])
    def test_blur_equals_cv2_plane_by_plane_with_and_without_cv2(self, shape, size, sigma, request, monkeypatch):
        monkeypatch.setattr(plane_parts, "PIXELS_PER_PART", 4000)
        images = random_pixels(*shape)
        planes = images.numpy().astype(np.float32).reshape(-1, *shape[-2:])
        expected = np.stack([cv2.GaussianBlur(plane, (size, size), sigma) for plane in planes]).reshape(shape)
        np.testing.assert_allclose(gaussian_blur(images, size, sigma).numpy(), expected, atol=1e-3)
        request.getfixturevalue("without_cv2")
        with pytest.warns(RuntimeWarning, match="OpenCV"):
            by_torch = gaussian_blur(images, size, sigma)
        np.testing.assert_allclose(by_torch.numpy(), expected, atol=1e-3)

    @pytest.mark.parametrize(("size", "sigma"), [(1, 0.5), (3, 0.8), (5, 1.0), (9, 3.3)])
    def test_kernel_is_that_of_cv2(self, size, sigma):
        np.testing.assert_allclose(gaussian_kernel(size, sigma), cv2.getGaussianKernel(size, sigma)[:, 0], rtol=1e-12)

    @pytest.mark.parametrize(
        ("side", "size", "sigma"), [((32, 32), 3, 0.8), ((64, 90), 3, 0.8), ((65, 65), 5, 1.0), ((224, 224), 5, 1.0)]
    )
    def test_default_kernel_grows_with_the_resolution(self, side, size, sigma):
        images = random_pixels(1, 3, *side)
        assert torch.equal(high_frequency_view(images), high_frequency_view(images, 1.0, size, sigma))
        assert not torch.equal(high_frequency_view(images), high_frequency_view(images, 1.0, 8 - size, sigma))

    def test_default_sigma_follows_a_given_kernel(self):
        images = random_pixels(1, 3, 32, 32)
        assert torch.equal(gaussian_blur(images, kernel_size=5), gaussian_blur(images, 5, 1.0))
        assert torch.equal(gaussian_blur(images, sigma=2.0), gaussian_blur(images, 3, 2.0))

    @pytest.mark.parametrize("grey", [0, 77, 255])
    def test_constant_image_has_no_residual(self, grey):
        images = torch.full((2, 3, 70, 70), grey, dtype=torch.uint8)
        assert (high_frequency_view(images, weight=1.0) - grey).abs().max() < 1e-4

    def test_weight_0_gives_the_image_back(self):
        images = photographs(32)
        assert torch.equal(high_frequency_view(images, weight=0), images.float())

    def test_unusable_numbers_are_refused(self):
        images = random_pixels(1, 3, 4, 4)
        with pytest.raises(InputError, match="weight must be a finite number"):
            high_frequency_view(images, weight=math.nan)
        with pytest.raises(InputError, match="odd whole number, such as 3 or 5; got 4"):
            high_frequency_view(images, kernel_size=4)
        with pytest.raises(InputError, match="sigma must be a finite number above 0"):
            high_frequency_view(images, sigma=0.0)
        with pytest.raises(InputError, match="uint8 of shape"):
            high_frequency_view(images.float())


class TestMakeViews:
    def test_views_come_in_the_given_order(self):
        images = photographs(32)
        expected = {"rgb": images.float(), "edge": edge_view(images), "high_frequency": high_frequency_view(images)}
        for names in (VIEW_NAMES, ("high_frequency", "rgb"), ("edge",), ()):
            found = make_views(images, names)
            assert len(found) == len(names)
            for name, view in zip(names, found, strict=True):
                assert torch.equal(view, expected[name])

    def test_every_setting_reaches_its_view(self):
        images = photographs(32)
        values = {
            "edge_alpha": 0.5,
            "canny_low": 190.0,
            "canny_high": 700.0,
            "canny_l2_gradient": True,
            "high_frequency_weight": 2.0,
            "blur_kernel_size": 5,
            "blur_sigma": 1.7,
        }
        assert set(values) == set(settings_table(ViewSettings))
        default = make_views(images)
        for name, value in values.items():
            changed = make_views(images, settings=ViewSettings(**{name: value}))
            differs = [not torch.equal(a, b) for a, b in zip(default, changed, strict=True)]
            is_edge = name.startswith(("edge", "canny"))
            assert differs == [False, is_edge, not is_edge], name

    @settings(max_examples=25, deadline=None)
    @given(
        images=hnp.arrays(np.uint8, st.tuples(st.integers(1, 2), st.just(3), st.integers(1, 12), st.integers(1, 12))),
        alpha=st.floats(0, 50, allow_subnormal=False),
        weight=st.floats(0, 50, allow_subnormal=False),
    )
    def test_views_stay_within_0_and_255(self, images, alpha, weight):
        chosen = ViewSettings(edge_alpha=alpha, high_frequency_weight=weight, canny_low=10, canny_high=20)
        for view in make_views(torch.from_numpy(images), settings=chosen):
            assert view.dtype == torch.float32
            assert view.shape == images.shape
            assert view.min() >= 0
            assert view.max() <= 255

    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def test_without_cv2_the_edge_view_is_the_same_and_the_high_frequency_view_within_a_hundredth(self, data):
        shape = data.draw(st.tuples(st.integers(1, 2), st.just(3), st.integers(3, 40), st.integers(3, 40)))
        images = torch.from_numpy(data.draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 255))))
        size = data.draw(st.sampled_from([None, 1, 3, 5, 9]))
        chosen = ViewSettings(
            edge_alpha=0.7, high_frequency_weight=data.draw(st.sampled_from([1.0, 0.3, 2.5])), blur_kernel_size=size
        )
        expected = make_views(images, settings=chosen)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(views_module, "import_cv2", lambda: None)
            patch.setattr(canny_module, "import_cv2", lambda: None)
            rgb, edge, high = make_views(images, settings=chosen)
        assert torch.equal(rgb, expected[0])
        assert torch.equal(edge, expected[1])
        assert (high - expected[2]).abs().max() <= 0.01

    @pytest.mark.parametrize("threads", [1, 2, 3])
    @pytest.mark.parametrize("weight", [1.0, 0.3, 2.5])
    def test_the_size_of_the_parts_changes_no_bit(self, weight, threads, monkeypatch):
        images = torch.cat([photographs(32), random_pixels(3, 3, 32, 32)])
        chosen = ViewSettings(high_frequency_weight=weight)
        whole, blurred = make_views(images, settings=chosen), gaussian_blur(images)
        for pixels in (1, 2500):
            monkeypatch.setattr(plane_parts, "PIXELS_PER_PART", pixels)
            monkeypatch.setattr(plane_parts.torch, "get_num_threads", lambda: threads)
            for layout in (torch.contiguous_format, torch.channels_last):
                parts = make_views(images.contiguous(memory_format=layout), settings=chosen)
                assert all(torch.equal(part, view) for part, view in zip(parts, whole, strict=True))
            assert torch.equal(gaussian_blur(images), blurred)

    @pytest.mark.parametrize("planes", range(1, 14))
    @pytest.mark.parametrize("threads", [1, 2, 3])
    def test_every_plane_is_worked_on_once(self, planes, threads, monkeypatch):
        monkeypatch.setattr(plane_parts, "PIXELS_PER_PART", 3 * 16)
        monkeypatch.setattr(plane_parts.torch, "get_num_threads", lambda: threads)
        before, seen = cv2.getNumThreads(), np.zeros(planes, dtype=int)

        def work(part):
            seen[part] += 1

        plane_parts.over_parts(np.zeros((planes, 4, 4)), work)
        assert (seen == 1).all()
        assert cv2.getNumThreads() == before

    @pytest.mark.parametrize("threads", [1, 2])
    def test_an_error_in_a_part_is_raised(self, threads, monkeypatch):
        monkeypatch.setattr(plane_parts, "PIXELS_PER_PART", 1)
        monkeypatch.setattr(plane_parts.torch, "get_num_threads", lambda: threads)
        with pytest.raises(ZeroDivisionError):
            plane_parts.over_parts(np.zeros((4, 4, 4)), lambda part: 1 // 0)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_a_child_forked_while_a_thread_makes_views_makes_views_too(self, monkeypatch):
        monkeypatch.setattr(plane_parts, "PIXELS_PER_PART", 1)
        monkeypatch.setattr(plane_parts.torch, "get_num_threads", lambda: 2)
        planes, at_work, done = np.zeros((4, 4, 4)), threading.Event(), threading.Event()
        thread = threading.Thread(target=plane_parts.over_parts, args=(planes, lambda _: at_work.set() or done.wait()))
        thread.start()
        try:
            at_work.wait()
            child = os.fork()
            if child == 0:
                with contextlib.suppress(BaseException):  # nothing of this process's tests goes on in the child
                    plane_parts.over_parts(planes, lambda _: None)
                    os._exit(0)
                os._exit(1)
        finally:
            done.set()
            thread.join()
        assert status_of(child, seconds=20) == 0

    def test_large_planes_are_found_one_by_one_with_the_same_edges(self, monkeypatch):
        images = torch.cat([photographs(224), random_pixels(1, 3, 224, 224)])
        one_by_one = make_views(images)
        for module in (canny_module, opencv_views):
            monkeypatch.setattr(module, "LARGE_PLANE", 1 << 30)
        assert all(torch.equal(one, stacked) for one, stacked in zip(one_by_one, make_views(images), strict=True))

    @pytest.mark.parametrize("weight", [1.0, 0.3, 2.5])
    def test_residual_and_image_are_added_with_one_rounding(self, weight):
        images = photographs(32)
        residual = (images.float() - gaussian_blur(images)).double() * float(np.float32(weight))
        expected = (images.double() + residual).float().clamp(0, 255)
        assert torch.equal(high_frequency_view(images, weight), expected)

    def test_empty_batches_stay_empty(self):
        for view in make_views(torch.empty(0, 3, 16, 16, dtype=torch.uint8)):
            assert (view.shape, view.dtype) == ((0, 3, 16, 16), torch.float32)

    def test_unknown_view_is_refused_with_the_nearest_name(self):
        with pytest.raises(InputError, match=r"Unknown view 'edges'\. Did you mean 'edge'\?"):
            make_views(random_pixels(1, 3, 4, 4), ["rgb", "edges"])

    def test_settings_have_a_source_and_a_meaning_and_the_defaults_of_the_functions(self):
        table = settings_table(ViewSettings)
        assert all(setting.source == "ours" and setting.meaning for setting in table.values())
        images = photographs(32)
        for default, name in ((edge_view(images), "edge"), (high_frequency_view(images), "high_frequency")):
            assert torch.equal(make_views(images, [name])[0], default)

    def test_settings_are_frozen_and_checked(self):
        with pytest.raises(FrozenInstanceError):
            ViewSettings().edge_alpha = 1.0
        with pytest.raises(InputError, match="alpha"):
            ViewSettings(edge_alpha=-1)
        with pytest.raises(InputError, match="thresholds"):
            ViewSettings(canny_high=math.inf)
        with pytest.raises(InputError, match="kernel size"):
            ViewSettings(blur_kernel_size=2)

    def test_importing_the_views_does_not_import_cv2(self):
        code = "import sys, tmkd_plugin.views; sys.exit('cv2' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
