"""Canny's edge operator on batches, equal to ``cv2.Canny`` on every pixel.

One definition, two implementations: OpenCV for tensors on the CPU, integer arithmetic in torch for every other device. The
operator is OpenCV's with aperture 3: Sobel gradients with the border replicated, no blur before them, magnitude |dx| + |dy|
or dx² + dy², non-maximum suppression along four directions, and hysteresis by reachability over 8 neighbours.
"""

from __future__ import annotations

import functools
import math
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tmkd_plugin.errors import InputError
from tmkd_plugin.pixels import check_pixels
from tmkd_plugin.plane_parts import Planes, over_parts, planes_of

# Beyond every magnitude that 8-bit images can have; OpenCV's own clamp for the L2 norm.
_LARGEST_THRESHOLD = 32767.0
# tan(22.5°) in OpenCV's fixed point with 15 fractional bits; tan(67.5°) is this plus 2.
_TAN_22_5 = 13573
_FRACTION_BITS = 15
# Sweeps of the hysteresis before the first look at whether anything still changes; each look waits for the device.
_FIRST_LOOK = 8
LARGE_PLANE = 1 << 15
"""Pixels from which on a plane is worth a call of its own."""


@functools.cache
def import_cv2() -> ModuleType | None:
    """Imports OpenCV; where that fails (no libGL, for one), returns None and warns once."""
    try:
        import cv2
    except ImportError as error:
        warnings.warn(
            f"OpenCV can't be imported ({error}): the views are made with torch, which gives the same edges but takes longer "
            "on a CPU. On a machine without libGL, `pip install opencv-python-headless` instead of opencv-python.",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    module: ModuleType = cv2
    return module


def canny(images: Tensor, low: float = 100, high: float = 200, l2_gradient: bool = False) -> Tensor:
    """Finds edges in every channel of every image, as ``cv2.Canny(plane, low, high, L2gradient=l2_gradient)`` does.

    Args:
        images: Pixels, uint8 (B,C,H,W), of any size and on any device.
        low: Lower threshold of the hysteresis, in units of the Sobel magnitude (0 to 2040 with the L1 norm). A pair in
            the wrong order is swapped and fractions are dropped, as OpenCV does; the L2 norm squares before it drops them.
        high: Upper threshold, in the same units.
        l2_gradient: Compares the Euclidean norm of the gradient instead of |dx| + |dy|.

    Returns:
        True on edges, bool (B,C,H,W), on the images' device.

    Raises:
        InputError: The images are not uint8 (B,C,H,W), or a threshold is not a finite number.
    """
    check_pixels(images)
    check_thresholds(low, high)
    if images.device.type != "cpu" or import_cv2() is None:
        return canny_torch(images, low, high, l2_gradient)
    return _canny_cv2(images, low, high, l2_gradient)


def canny_torch(images: Tensor, low: float = 100, high: float = 200, l2_gradient: bool = False) -> Tensor:
    """Does what :func:`canny` does with torch alone, on the images' device; arguments, result and errors are the same."""
    check_pixels(images)
    check_thresholds(low, high)
    if images.numel() == 0:
        return torch.zeros_like(images, dtype=torch.bool)
    floor_low, floor_high = _integer_thresholds(low, high, l2_gradient)
    dx, dy = _sobel(images)
    magnitude = dx * dx + dy * dy if l2_gradient else dx.abs() + dy.abs()
    candidates = _is_ridge(dx, dy, magnitude) & (magnitude > floor_low)
    return _hysteresis(candidates & (magnitude > floor_high), candidates)


def check_thresholds(low: float, high: float) -> None:
    """Raises an InputError unless both thresholds are finite numbers."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(
            f"Canny's thresholds must be finite numbers; got low={low}, high={high}. The defaults are 100, 200."
        )


def _order_and_clamp(low: float, high: float) -> tuple[float, float]:
    """Orders the thresholds and clamps them.

    OpenCV's conversion to int overflows on large ones, which turns them around. Below 0 all are alike, since no gradient of 0
    is a local maximum; there one of OpenCV's paths (L2 norm, gradients given, one thread) squares them, the others do not.
    """
    smaller, larger = (min(max(float(value), 0.0), _LARGEST_THRESHOLD) for value in sorted((low, high)))
    return smaller, larger


def _integer_thresholds(low: float, high: float, l2_gradient: bool) -> tuple[int, int]:
    """Returns what OpenCV compares the integer magnitudes with."""
    smaller, larger = _order_and_clamp(low, high)
    return (math.floor(smaller**2), math.floor(larger**2)) if l2_gradient else (math.floor(smaller), math.floor(larger))


def _canny_cv2(images: Tensor, low: float, high: float, l2_gradient: bool) -> Tensor:
    edges = torch.empty(images.shape, dtype=torch.bool)
    if images.numel():
        planes, found = planes_of(images), planes_of(edges)

        def find(part: slice) -> None:
            found[part] = find_edges(planes[part], low, high, l2_gradient)

        over_parts(planes, find)
    return edges


def find_edges(planes: Planes, low: float, high: float, l2_gradient: bool) -> Planes:
    """Finds the edges of planes with OpenCV.

    Small planes are stacked into a tall image, because a call for each costs more than the work. The row that each of them
    repeats above and below itself gives Sobel its replicated border. Gradients of 0 in these rows then give what the border
    of a single image has, magnitude 0, and no edge can grow across them.

    Args:
        planes: uint8 (N,H,W), none of it empty.
        low: Lower threshold; see :func:`canny`.
        high: Upper threshold.
        l2_gradient: Norm of the gradient.

    Returns:
        True on edges, bool (N,H,W).
    """
    import cv2

    low, high = _order_and_clamp(low, high)
    height, width = planes.shape[1:]
    if height * width >= LARGE_PLANE:
        found = np.empty(planes.shape, np.uint8)
        for plane, out in zip(planes, found, strict=True):
            cv2.Canny(plane, low, high, edges=out, L2gradient=bool(l2_gradient))
        return np.not_equal(found, 0, out=found.view(np.bool_))
    tall = stack_planes(planes, [0, *range(height), height - 1])
    gradients = cv2.spatialGradient(tall, borderType=cv2.BORDER_REPLICATE)
    for gradient in gradients:
        rows = gradient.reshape(-1, height + 2, width)
        rows[:, 0] = rows[:, -1] = 0
    found = cv2.Canny(*gradients, low, high, L2gradient=bool(l2_gradient)).reshape(-1, height + 2, width)
    edges: Planes = found[:, 1:-1] != 0
    return edges


def stack_planes(planes: np.ndarray[Any, Any], rows: list[int]) -> np.ndarray[Any, Any]:
    """Stacks the given rows of every plane (N,H,W) into one tall image (N * len(rows), W)."""
    stacked: np.ndarray[Any, Any] = planes.take(rows, axis=1).reshape(-1, planes.shape[-1])
    return stacked


def _sobel(images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the horizontal and vertical 3x3 Sobel derivatives, int32, with the border replicated."""
    padded = images.to(torch.int32)
    padded = torch.cat((padded[..., :1, :], padded, padded[..., -1:, :]), dim=-2)
    padded = torch.cat((padded[..., :1], padded, padded[..., -1:]), dim=-1)
    smooth_rows = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    smooth_columns = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    return smooth_rows[..., 2:] - smooth_rows[..., :-2], smooth_columns[..., 2:, :] - smooth_columns[..., :-2, :]


def _is_ridge(dx: Tensor, dy: Tensor, magnitude: Tensor) -> Tensor:
    """Tells where the magnitude is a maximum along the gradient, of which four directions are told apart."""
    height, width = magnitude.shape[-2:]
    padded = F.pad(magnitude, (1, 1, 1, 1))

    def neighbour(down: int, right: int) -> Tensor:
        return padded[..., 1 + down : 1 + down + height, 1 + right : 1 + right + width]

    # The strict comparison on one side only keeps a single pixel of a plateau two pixels wide.
    along_row = (magnitude > neighbour(0, -1)) & (magnitude >= neighbour(0, 1))
    along_column = (magnitude > neighbour(-1, 0)) & (magnitude >= neighbour(1, 0))
    along_falling = (magnitude > neighbour(-1, -1)) & (magnitude > neighbour(1, 1))
    along_rising = (magnitude > neighbour(-1, 1)) & (magnitude > neighbour(1, -1))

    rise = dy.abs() << _FRACTION_BITS
    run = dx.abs()
    rise_at_22_5 = run * _TAN_22_5
    rise_at_67_5 = rise_at_22_5 + (run << (_FRACTION_BITS + 1))
    along_diagonal = torch.where((dx ^ dy) < 0, along_rising, along_falling)
    steep_or_diagonal = torch.where(rise > rise_at_67_5, along_column, along_diagonal)
    return torch.where(rise < rise_at_22_5, along_row, steep_or_diagonal)


def _hysteresis(strong: Tensor, candidates: Tensor) -> Tensor:
    """Grows the strong edges over adjacent candidates until a sweep changes nothing.

    Looks at whether something still changes come after 8, 16, 32, ... sweeps: photographs of 224 pixels, which take up to 117
    sweeps, need 5 looks, and no image costs more than twice its sweeps.
    """
    padded = F.pad(strong, (1, 1, 1, 1))
    edges = padded[..., 1:-1, 1:-1]
    rows = torch.empty_like(padded[..., 1:-1, :])
    done, look_after = 0, _FIRST_LOOK
    while True:
        for _ in range(look_after - done - 1):
            _sweep(padded, rows, candidates)
        before = edges.clone()
        _sweep(padded, rows, candidates)
        if torch.equal(before, edges):
            return before
        done, look_after = look_after, 2 * look_after


def _sweep(padded_edges: Tensor, rows: Tensor, candidates: Tensor) -> None:
    """Adds to the edges (..., H+2, W+2) the candidates (..., H, W) that touch one, diagonals included; ``rows`` is scratch."""
    torch.bitwise_or(padded_edges[..., :-2, :], padded_edges[..., 2:, :], out=rows).bitwise_or_(
        padded_edges[..., 1:-1, :]
    )
    edges = padded_edges[..., 1:-1, 1:-1]
    torch.bitwise_or(rows[..., :-2], rows[..., 2:], out=edges).bitwise_or_(rows[..., 1:-1]).bitwise_and_(candidates)
