"""Mean corruption accuracy, mCE and relative mCE of Hendrycks and Dietterich (arXiv 1903.12261, section 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

LEAST_LOSS = 1.0
"""Points that every corruption has to cost the baseline for relative mCE: a ratio of smaller losses is that of a few images."""


@dataclass(frozen=True)
class Accuracies:
    """What one network gets right, in percent.

    Attributes:
        clean: On clean images.
        corrupted: By corruption and severity.
        shifted: By the name of the folder.
    """

    clean: float
    corrupted: Mapping[str, Mapping[int, float]]
    shifted: Mapping[str, float]

    @property
    def by_corruption(self) -> dict[str, float]:
        """The mean over severities, by corruption."""
        return {name: _mean(list(values.values())) for name, values in self.corrupted.items()}

    @property
    def mean_corrupted(self) -> float:
        """Mean corruption accuracy: over severities, then over corruptions."""
        return _mean(list(self.by_corruption.values()))

    @property
    def lost(self) -> float:
        """Points that corruption costs: clean accuracy minus mean corruption accuracy."""
        return self.clean - self.mean_corrupted


def mean_corruption_error(network: Accuracies, baseline: Accuracies) -> float | None:
    """Returns mCE in percent; 100 is as good as the baseline, less is better.

    The mean over corruptions c of ``sum_s E_sc(network) / sum_s E_sc(baseline)`` with the top-1 errors E at severities s. The
    paper's baseline is AlexNet; here it is another network of the comparison.

    Returns:
        ``None`` if the baseline makes no error under some corruption.
    """
    return _mean_ratio(network, baseline, 100.0, 100.0, 0.0)


def relative_mean_corruption_error(network: Accuracies, baseline: Accuracies) -> float | None:
    """Returns relative mCE in percent: as mCE, with the errors beyond that on clean images in place of the errors.

    Returns:
        ``None`` if some corruption costs the baseline less than ``LEAST_LOSS`` points on average over the severities.
    """
    return _mean_ratio(network, baseline, network.clean, baseline.clean, LEAST_LOSS)


def _mean_ratio(
    network: Accuracies, baseline: Accuracies, of_network: float, of_baseline: float, least: float
) -> float | None:
    ratios = []
    for name, accuracies in baseline.corrupted.items():
        below = math.fsum(of_baseline - value for value in accuracies.values())
        if below <= 0 or below < least * len(accuracies):
            return None
        ratios.append(math.fsum(of_network - value for value in network.corrupted[name].values()) / below)
    return 100 * _mean(ratios)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
