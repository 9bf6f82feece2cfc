"""Height maps of random clouds by the diamond-square algorithm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


def plasma_fractal(side: int, decay: float, uniform: Callable[[int], NDArray[np.float64]]) -> NDArray[np.float64]:
    """Returns height maps on a torus, each stretched to 0..1.

    The published algorithm: every square's centre, then every diamond's, gets the mean of its four corners and a uniform
    number within a bound that starts at 100^2 and is divided by ``decay^2`` at each halving (the published program multiplies
    by its bound twice).

    Args:
        side: Height and width in pixels, a power of two.
        decay: By how much finer structure is weaker; larger is smoother.
        uniform: Given a count, returns numbers from -1 to 1, float64 (N, count); called once.

    Returns:
        float64 (N, side, side).
    """
    drawn = uniform(side * side - 1)
    heights = np.zeros((len(drawn), side, side))
    taken = 0
    bound, step = 100.0, side
    while step >= 2:
        half, points = step // 2, side // step
        noise = bound**2 * drawn[:, taken : taken + 3 * points**2].reshape(-1, 3, points, points)
        taken += 3 * points**2
        corners = heights[:, ::step, ::step]
        right, below = np.roll(corners, -1, axis=2), np.roll(corners, -1, axis=1)
        centres = (corners + right + below + np.roll(below, -1, axis=2)) / 4 + noise[:, 0]
        heights[:, half::step, half::step] = centres
        heights[:, ::step, half::step] = (corners + right + centres + np.roll(centres, 1, axis=1)) / 4 + noise[:, 1]
        heights[:, half::step, ::step] = (corners + below + centres + np.roll(centres, 1, axis=2)) / 4 + noise[:, 2]
        bound, step = bound / decay, half
    heights -= heights.min(axis=(1, 2), keepdims=True)
    stretched: NDArray[np.float64] = heights / heights.max(axis=(1, 2), keepdims=True)
    return stretched


def power_of_two(side: int) -> int:
    """Returns the smallest power of two that is at least ``side``."""
    return 1 << (side - 1).bit_length()
