"""How far the probabilities of a classifier can be trusted: ECE, NLL, Brier score, confident answers. Exact, in float64.

Everything is a function of logits (N, K) and labels (N,); a permutation of the images changes nothing but the last bits.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd_plugin.errors import InputError

Floats = NDArray[np.float64]
BINS = 15
"""Number of bins of Guo et al., On Calibration of Modern Neural Networks, ICML 2017."""
CONFIDENT = 0.8
"""Probability from which a prediction counts as confident. Ours: RichKD's abstract, which makes a claim about confident
predictions, does not say from where on it counts them."""


@dataclass(frozen=True)
class Answers:
    """What a classifier says of images whose classes are known.

    Attributes:
        logits: float64 (N, K).
        labels: int64 (N,) in [0, K).
        predicted: int64 (N,), the class that the classifier names.
        log_probabilities: float64 (N, K), log-softmax of the logits.
    """

    logits: Floats
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    log_probabilities: Floats

    @property
    def probabilities(self) -> Floats:
        """Softmax of the logits, (N, K)."""
        found: Floats = np.exp(self.log_probabilities)
        return found

    @property
    def confidence(self) -> Floats:
        """Probability of the predicted class, (N,)."""
        found: Floats = np.exp(self.log_probabilities.max(axis=1))
        return found

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the predicted class is the true one, (N,)."""
        found: NDArray[np.bool_] = self.predicted == self.labels
        return found

    def at(self, temperature: float) -> Answers:
        """Returns the same answers with all logits divided by a temperature above 0; the predicted classes stay."""
        return dataclasses.replace(self, log_probabilities=log_softmax(self.logits / temperature))


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: how often the classifier is right where it is so sure.

    Attributes:
        low: Lower ends of the bins, (B,).
        high: Upper ends, (B,).
        counts: Images in each bin, (B,).
        confidence: Their mean confidence, (B,); NaN where there are none.
        accuracy: Their share of right predictions, (B,); NaN where there are none.
    """

    low: Floats
    high: Floats
    counts: NDArray[np.int64]
    confidence: Floats
    accuracy: Floats

    @property
    def error(self) -> float:
        """The calibration error: mean |accuracy - confidence| of the bins, weighted by their images; 0 to 1."""
        filled = self.counts > 0
        gaps = np.abs(self.accuracy[filled] - self.confidence[filled])
        return float((gaps * self.counts[filled]).sum() / self.counts.sum())


def answers_of(logits: Any, labels: Any, predicted: Any = None) -> Answers:
    """Checks logits and labels and takes them to float64.

    Args:
        logits: (N, K) finite numbers, N and K at least 1.
        labels: (N,) whole numbers in [0, K).
        predicted: (N,) whole numbers, the predicted classes, where the logits were rounded afterwards; ``None`` for the class
            with the largest logit, the first of equal ones.

    Raises:
        InputError: With what was given and what is expected.
    """
    values, classes = np.asarray(logits), np.asarray(labels)
    if values.ndim != 2 or values.size == 0 or classes.shape != values.shape[:1] or classes.dtype.kind not in "iu":
        raise InputError(
            f"Calibration needs logits (N, K) and integer labels (N,), N and K at least 1: got {values.shape} and "
            f"{classes.dtype} {classes.shape}."
        )
    values, classes = values.astype(np.float64), classes.astype(np.int64)
    if not np.isfinite(values).all():
        raise InputError("Calibration needs finite logits: the network's weights have diverged.")
    if classes.min() < 0 or classes.max() >= values.shape[1]:
        raise InputError(
            f"The labels must lie in [0, {values.shape[1] - 1}], but reach from {classes.min()} to {classes.max()}."
        )
    named = values.argmax(axis=1) if predicted is None else np.asarray(predicted, dtype=np.int64)
    return Answers(values, classes, named, log_softmax(values))


def log_softmax(logits: Floats) -> Floats:
    """Returns ``z_k - log Σ_j exp z_j`` of (N, K), without overflow."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def top1(answers: Answers) -> float:
    """Share of right predictions, 0 to 1."""
    return float(answers.correct.mean())


def image_nll(answers: Answers) -> Floats:
    """Negative log-likelihood ``-log p_y`` of each image, (N,), in nats."""
    found: Floats = -answers.log_probabilities[np.arange(len(answers.labels)), answers.labels]
    return found


def nll(answers: Answers) -> float:
    """Mean negative log-likelihood, in nats; from logits, so that it stays finite where p_y underflows."""
    return float(image_nll(answers).mean())


