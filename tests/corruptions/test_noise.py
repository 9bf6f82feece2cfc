"""Noise has the distribution of its formula: moments against their bounds, on many values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tmkd_plugin.corruptions import SEVERITIES, corrupt
from tmkd_plugin.corruptions.draws import Draws
from tmkd_plugin.corruptions.severities import strength_of

COUNT = 12


def noisy(level: int, name: str, severity: int) -> np.ndarray:
    flat = torch.full((COUNT, 3, 32, 32), level, dtype=torch.uint8)
    return corrupt(flat, name, severity, seed=3, ids=range(COUNT)).numpy().astype(np.float64)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_noise_has_the_published_spread(severity):
    values = noisy(128, "gaussian_noise", severity)
    (sd,) = strength_of("gaussian_noise", severity, 32)
    # Truncation takes half a level from the mean; its variance is 1/12 of a level squared.
    error = 5 * 255 * sd / math.sqrt(values.size)
    assert values.mean() == pytest.approx(127.5, abs=error)
    assert values.std() == pytest.approx(math.sqrt((255 * sd) ** 2 + 1 / 12), rel=5 / math.sqrt(2 * values.size))
    third = ((values - values.mean()) ** 3).mean() / values.std() ** 3
    assert abs(third) < 5 * math.sqrt(6 / values.size)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_shot_noise_is_poisson(severity):
    (photons,) = strength_of("shot_noise", severity, 32)
    level = 60
    rate = level / 255 * photons
    values = noisy(level, "shot_noise", severity)
    expected = np.arange(0, int(rate + 12 * math.sqrt(rate)) + 2)
    chances = np.exp(expected * math.log(rate) - rate - np.array([math.lgamma(k + 1) for k in expected]))
    levels = np.floor(np.clip(expected / photons, 0, 1) * 255)
    for share in np.unique(levels):
        chance = chances[levels == share].sum()
        found = (values == share).mean()
        assert abs(found - chance) < 6 * math.sqrt(chance * (1 - chance) / values.size) + 1e-3
    assert set(np.unique(values)) <= set(levels)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulse_noise_hits_the_published_share(severity):
    values = noisy(100, "impulse_noise", severity)
    (share,) = strength_of("impulse_noise", severity, 32)
    spread = 5 * math.sqrt(share / 2 / values.size)
    assert set(np.unique(values)) == {0.0, 100.0, 255.0}
    assert (values == 0).mean() == pytest.approx(share / 2, abs=spread)
    assert (values == 255).mean() == pytest.approx(share / 2, abs=spread)
    by_pixel = (values != 100).sum(axis=1)  # each channel on its own: pixels hit once outnumber those hit thrice
    assert (by_pixel == 1).sum() > (by_pixel == 3).sum()


def test_noise_is_the_formula_on_its_draws():
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    draws = Draws(3, "gaussian_noise", 2, [8]).normal(32, 32, 3)
    found = corrupt(image, "gaussian_noise", 2, seed=3, ids=[8])
    for row, column, channel in ((0, 0, 0), (31, 2, 1), (7, 30, 2)):
        value = image[0, channel, row, column].item() / 255 + 0.06 * draws[0, row, column, channel]
        assert found[0, channel, row, column].item() == int(min(max(value, 0), 1) * 255)
