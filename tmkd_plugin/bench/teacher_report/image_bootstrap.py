"""How much a figure owes to the choice of the images: percentile intervals over resampled images, paired by image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tmkd_plugin.bench.teacher_report.measures import BOOTSTRAPPED, DECIMALS, PERCENT, MeasureSettings
from tmkd_plugin.calibration import Answers, Floats, image_brier, image_nll, width_bins
from tmkd_plugin.randomness import generator_for

RESAMPLES = 1000
_BLOCK = 50  # resamples at a time: the table of a block is (50, images)


@dataclass(frozen=True)
class ImageValues:
    """What each image adds to the figures of one classifier.

    Attributes:
        means: (N, 6), values whose mean is the figure: all of ``BOOTSTRAPPED`` but the ECE.
        gaps: (N, B), right minus confidence in the column of the image's bin.
    """

    means: Floats
    gaps: Floats

    @classmethod
    def of(cls, answers: Answers, settings: MeasureSettings) -> ImageValues:
        """Computes the values of all images."""
        sure, right = answers.confidence >= settings.confidence, answers.correct
        shares = [PERCENT * share for share in (right, sure & right, sure & ~right, ~sure)]
        means = np.stack([shares[0], image_nll(answers), image_brier(answers), *shares[1:]], axis=1)
        gaps = np.zeros((len(right), settings.bins))
        bins = width_bins(answers.confidence, settings.bins)
        gaps[np.arange(len(right)), bins] = right - answers.confidence
        return cls(means, gaps)

    def figures(self, counts: Floats) -> Floats:
        """Returns the figures of resamples, (R, 7) in the order of ``BOOTSTRAPPED``.

        Args:
            counts: (R, N), how often each image is in each resample.
        """
        n = len(self.means)
        means = counts @ self.means / n
        errors = PERCENT * np.abs(counts @ self.gaps).sum(axis=1, keepdims=True) / n
        return np.concatenate([means[:, :1], errors, means[:, 1:]], axis=1)


def bootstrap_intervals(
    groups: Mapping[str, Sequence[ImageValues]], reference: str
) -> tuple[dict[str, dict[str, list[float]]], dict[str, dict[str, list[float]]]]:
    """Resamples the images, the same ones for every classifier, 1000 times.

    The intervals are the 2.5th and the 97.5th percentile of the figures, each the mean over the seeds of a group: other
    images, the same seeds. The ECE of a resample lies above that of the images on average, for chance adds to every bin's gap;
    in differences most of that falls out.

    Args:
        groups: By name, the classifiers (seeds) of a group.
        reference: The group from which differences are taken.

    Returns:
        By group and figure, the intervals of the figures, and those of the differences from the reference.
    """
    n = len(groups[reference][0].means)
    parts: dict[str, list[Floats]] = {name: [] for name in groups}
    for counts in _resamples(n):
        for name, seeds in groups.items():
            parts[name].append(np.mean([seed.figures(counts) for seed in seeds], axis=0))
    drawn = {name: np.concatenate(part) for name, part in parts.items()}
    intervals = {name: _percentiles(values) for name, values in drawn.items()}
    differences = {name: _percentiles(values - drawn[reference]) for name, values in drawn.items() if name != reference}
    return intervals, differences


def _resamples(n: int) -> Iterator[Floats]:
    generator = generator_for(0, "teacher report, images")
    for _ in range(RESAMPLES // _BLOCK):
        chosen = torch.randint(0, n, (_BLOCK, n), generator=generator)
        counts = torch.zeros(_BLOCK, n, dtype=torch.float64)
        yield counts.scatter_add_(1, chosen, torch.ones_like(counts)).numpy()


def _percentiles(values: Floats) -> dict[str, list[float]]:
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    return {
        name: [round(float(low[column]), DECIMALS), round(float(high[column]), DECIMALS)]
        for column, name in enumerate(BOOTSTRAPPED)
    }
