"""Random numbers for a batch of images, each image's from a generator of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tmkd_plugin.randomness import generator_for


class Draws:
    """What is drawn for N images: a function of seed, corruption, severity and image id, whatever else is in the batch.

    Args:
        seed: Of all draws.
        corruption: Its name.
        severity: From 1 to 5.
        ids: The id of each image, N of them.
    """

    def __init__(self, seed: int, corruption: str, severity: int, ids: Sequence[int]) -> None:
        self._generators = [generator_for(seed, f"corruption {corruption}", severity, each) for each in ids]

    def normal(self, *shape: int) -> NDArray[np.float64]:
        """Returns standard normal numbers, float64 (N, *shape)."""
        return self._stacked(lambda generator: torch.randn(shape, generator=generator, dtype=torch.float64))

    def uniform(self, low: float, high: float, *shape: int) -> NDArray[np.float64]:
        """Returns numbers that are uniform in [low, high), float64 (N, *shape)."""
        return self._stacked(
            lambda generator: torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low
        )

    def integers(self, low: int, high: int, *shape: int) -> NDArray[np.int64]:
        """Returns whole numbers that are uniform in low..high - 1, int64 (N, *shape)."""
        drawn: NDArray[np.int64] = self._stacked(
            lambda generator: torch.randint(low, high, shape, generator=generator, dtype=torch.int64)
        )
        return drawn

    def poisson(self, rates: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns a Poisson count for each rate, float64 (N, ...), of rates (N, ...)."""
        counts = [
            torch.poisson(torch.from_numpy(rate), generator=generator)
            for rate, generator in zip(rates, self._generators, strict=True)
        ]
        return torch.stack(counts).numpy()

    def _stacked(self, draw: Callable[[torch.Generator], Tensor]) -> NDArray[Any]:
        drawn: NDArray[Any] = torch.stack([draw(generator) for generator in self._generators]).numpy()
        return drawn
