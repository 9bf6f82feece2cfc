"""Gaussian, shot and impulse noise: the published formulas; the draws are equal to the published ones in distribution."""

from __future__ import annotations

from tmkd_plugin.corruptions.draws import Draws
from tmkd_plugin.corruptions.pixels import Images, fractions, truncated
from tmkd_plugin.corruptions.severities import Strength


def gaussian_noise(images: Images, strength: Strength, draws: Draws) -> Images:
    """Adds normal noise to every value; ``strength``: its standard deviation on the scale 0..1."""
    (sd,) = strength
    return truncated(fractions(images) + sd * draws.normal(*images.shape[1:]))


def shot_noise(images: Images, strength: Strength, draws: Draws) -> Images:
    """Replaces every value by a Poisson count; ``strength``: the photons of a white pixel."""
    (photons,) = strength
    return truncated(draws.poisson(fractions(images) * photons) / photons)


def impulse_noise(images: Images, strength: Strength, draws: Draws) -> Images:
    """Turns values to 0 or 255, equally often, each channel on its own; ``strength``: the share of values that are hit.

    Scikit-image's ``random_noise(mode="s&p")``, which the published generators call, in distribution.
    """
    (share,) = strength
    noisy = images.copy()
    hit = draws.uniform(0, 1, *images.shape[1:]) < share
    salt = draws.uniform(0, 1, *images.shape[1:]) < 0.5
    noisy[hit & salt] = 255
    noisy[hit & ~salt] = 0
    return noisy
