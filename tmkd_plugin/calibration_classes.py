"""What a classifier says of the classes that an image is not: profiles of the classes, and what they agree with."""

from __future__ import annotations

from typing import Any

import numpy as np

from tmkd_plugin.calibration import Answers, Floats, log_softmax
from tmkd_plugin.errors import InputError


def non_target_profiles(answers: Answers) -> Floats:
    """Returns how each class's images spread their probability over the other classes, (K, K).

    Row c is the mean over the images of true class c of ``p_k / (1 - p_c)``, k != c: the softmax over the other classes alone,
    so that how sure the classifier is of the true class has no say (the non-target part of Zhao et al., Decoupled Knowledge
    Distillation, CVPR 2022). Rows add up to 1. The diagonal is NaN, and so are rows of classes without images.
    """
    n, classes = answers.logits.shape
    profiles = np.full((classes, classes), np.nan)
    if classes < 2:
        return profiles
    masked = answers.logits.copy()
    masked[np.arange(n), answers.labels] = -np.inf
    shares = np.exp(log_softmax(masked))
    for label in np.unique(answers.labels):
        profiles[label] = shares[answers.labels == label].mean(axis=0)
    np.fill_diagonal(profiles, np.nan)
    return profiles


def row_agreement(profiles: Floats, reference: Any) -> float | None:
    """Mean over classes of the Spearman correlation of a profile with that class's row of a reference, diagonals left out.

    Args:
        profiles: (K, K), as :func:`non_target_profiles` gives them.
        reference: (K, K), such as the profiles of another classifier, or the similarity of the classes.

    Returns:
        -1 to 1; ``None`` where no class has two other classes that differ in both.

    Raises:
        InputError: The shapes differ.
    """
    reference = _square(reference, profiles)
    others = ~np.eye(len(profiles), dtype=bool)
    rows = [
        _spearman(profiles[row, others[row]], reference[row, others[row]])
        for row in range(len(profiles))
        if np.isfinite(profiles[row, others[row]]).all() and np.isfinite(reference[row, others[row]]).all()
    ]
    known = [value for value in rows if value is not None]
    return float(np.mean(known)) if known else None


def symmetry(profiles: Floats) -> float | None:
    """Spearman correlation of what c's images give k with what k's images give c, over all pairs of classes.

    1: who takes a cat for a dog takes a dog for a cat as readily. No text and no other classifier has a say.

    Returns:
        -1 to 1; ``None`` for fewer than three classes with images.
    """
    rows, columns = np.triu_indices(len(profiles), 1)
    there, back = profiles[rows, columns], profiles[columns, rows]
    known = np.isfinite(there) & np.isfinite(back)
    # Each pair both ways round: which of its classes comes first in the list has no say.
    there, back = there[known], back[known]
    return _spearman(np.concatenate([there, back]), np.concatenate([back, there])) if len(there) > 2 else None


def cosine_similarity(embeddings: Any) -> Floats:
    """Returns the cosines of class embeddings (K, D) with each other, (K, K)."""
    rows = np.asarray(embeddings, dtype=np.float64)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    found: Floats = rows @ rows.T
    return found


def _spearman(first: Floats, second: Floats) -> float | None:
    """Spearman's rank correlation, equal values with their mean rank; ``None`` where one of the two is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(values) for values in (first, second)]
    centred = [values - values.mean() for values in ranks]
    scale = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum() / scale) if scale > 0 else None


def _square(reference: Any, profiles: Floats) -> Floats:
    values = np.asarray(reference, dtype=np.float64)
    if values.shape != profiles.shape:
        raise InputError(f"The reference must be {profiles.shape}, one row a class, but is {values.shape}.")
    return values
