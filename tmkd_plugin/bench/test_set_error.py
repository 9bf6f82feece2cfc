"""How much of a difference is the test set's choice of images: McNemar's test, and its error beside that of the seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmkd_plugin.bench.predictions import UNREADABLE, Predictions, read_predictions
from tmkd_plugin.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PERCENT = 100.0


@dataclass(frozen=True)
class McNemar:
    """Two students of one seed on the same test images.

    Attributes:
        images: How many images there are.
        gained: Images that only the enhanced student gets right.
        lost: Images that only the baseline gets right.
        p_value: Exact two-sided binomial p-value of ``gained`` against ``lost``; 1 where both are 0.
        delta: Enhanced minus baseline, in percentage points.
        standard_error: Of ``delta``, in percentage points, for these two students on other test images.
    """

    images: int
    gained: int
    lost: int
    p_value: float
    delta: float
    standard_error: float


@dataclass(frozen=True)
class ErrorParts:
    """Where the error of a mean difference over seeds comes from; all in percentage points.

    Attributes:
        images: Number of test images.
        seeds: Number of seeds.
        delta: The mean difference, enhanced minus baseline.
        seed_error: Standard error of other seeds on these test images; ``None`` for one seed.
        test_set_error: Standard error of other test images with these seeds.
        both: Standard error of other seeds and other images; ``None`` for one seed.
        each: McNemar's test of each seed.
    """

    images: int
    seeds: int
    delta: float
    seed_error: float | None
    test_set_error: float
    both: float | None
    each: list[McNemar]


def mcnemar(baseline_correct: Sequence[bool], enhanced_correct: Sequence[bool]) -> McNemar:
    """Compares two students image by image.

    The binomial p-value is exact at any number of discordant images. The standard error is that of the mean of the
    differences 1, 0, -1 of the images. Source: Q. McNemar, Psychometrika 12 (1947).

    Args:
        baseline_correct: (N,) whether the baseline's student is right.
        enhanced_correct: (N,) the same of the enhanced one, for the same images in the same order.

    Raises:
        InputError: The lengths differ, or there is no image.
    """
    from scipy import stats

    n = len(baseline_correct)
    if n != len(enhanced_correct) or n == 0:
        raise InputError(
            f"McNemar's test needs the same images for both students, at least one: got {n} and {len(enhanced_correct)}."
        )
    pairs = list(zip(baseline_correct, enhanced_correct, strict=True))
    gained = sum(bool(after) and not before for before, after in pairs)
    lost = sum(bool(before) and not after for before, after in pairs)
    p_value = float(stats.binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0
    delta = (gained - lost) / n
    variance = (gained + lost) / n - delta**2
    return McNemar(n, gained, lost, p_value, PERCENT * delta, PERCENT * math.sqrt(variance / n))


def error_parts(baseline_correct: Any, enhanced_correct: Any) -> ErrorParts:
    """Splits the error of a mean difference into that of the seeds and that of the test images.

    Seeds and images are two crossed samples. The variance over seeds and that over images each hold the part that belongs to
    a seed on an image, so their sum counts it twice; ``both`` takes it off once.
    Source: variance components of a two-way layout without replication (Searle, Casella and McCulloch, Variance
    Components, 1992).

    Args:
        baseline_correct: (S, N) booleans: S seeds, N test images.
        enhanced_correct: (S, N), the same seeds and images in the same order.

    Raises:
        InputError: The shapes differ, or are not (S, N) with S and N at least 1.
    """
    import numpy as np

    before, after = np.asarray(baseline_correct, dtype=bool), np.asarray(enhanced_correct, dtype=bool)
    if before.shape != after.shape or before.ndim != 2 or before.size == 0:
        raise InputError(
            f"The test-set error needs (seeds, images) of both arms, alike: got {before.shape} and {after.shape}."
        )
    differences = PERCENT * (after.astype(np.float64) - before)
    n_seeds, n_images = differences.shape
    delta = float(differences.mean())
    by_image = differences.mean(axis=0)
    test_set_variance = float(by_image.var()) / n_images
    each = [mcnemar(*pair) for pair in zip(before.tolist(), after.tolist(), strict=True)]
    if n_seeds == 1:
        return ErrorParts(n_images, 1, delta, None, math.sqrt(test_set_variance), None, each)
    by_seed = differences.mean(axis=1)
    seed_variance = float(by_seed.var(ddof=1)) / n_seeds
    rest = differences - by_image - by_seed[:, None] + delta
    counted_twice = float((rest**2).sum()) / ((n_seeds - 1) * n_images) / (n_seeds * n_images)
    both = max(seed_variance + test_set_variance - counted_twice, seed_variance, test_set_variance)
    return ErrorParts(
        n_images, n_seeds, delta, math.sqrt(seed_variance), math.sqrt(test_set_variance), math.sqrt(both), each
    )


def error_parts_of_runs(baseline: Sequence[Path], enhanced: Sequence[Path]) -> ErrorParts:
    """Reads the ``predictions.npz`` of both arms and splits the error of their difference.

    Args:
        baseline: One file for each seed.
        enhanced: The files of the same seeds in the same order.

    Raises:
        InputError: A file can't be read, or the files are not of the same test images.
    """
    import numpy as np

    arms = []
    reference: NDArray[np.int64] | None = None
    for paths in (baseline, enhanced):
        rows = []
        for path in paths:
            predictions = _read(path)
            if reference is None:
                reference = predictions.index
            if not np.array_equal(predictions.index, reference):
                raise InputError(f"{path} is of other test images than {baseline[0]}: compare runs of one data set.")
            rows.append(predictions.correct)
        arms.append(rows)
    return error_parts(*arms)


def _read(path: Path) -> Predictions:
    try:
        return read_predictions(path)
    except UNREADABLE as error:
        raise InputError(f"{path} can't be read as predictions (index, label, logits): {error}.") from None
