"""Normalised images <-> pixels, and the checks of both."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tmkd_plugin.errors import InputError

# How far images may leave [0, 1] before they are taken for normalised with another mean and std.
_RANGE_TOLERANCE = 0.02


def check_pixels(images: Tensor) -> None:
    """Raises an InputError unless the images are uint8 (B,C,H,W)."""
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise InputError(
            f"Expected images as pixels, uint8 of shape (B, C, H, W); got {images.dtype} of shape {tuple(images.shape)}. "
            "For normalised images call to_pixels(images, mean, std) first."
        )


def to_pixels(images: Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> Tensor:
    """Undoes the normalisation of a batch: round(255 (x std + mean)), clamped to 0..255.

    Args:
        images: Normalised images, floating point (B,3,H,W); :func:`check_images` says whether mean and std fit them.
        mean: Mean of each channel in [0, 1] units; None for images that are not centred.
        std: Standard deviation of each channel in [0, 1] units; None for images that are not scaled.

    Returns:
        Pixels, uint8 (B,3,H,W).

    Raises:
        InputError: Mean or std is not three usable numbers.
    """
    mean_tensor, std_tensor = _channel_tensors(mean, std, images.device)
    scaled = torch.addcmul(mean_tensor, images.detach().to(torch.float32), std_tensor)
    return scaled.mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def from_pixels(
    pixels: Tensor,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Normalises pixels: (p / 255 - mean) / std, computed in float32.

    Args:
        pixels: Pixels or views in 0..255, of any dtype, (B,3,H,W).
        mean: Mean of each channel in [0, 1] units; None for 0.
        std: Standard deviation of each channel in [0, 1] units; None for 1.
        dtype: The dtype of the result.

    Returns:
        Normalised images (B,3,H,W) of that dtype.

    Raises:
        InputError: Mean or std is not three usable numbers.
    """
    mean_tensor, std_tensor = _channel_tensors(mean, std, pixels.device)
    return (pixels.to(torch.float32) / 255).sub_(mean_tensor).div_(std_tensor).to(dtype)


def check_images(images: Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> None:
    """Raises an InputError unless the images are what mean and std say they are.

    Args:
        images: Should be floating point, (B,3,H,W), finite, and in [0, 1] (give or take 0.02) once mean and std are undone.
        mean: Mean of each channel that was subtracted, in [0, 1] units; None for 0.
        std: Standard deviation of each channel that was divided by, in [0, 1] units; None for 1.

    Raises:
        InputError: The images are not that; the message says what was found and what to do. Or mean or std is unusable.
    """
    means, stds = channel_statistics(mean, std)
    shape = tuple(images.shape)
    if images.ndim != 4 or shape[1] != 3:
        hint = " They look channels-last: images.permute(0, 3, 1, 2)." if images.ndim == 4 and shape[3] == 3 else ""
        raise InputError(f"Expected images of shape (B, 3, H, W); got shape {shape}.{hint}")
    if not images.is_floating_point():
        raise InputError(
            f"Expected floating-point images in [0, 1] or normalised with mean= and std=; got {images.dtype}. "
            "If they are pixels in 0..255, divide them by 255: images.float() / 255."
        )
    if images.numel() == 0:
        return
    lowest, highest = torch.stack((images.detach().amin((0, 2, 3)), images.detach().amax((0, 2, 3)))).double().tolist()
    if not all(map(math.isfinite, (*lowest, *highest))):
        first = int((~images.isfinite()).flatten(1).any(1).nonzero()[0])
        raise InputError(f"The images hold NaN or infinity; the first image with it is number {first} of the batch.")
    within = all(
        low * s + m >= -_RANGE_TOLERANCE and high * s + m <= 1 + _RANGE_TOLERANCE
        for low, high, m, s in zip(lowest, highest, means, stds, strict=True)
    )
    if not within:
        allowed_low = min((0 - m) / s for m, s in zip(means, stds, strict=True))
        allowed_high = max((1 - m) / s for m, s in zip(means, stds, strict=True))
        raise InputError(
            f"The images hold values from {min(lowest):.3f} to {max(highest):.3f}, but images with mean={mean}, std={std} "
            f"lie between {allowed_low:.3f} and {allowed_high:.3f}. Pass mean=, std= of the normalisation that the images "
            "went through (None: they are in [0, 1]); if they are pixels in 0..255, divide them by 255."
        )


def _channel_tensors(
    mean: Sequence[float] | None, std: Sequence[float] | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Returns mean and std, checked, as float32 tensors (3,1,1)."""
    means, stds = channel_statistics(mean, std)
    return _channels_on(tuple(means), device), _channels_on(tuple(stds), device)


@functools.lru_cache(maxsize=64)
def _channels_on(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Returns three numbers as a tensor (3,1,1), made once: copying them to a GPU in every step would wait for the GPU."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)


def channel_statistics(mean: Sequence[float] | None, std: Sequence[float] | None) -> tuple[list[float], list[float]]:
    """Returns mean and std as three numbers each (0 and 1 for None), or raises an InputError."""
    means = [0.0] * 3 if mean is None else [float(value) for value in mean]
    stds = [1.0] * 3 if std is None else [float(value) for value in std]
    if len(means) != 3 or not all(map(math.isfinite, means)):
        raise InputError(f"mean must be 3 finite numbers, one for each channel, or None; got {mean}.")
    if len(stds) != 3 or not all(math.isfinite(value) and value > 0 for value in stds):
        raise InputError(f"std must be 3 numbers above 0, one for each channel, or None; got {std}.")
    return means, stds