def image_brier(answers: Answers) -> Floats:
    """Brier score ``Σ_k (p_k - [k = y])²`` of each image, (N,), 0 to 2."""
    gaps = answers.probabilities
    gaps[np.arange(len(answers.labels)), answers.labels] -= 1
    found: Floats = (gaps**2).sum(axis=1)
    return found


def brier(answers: Answers) -> float:
    """Mean Brier score over all classes, 0 to 2 (G. W. Brier, Monthly Weather Review 78, 1950)."""
    return float(image_brier(answers).mean())


def width_bins(confidence: Floats, n_bins: int = BINS) -> NDArray[np.int64]:
    """Returns the equal-width bin of each confidence, (N,): bin b is (b/B, (b+1)/B], as in Guo et al. 2017."""
    _check_bins(n_bins)
    edges = np.arange(n_bins + 1) / n_bins
    found: NDArray[np.int64] = np.searchsorted(edges, np.minimum(confidence, 1.0), side="left").clip(1) - 1
    return found


def reliability(answers: Answers, n_bins: int = BINS) -> Reliability:
    """Returns the reliability diagram over bins of equal width; its ``error`` is the ECE.

    Source: Naeini, Cooper and Hauskrecht, AAAI 2015; Guo et al., ICML 2017.

    Raises:
        InputError: There is no bin.
    """
    bins = width_bins(answers.confidence, n_bins)
    edges = np.arange(n_bins + 1) / n_bins
    counts = np.bincount(bins, minlength=n_bins)
    sums = [np.bincount(bins, values, n_bins) for values in (answers.confidence, answers.correct.astype(np.float64))]
    with np.errstate(invalid="ignore"):
        confidence, accuracy = (total / counts for total in sums)
    return Reliability(edges[:-1], edges[1:], counts.astype(np.int64), confidence, accuracy)


def ece(answers: Answers, n_bins: int = BINS) -> float:
    """Expected calibration error with bins of equal width, 0 to 1."""
    return reliability(answers, n_bins).error


def adaptive_reliability(answers: Answers, n_bins: int = BINS) -> Reliability:
    """Returns the reliability diagram over bins of equally many images (to within one); its ``error`` is the adaptive ECE.

    Of images with the same confidence, which may fall on both sides of a bin's end, each counts as right by the share of them
    that is: so the order of the images has no say. There are no more bins than images.
    Source: Nguyen and O'Connor, EMNLP 2015; Nixon et al., Measuring Calibration in Deep Learning, 2019.

    Raises:
        InputError: There is no bin.
    """
    _check_bins(n_bins)
    levels, place, ties = np.unique(answers.confidence, return_inverse=True, return_counts=True)
    place = place.reshape(-1)
    right = np.bincount(place, answers.correct.astype(np.float64)) / ties
    order = np.sort(place)
    parts = np.array_split(order, min(n_bins, len(order)))
    return Reliability(
        np.array([levels[part[0]] for part in parts]),
        np.array([levels[part[-1]] for part in parts]),
        np.array([len(part) for part in parts], dtype=np.int64),
        np.array([levels[part].mean() for part in parts]),
        np.array([right[part].mean() for part in parts]),
    )


def adaptive_ece(answers: Answers, n_bins: int = BINS) -> float:
    """Expected calibration error with bins of equally many images, 0 to 1."""
    return adaptive_reliability(answers, n_bins).error


@dataclass(frozen=True)
class ConfidentShares:
    """Shares of the images, each 0 to 1; they add up to 1.

    Attributes:
        confident_correct: Right with a probability of at least the threshold.
        confident_wrong: Wrong with a probability of at least the threshold.
        unsure: The predicted class has a probability below the threshold.
    """

    confident_correct: float
    confident_wrong: float
    unsure: float


def confident_shares(answers: Answers, threshold: float = CONFIDENT) -> ConfidentShares:
    """Returns how many predictions are confident and right, confident and wrong, and unsure.

    Raises:
        InputError: The threshold is not in (0, 1].
    """
    if not 0 < threshold <= 1:
        raise InputError(
            f"The confidence from which a prediction counts must be above 0 and at most 1, but is {threshold}."
        )
    sure, right = answers.confidence >= threshold, answers.correct
    return ConfidentShares(
        float((sure & right).mean()),
        float((sure & ~right).mean()),
        float((~sure).mean()),
    )


def _check_bins(n_bins: int) -> None:
    if isinstance(n_bins, bool) or not isinstance(n_bins, int) or n_bins < 1:
        raise InputError(f"The number of bins must be a whole number of at least 1, but is {n_bins!r}.")
