"""The views with OpenCV on a CPU: planes of pixels in, planes of a view out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from tmkd_plugin.canny import LARGE_PLANE, find_edges, stack_planes
from tmkd_plugin.plane_parts import Planes, over_parts, planes_of

Work = Callable[[Planes, Planes], None]
"""Makes a view of planes, uint8 (N,H,W), and writes it, float32 (N,H,W)."""


def with_opencv(images: Tensor, works: Sequence[Work]) -> list[Tensor]:
    """Makes views on a CPU, all of them of one part of the planes before the next."""
    views = [torch.empty(images.shape, dtype=torch.float32) for _ in works]
    planes, flats = planes_of(images), [planes_of(view) for view in views]

    def make(part: slice) -> None:
        for work, flat in zip(works, flats, strict=True):
            work(planes[part], flat[part])

    over_parts(planes, make)
    return views


def edge_work(alpha: float, low: float, high: float, l2_gradient: bool) -> Work:
    """Returns what writes clip(I + 255 alpha E), E in {0, 1}."""

    def work(planes: Planes, out: Planes) -> None:
        edges = find_edges(planes, low, high, l2_gradient)
        np.multiply(edges, 255.0 * alpha, out=out, dtype=np.float32)
        np.add(out, planes, out=out)
        np.minimum(out, 255, out=out)

    return work


def high_frequency_work(weight: float, size: int, sigma: float) -> Work:
    """Returns what writes clip(I + weight (I - blur(I)))."""

    def work(planes: Planes, out: Planes) -> None:
        pixels, blurred = _blurred(planes, size, sigma)
        residual: Planes = np.subtract(pixels, blurred, out=blurred)
        if weight != 1:
            # A float64 holds the product as it is: the sum is rounded once, as a fused multiply-add does it.
            residual = np.multiply(residual, np.float32(weight), dtype=np.float64)
        np.add(pixels, residual, out=out, casting="same_kind")
        np.clip(out, 0, 255, out=out)

    return work


def blur_work(size: int, sigma: float) -> Work:
    """Returns what writes blur(I)."""

    def work(planes: Planes, out: Planes) -> None:
        out[:] = _blurred(planes, size, sigma)[1]

    return work


def _blurred(planes: Planes, size: int, sigma: float) -> tuple[Planes, Planes]:
    """Returns planes (N,H,W) as float32, and blurred.

    Small planes are stacked into a tall image: a call for each costs more than the work.
    """
    import cv2

    height, width = planes.shape[1:]
    if height * width >= LARGE_PLANE:
        pixels = planes.astype(np.float32)
        blurred = np.empty_like(pixels)
        for plane, out in zip(pixels, blurred, strict=True):
            cv2.GaussianBlur(plane, (size, size), sigma, dst=out)
        return pixels, blurred
    radius = size // 2
    rows = reflected(height, radius)
    tall = stack_planes(planes, rows).astype(np.float32)
    of_tall = cv2.GaussianBlur(tall, (size, size), sigma)
    kept = slice(radius, radius + height)
    pixels, blurred = (each.reshape(-1, len(rows), width)[:, kept] for each in (tall, of_tall))
    return pixels, blurred


def reflected(length: int, radius: int) -> list[int]:
    """Returns the indices of a dimension extended by REFLECT_101 (dcb|abcd|cba), several times over where it is short."""
    period = max(1, 2 * (length - 1))
    return [min(index % period, -index % period) for index in range(-radius, length + radius)]
