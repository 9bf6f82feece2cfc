"""The views on a GPU are those of the CPU."""

import pytest
import torch
from sklearn.datasets import load_sample_images

from tmkd_plugin.pixels import from_pixels, to_pixels
from tmkd_plugin.views import ViewSettings, canny, gaussian_blur, make_views

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use")


def images_of(size):
    """Noise, coarse noise and photographs, uint8 (12,3,size,size)."""
    generator = torch.Generator().manual_seed(size)
    noise = torch.randint(256, (4, 3, size, size), generator=generator, dtype=torch.uint8)
    coarse = torch.randint(60, (4, 3, size, size), generator=generator, dtype=torch.uint8)
    photograph = torch.from_numpy(load_sample_images().images[0]).permute(2, 0, 1)
    crops = [photograph[:, 40 * n : 40 * n + size, 50 * n : 50 * n + size] for n in range(4)]
    return torch.cat([noise, coarse, torch.stack(crops)])


@pytest.mark.parametrize("size", [3, 8, 32, 57, 224])
@pytest.mark.parametrize("l2_gradient", [False, True])
@pytest.mark.parametrize("thresholds", [(100, 200), (10, 30), (60.5, 900)])
def test_canny_equals_that_of_opencv_on_every_pixel(size, l2_gradient, thresholds):
    images = images_of(size)
    found = canny(images.cuda(), *thresholds, l2_gradient)
    assert found.device.type == "cuda"
    assert torch.equal(found.cpu(), canny(images, *thresholds, l2_gradient))


@pytest.mark.parametrize("size", [8, 32, 224])
def test_views_are_the_same_within_a_hundredth_of_a_grey_level(size):
    images, chosen = images_of(size), ViewSettings(high_frequency_weight=1.3)
    for view, expected in zip(
        make_views(images.cuda(), settings=chosen), make_views(images, settings=chosen), strict=True
    ):
        assert (view.cpu() - expected).abs().max() <= 0.01
    assert (gaussian_blur(images.cuda(), 7, 2.0).cpu() - gaussian_blur(images, 7, 2.0)).abs().max() <= 0.01


def test_after_the_first_batch_only_the_hysteresis_waits_for_the_gpu():
    images = torch.rand(8, 3, 32, 32, device="cuda")

    def run():
        pixels = to_pixels(images, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
        return from_pixels(make_views(pixels, ["high_frequency"])[0], (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))

    first = run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first, again)
