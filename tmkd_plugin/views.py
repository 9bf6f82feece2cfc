"""Pixels -> the RGB, edge (Eq 1) and high-frequency (Eq 2) views of TMKD (arXiv 2603.24208).

A view is float32 (B,3,H,W) in 0..255, not rounded. The paper's text gives none of the thresholds and scales; the defaults
here are ours and stand in :class:`ViewSettings`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tmkd_plugin.canny import canny, canny_torch, check_thresholds, import_cv2
from tmkd_plugin.errors import InputError, unknown_name
from tmkd_plugin.opencv_views import Work, blur_work, edge_work, high_frequency_work, reflected, with_opencv
from tmkd_plugin.pixels import check_images, check_pixels, from_pixels, to_pixels
from tmkd_plugin.settings import setting

__all__ = [
    "VIEW_NAMES",
    "ViewSettings",
    "canny",
    "canny_torch",
    "check_images",
    "edge_view",
    "from_pixels",
    "gaussian_blur",
    "gaussian_kernel",
    "high_frequency_view",
    "make_views",
    "to_pixels",
]

VIEW_NAMES = ("rgb", "edge", "high_frequency")

# The shorter side, in pixels, up to which images get the small blur kernel.
_SMALL_IMAGE = 64


@dataclass(frozen=True)
class ViewSettings:
    """The thresholds and scales of the views.

    Raises:
        InputError: A value is out of its range.
    """

    edge_alpha: float = setting(0.3, "ours", "Eq 1: weight of the edge map (0 or 255) added to the image; 0 or more")
    canny_low: float = setting(100, "ours", "Canny's lower threshold on the Sobel magnitude of uint8 pixels")
    canny_high: float = setting(200, "ours", "Canny's upper threshold, in the same units")
    canny_l2_gradient: bool = setting(False, "ours", "Canny's magnitude: the L2 norm instead of OpenCV's default, L1")
    high_frequency_weight: float = setting(1.0, "ours", "Eq 2: weight of image minus blurred image; 0 or more")
    blur_kernel_size: int | None = setting(
        None, "ours", "Eq 2: side of the Gaussian kernel in pixels, odd; None: 3 up to 64 pixels (shorter side), else 5"
    )
    blur_sigma: float | None = setting(
        None,
        "ours",
        "Eq 2: standard deviation of the kernel in pixels; None: 0.8 for size 3, 1.0 for 5, 0.2 more for each step",
    )

    def __post_init__(self) -> None:
        check_thresholds(self.canny_low, self.canny_high)
        _check_weight("The edge view's alpha", self.edge_alpha)
        _check_weight("The high-frequency view's weight", self.high_frequency_weight)
        _check_blur(self.blur_kernel_size, self.blur_sigma)


def make_views(images: Tensor, names: Sequence[str] = VIEW_NAMES, settings: ViewSettings | None = None) -> list[Tensor]:
    """Makes views of a batch, in the order of their names.

    Args:
        images: Pixels, uint8 (B,3,H,W).
        names: Which views, from ``VIEW_NAMES``.
        settings: Thresholds and scales; None for the defaults.

    Returns:
        One tensor for each name, float32 (B,3,H,W) in 0..255, on the images' device.

    Raises:
        InputError: A name is unknown, or the images are not uint8 (B,C,H,W).
    """
    check_pixels(images)
    settings = settings or ViewSettings()
    for name in names:
        if name not in VIEW_NAMES:
            raise unknown_name("view", name, VIEW_NAMES)
    made = [name for name in dict.fromkeys(names) if name != "rgb"]
    if _has_opencv(images):
        works = [_work_of(name, images, settings) for name in made]
        views = dict(zip(made, with_opencv(images, works), strict=True))
    else:
        views = {name: _make_view(name, images, settings) for name in made}
    return [images.to(torch.float32) if name == "rgb" else views[name] for name in names]


def _work_of(name: str, images: Tensor, settings: ViewSettings) -> Work:
    if name == "edge":
        return edge_work(settings.edge_alpha, settings.canny_low, settings.canny_high, settings.canny_l2_gradient)
    blur = _default_blur(images.shape[-2:], settings.blur_kernel_size, settings.blur_sigma)
    return high_frequency_work(settings.high_frequency_weight, *blur)


def _make_view(name: str, images: Tensor, settings: ViewSettings) -> Tensor:
    if name == "edge":
        return edge_view(
            images, settings.edge_alpha, settings.canny_low, settings.canny_high, settings.canny_l2_gradient
        )
    return high_frequency_view(images, settings.high_frequency_weight, settings.blur_kernel_size, settings.blur_sigma)


def edge_view(
    images: Tensor, alpha: float = 0.3, low: float = 100, high: float = 200, l2_gradient: bool = False
) -> Tensor:
    """Adds Canny's edges to the image: clip(I + alpha E, 0, 255), each channel with its own E in {0, 255} (Eq 1).

    Args:
        images: Pixels, uint8 (B,C,H,W).
        alpha: Weight of the edge map, 0 or more.
        low: Canny's lower threshold.
        high: Canny's upper threshold.
        l2_gradient: Canny's magnitude is the L2 norm instead of L1.

    Returns:
        The view, float32 (B,C,H,W) in 0..255.

    Raises:
        InputError: The images are not uint8 (B,C,H,W), or a number is out of its range.
    """
    check_pixels(images)
    _check_weight("The edge view's alpha", alpha)
    check_thresholds(low, high)
    if _has_opencv(images):
        return with_opencv(images, [edge_work(alpha, low, high, l2_gradient)])[0]
    edges = canny(images, low, high, l2_gradient)
    # As bytes: torch adds bool to float three times slower.
    return images.to(torch.float32).add_(edges.view(torch.uint8), alpha=255.0 * alpha).clamp_(0, 255)


def high_frequency_view(
    images: Tensor, weight: float = 1.0, kernel_size: int | None = None, sigma: float | None = None
) -> Tensor:
    """Adds to the image what a Gaussian blur takes away: clip(I + weight (I - blur(I)), 0, 255) (Eq 2).

    Args:
        images: Pixels, uint8 (B,C,H,W).
        weight: Weight of the residual, 0 or more.
        kernel_size: Side of the Gaussian kernel in pixels, odd; None for 3 up to 64 pixels (shorter side), 5 above.
        sigma: Standard deviation of the kernel in pixels; None for 0.8 with size 3, 1.0 with 5, 0.2 more for each step.

    Returns:
        The view, float32 (B,C,H,W) in 0..255; blur and residual are float32 and not rounded.

    Raises:
        InputError: The images are not uint8 (B,C,H,W), or a number is out of its range.
    """
    _check_weight("The high-frequency view's weight", weight)
    check_pixels(images)
    _check_blur(kernel_size, sigma)
    if _has_opencv(images):
        size, sigma = _default_blur(images.shape[-2:], kernel_size, sigma)
        return with_opencv(images, [high_frequency_work(weight, size, sigma)])[0]
    blurred = gaussian_blur(images, kernel_size, sigma)
    pixels = images.to(torch.float32)
    residual = torch.sub(pixels, blurred, out=blurred)
    return pixels.add_(residual, alpha=weight).clamp_(0, 255)


def gaussian_blur(images: Tensor, kernel_size: int | None = None, sigma: float | None = None) -> Tensor:
    """Blurs every channel, as ``cv2.GaussianBlur`` does in float32 with its default border, REFLECT_101.

    Args:
        images: Pixels, uint8 (B,C,H,W), of any size: like OpenCV, reflects as often as a small image needs it.
        kernel_size: As in :func:`high_frequency_view`.
        sigma: As in :func:`high_frequency_view`.

    Returns:
        The blurred images, float32 (B,C,H,W) in 0..255: OpenCV's on a CPU, within 0.001 of them elsewhere.

    Raises:
        InputError: The images are not uint8 (B,C,H,W), or kernel size or sigma is out of its range.
    """
    check_pixels(images)
    _check_blur(kernel_size, sigma)
    if images.numel() == 0:
        return images.to(torch.float32)
    size, sigma = _default_blur(images.shape[-2:], kernel_size, sigma)
    if _has_opencv(images):
        return with_opencv(images, [blur_work(size, sigma)])[0]
    kernel = gaussian_kernel(size, sigma)
    return _blur_dimension(_blur_dimension(images.to(torch.float32), -1, kernel), -2, kernel)


def gaussian_kernel(size: int, sigma: float) -> list[float]:
    """Returns the weights of ``cv2.getGaussianKernel(size, sigma)``, which add up to 1."""
    weights = [math.exp(-((tap - (size - 1) / 2) ** 2) / (2 * sigma**2)) for tap in range(size)]
    return [weight / math.fsum(weights) for weight in weights]


def _default_blur(sides: Sequence[int], size: int | None, sigma: float | None) -> tuple[int, float]:
    """Fills in what was left open: the kernel grows with the resolution, sigma with the kernel."""
    if size is None:
        size = 3 if min(sides) <= _SMALL_IMAGE else 5
    return size, 0.5 + 0.1 * size if sigma is None else sigma


def _has_opencv(images: Tensor) -> bool:
    return images.device.type == "cpu" and images.numel() > 0 and import_cv2() is not None


@functools.lru_cache(maxsize=64)
def _reflected_on(length: int, radius: int, device: torch.device) -> Tensor:
    """Returns :func:`_reflected` as a tensor, made once: copying it to a GPU in every step would wait for the GPU."""
    with torch.inference_mode(False):
        return torch.tensor(reflected(length, radius), device=device)


def _blur_dimension(images: Tensor, dimension: int, kernel: Sequence[float]) -> Tensor:
    """Convolves one dimension, in sums of slices: a convolution would lose precision under autocast and TF32."""
    radius, length = len(kernel) // 2, images.shape[dimension]
    extended = images.index_select(dimension, _reflected_on(length, radius, images.device))
    blurred = images * kernel[radius]
    for offset in range(1, radius + 1):
        pair = extended.narrow(dimension, radius - offset, length) + extended.narrow(dimension, radius + offset, length)
        blurred.add_(pair, alpha=kernel[radius + offset])
    return blurred


def _check_weight(what: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{what} must be a finite number, 0 or more; got {value}.")


def _check_blur(kernel_size: int | None, sigma: float | None) -> None:
    if kernel_size is not None and (not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0):
        raise InputError(f"The blur's kernel size must be an odd whole number, such as 3 or 5; got {kernel_size}.")
    if sigma is not None and not (math.isfinite(sigma) and sigma > 0):
        raise InputError(f"The blur's sigma must be a finite number above 0, in pixels; got {sigma}.")
