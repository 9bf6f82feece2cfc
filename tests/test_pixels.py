"""Normalised images from pixels and back, and images that are refused."""

import math

import numpy as np
import pytest
import torch
from pictures import random_pixels

from tmkd_plugin import views as views_module
from tmkd_plugin.errors import InputError
from tmkd_plugin.views import (
    check_images,
    from_pixels,
    gaussian_kernel,
    to_pixels,
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TestPixels:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize(("mean", "std"), [(None, None), (IMAGENET_MEAN, IMAGENET_STD), (None, (0.5, 0.5, 0.5))])
    def test_round_trip(self, dtype, mean, std):
        pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
        images = from_pixels(pixels, mean, std, dtype)
        assert images.dtype == dtype
        found = to_pixels(images, mean, std)
        assert found.dtype == torch.uint8
        tolerance = 1 if dtype == torch.bfloat16 else 0  # 8 significant bits
        assert (found.int() - pixels.int()).abs().max() <= tolerance
        check_images(images, mean, std)

    def test_equals_the_formula_per_channel(self):
        images = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
        found = to_pixels(images, IMAGENET_MEAN, IMAGENET_STD)
        for index in np.ndindex(*images.shape):
            unit = float(images[index]) * IMAGENET_STD[index[1]] + IMAGENET_MEAN[index[1]]
            assert abs(int(found[index]) - min(max(255 * unit, 0), 255)) <= 0.5 + 1e-3
        views = from_pixels(found.float() + 0.25, IMAGENET_MEAN, IMAGENET_STD)
        for index in np.ndindex(*images.shape):
            expected = ((int(found[index]) + 0.25) / 255 - IMAGENET_MEAN[index[1]]) / IMAGENET_STD[index[1]]
            assert float(views[index]) == pytest.approx(expected, abs=1e-5)

    def test_a_second_batch_copies_nothing_to_the_device(self, monkeypatch):
        images = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))

        def run():
            pixels = to_pixels(images, IMAGENET_MEAN, IMAGENET_STD)
            kernel = gaussian_kernel(3, 0.8)
            return from_pixels(views_module._blur_dimension(pixels.float(), -1, kernel), IMAGENET_MEAN, IMAGENET_STD)

        first = run()
        # Numbers that go from Python to a GPU make the processor wait for it.
        monkeypatch.setattr(torch, "tensor", lambda *_, **__: pytest.fail("a tensor was made from numbers"))
        assert torch.equal(run(), first)

    def test_what_was_made_in_inference_mode_can_be_used_outside(self):
        images = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        mean, std = (0.123, 0.234, 0.345), (0.456, 0.567, 0.678)  # of no other test
        with torch.inference_mode():
            from_pixels(images, mean, std)
        images.requires_grad_()
        from_pixels(images, mean, std).sum().backward()
        torch.testing.assert_close(images.grad[0, :, 0, 0], 1 / (255 * torch.tensor(std)))

    def test_values_beyond_the_range_are_clamped(self):
        images = torch.tensor([-0.5, 0.0, 0.5, 1.5]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
        assert to_pixels(images)[0, 2].flatten().tolist() == [0, 0, 128, 255]

    @pytest.mark.parametrize("call", [to_pixels, check_images, from_pixels])
    def test_unusable_mean_and_std_are_refused(self, call):
        images = torch.zeros(1, 3, 2, 2)
        with pytest.raises(InputError, match=r"mean must be 3 finite numbers.*got \(0.5,\)"):
            call(images, (0.5,), None)
        with pytest.raises(InputError, match="std must be 3 numbers above 0"):
            call(images, None, (0.2, 0.0, 0.2))


class TestCheckImages:
    def test_usable_images_pass(self):
        unit = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        check_images(unit)
        check_images(unit * 1.02 - 0.01)
        check_images((unit - 0.5) / 0.25, (0.5,) * 3, (0.25,) * 3)
        check_images(unit[:0])
        check_images(unit.requires_grad_())

    @pytest.mark.parametrize("shape", [(3, 8, 8), (2, 1, 8, 8), (2, 3, 8), (2, 4, 8, 8)])
    def test_wrong_shapes(self, shape):
        with pytest.raises(InputError, match=r"shape \(B, 3, H, W\); got shape"):
            check_images(torch.zeros(shape))

    def test_channels_last_images_are_recognised(self):
        with pytest.raises(InputError, match=r"permute\(0, 3, 1, 2\)"):
            check_images(torch.zeros(2, 8, 8, 3))

    def test_integer_images(self):
        with pytest.raises(InputError, match=r"torch.uint8.*divide them by 255"):
            check_images(random_pixels(2, 3, 8, 8))

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_non_finite_images(self, value):
        images = torch.zeros(4, 3, 8, 8)
        images[2, 1, 3, 3] = value
        with pytest.raises(InputError, match="NaN or infinity; the first image with it is number 2"):
            check_images(images)

    def test_normalised_images_without_mean_and_std(self):
        images = torch.full((1, 3, 2, 2), -2.0)
        images[0, 1] = 2.5
        with pytest.raises(InputError, match=r"from -2.000 to 2.500, but .* between 0.000 and 1.000. Pass mean=, std="):
            check_images(images)

    def test_unit_images_with_mean_and_std_of_another_normalisation(self):
        with pytest.raises(
            InputError, match=r"from 0.000 to 255.000, but .* between -2.118 and 2.640.*divide them by 255"
        ):
            check_images(torch.tensor([0.0, 255.0]).expand(1, 3, 2, 2), IMAGENET_MEAN, IMAGENET_STD)

    def test_the_range_is_that_of_each_channel(self):
        images = torch.zeros(1, 3, 2, 2)
        images[0, 2] = 1.5
        check_images(images, None, (0.5, 0.5, 0.6))
        images[0, 0], images[0, 2] = 1.5, 0.0
        with pytest.raises(InputError, match=r"between 0.000 and 2.000"):
            check_images(images, None, (0.9, 0.5, 0.6))
