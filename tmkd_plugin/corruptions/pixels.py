"""Pixels as corruptions take and return them."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Images: TypeAlias = NDArray[np.uint8]
"""RGB images, uint8 (N, S, S, 3)."""


def fractions(images: Images) -> NDArray[np.float64]:
    """Returns pixels as float64 in 0..1."""
    return images / 255.0


def truncated(values: NDArray[Any]) -> Images:
    """Clips values to 0..1 and returns them as pixels.

    Rounded towards zero, as the published generators do.
    """
    pixels: Images = (np.clip(values, 0, 1) * 255).astype(np.uint8)
    return pixels
