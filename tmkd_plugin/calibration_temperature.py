"""Temperature scaling: one number, fitted on validation images, by which all logits are divided (Guo et al., ICML 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tmkd_plugin.calibration import Answers, Floats, log_softmax, nll

_PRECISION = 1e-12


@dataclass(frozen=True)
class TemperatureFit:
    """The temperature with the smallest negative log-likelihood.

    Attributes:
        temperature: What logits are divided by; 1 where no finite one is best.
        nll_before: Of the images that it was fitted on, in nats.
        nll_after: The same at the temperature; never above ``nll_before``.
        reason: Why there is no best temperature; ``None`` where there is one.
    """

    temperature: float
    nll_before: float
    nll_after: float
    reason: str | None = None


def fit_temperature(validation: Answers) -> TemperatureFit:
    """Fits a temperature to the answers for validation images.

    In the inverse temperature b the mean NLL, ``log Σ_k exp(b z_k) - b z_y``, is convex, and its slope
    ``Σ_k p_k z_k - z_y`` grows with b: the root of the slope is the one minimum, and Brent's method finds it to 12 digits.
    There is no such root in two cases, and then the temperature stays 1: no image has a class above its true one (the sharper
    the better, without end), or at no temperature the logits are better than a uniform guess.

    Args:
        validation: What the classifier says of images that nothing is reported on.
    """
    before = nll(validation)
    logits = validation.logits
    true = logits[np.arange(len(logits)), validation.labels]
    # The slope's limits for b -> 0 and b -> infinity.
    if float((logits.mean(axis=1) - true).mean()) >= 0:
        return TemperatureFit(
            1.0, before, before, "on the validation images the logits are no better than a uniform guess"
        )
    if not (logits.max(axis=1) > true).any():
        return TemperatureFit(
            1.0, before, before, "on no validation image is a class above the true one, so the sharper the better"
        )
    temperature = 1 / _root(logits, true)
    after = nll(validation.at(temperature))
    if after >= before:  # 1 was the best, up to rounding
        return TemperatureFit(1.0, before, before)
    return TemperatureFit(temperature, before, after)


def _root(logits: Floats, true: Floats) -> float:
    """Returns the inverse temperature at which the slope of the NLL is 0; it is negative below and positive above."""
    from scipy.optimize import brentq

    def slope(b: float) -> float:
        return float(((np.exp(log_softmax(b * logits)) * logits).sum(axis=1) - true).mean())

    low = high = 1.0
    while slope(low) >= 0 and low > np.finfo(float).tiny:
        low /= 2
    while slope(high) <= 0 and high < np.finfo(float).max / 4:
        high *= 2
    return float(brentq(slope, low, high, xtol=_PRECISION * low, rtol=4 * np.finfo(float).eps, maxiter=500))
