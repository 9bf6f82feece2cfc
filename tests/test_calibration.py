"""Calibration: cases by hand, naive loops in float64, torchmetrics as a second opinion, and what must hold of any logits."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tmkd_plugin.calibration import (
    adaptive_ece,
    adaptive_reliability,
    answers_of,
    brier,
    confident_shares,
    ece,
    nll,
    reliability,
    top1,
)
from tmkd_plugin.calibration_classes import cosine_similarity, non_target_profiles, row_agreement, symmetry
from tmkd_plugin.calibration_temperature import fit_temperature
from tmkd_plugin.errors import InputError


def of_probabilities(rows, labels):
    """Answers with these probabilities."""
    with np.errstate(divide="ignore"):
        return answers_of(np.maximum(np.log(np.array(rows, dtype=np.float64)), -1e4), np.array(labels))


def drawn(n=200, classes=7, scale=2.0, seed=0):
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, n)
    logits = scale * draw.normal(size=(n, classes))
    logits[np.arange(n), labels] += 2
    return answers_of(logits, labels)


@st.composite
def any_answers(draw):
    """Logits on a coarse grid, so that ties, certainty and K = 2 come up."""
    classes, n = draw(st.integers(2, 5)), draw(st.integers(1, 30))
    row = st.lists(st.integers(-12, 12), min_size=classes, max_size=classes)
    logits = draw(st.lists(row, min_size=n, max_size=n))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n))
    return answers_of(np.array(logits) * draw(st.sampled_from([0.25, 1.0, 40.0])), np.array(labels))


def test_by_hand():
    """Four images of two classes and five bins: every number can be written down."""
    answers = of_probabilities([[0.9, 0.1], [0.3, 0.7], [0.65, 0.35], [0.05, 0.95]], [0, 0, 0, 1])
    assert top1(answers) == 0.75
    # Bins (0.6, 0.8] with 0.7 wrong and 0.65 right, (0.8, 1] with 0.9 and 0.95 right.
    assert ece(answers, 5) == pytest.approx(0.5 * abs(0.5 - 0.675) + 0.5 * abs(1 - 0.925))
    diagram = reliability(answers, 5)
    assert diagram.counts.tolist() == [0, 0, 0, 2, 2]
    np.testing.assert_allclose(diagram.confidence, [np.nan] * 3 + [0.675, 0.925])
    np.testing.assert_allclose(diagram.accuracy, [np.nan] * 3 + [0.5, 1.0])
    # Two bins of two images: {0.65, 0.7} and {0.9, 0.95}.
    assert adaptive_ece(answers, 2) == pytest.approx(0.5 * 0.175 + 0.5 * 0.075)
    assert nll(answers) == pytest.approx(-np.log([0.9, 0.3, 0.65, 0.95]).mean())
    assert brier(answers) == pytest.approx(2 * np.mean([0.1**2, 0.7**2, 0.35**2, 0.05**2]))
    shares = confident_shares(answers, 0.7)
    assert (shares.confident_correct, shares.confident_wrong, shares.unsure) == (0.5, 0.25, 0.25)


def test_a_bin_holds_its_upper_end():
    answers = of_probabilities([[0.5, 0.5], [0.6, 0.4], [1.0, 0.0]], [0, 0, 0])
    assert reliability(answers, 2).counts.tolist() == [1, 2]
    assert reliability(answers, 1).counts.tolist() == [3]


def naive_ece(answers, edges):
    total = 0.0
    for low, high in itertools.pairwise(edges):
        inside = [n for n in range(len(answers.labels)) if low < answers.confidence[n] <= high]
        if inside:
            accuracy = sum(float(answers.correct[n]) for n in inside) / len(inside)
            confidence = sum(float(answers.confidence[n]) for n in inside) / len(inside)
            total += len(inside) / len(answers.labels) * abs(accuracy - confidence)
    return total


def naive_adaptive_ece(answers, n_bins):
    """For confidences that all differ."""
    order = sorted(range(len(answers.labels)), key=lambda n: answers.confidence[n])
    size, rest = divmod(len(order), n_bins)
    total, start = 0.0, 0
    for b in range(n_bins):
        part = order[start : (start := start + size + (b < rest))]
        gap = sum(float(answers.correct[n]) - float(answers.confidence[n]) for n in part)
        total += abs(gap) / len(order)
    return total


@pytest.mark.parametrize("bins", [1, 10, 15, 37])
def test_equals_loops(bins):
    answers = drawn()
    assert ece(answers, bins) == pytest.approx(naive_ece(answers, [b / bins for b in range(bins + 1)]), abs=1e-12)
    assert adaptive_ece(answers, bins) == pytest.approx(naive_adaptive_ece(answers, bins), abs=1e-12)
    likelihood, score = [], []
    for row, label in zip(answers.logits.tolist(), answers.labels.tolist(), strict=True):
        weights = [math.exp(value) for value in row]
        p = [weight / sum(weights) for weight in weights]
        likelihood.append(-math.log(p[label]))
        score.append(sum((p[k] - (k == label)) ** 2 for k in range(len(p))))
    assert nll(answers) == pytest.approx(np.mean(likelihood), abs=1e-12)
    assert brier(answers) == pytest.approx(np.mean(score), abs=1e-12)


def test_torchmetrics_agrees():
    from torchmetrics.functional.classification import multiclass_calibration_error

    answers = drawn(500)
    expected = multiclass_calibration_error(
        torch.from_numpy(answers.probabilities), torch.from_numpy(answers.labels), 7, n_bins=15, norm="l1"
    )
    assert ece(answers, 15) == pytest.approx(float(expected), abs=1e-6)


def test_all_right_and_all_certain():
    certain = answers_of(1e4 * np.eye(3), np.arange(3))
    assert (ece(certain), adaptive_ece(certain), nll(certain), brier(certain)) == (0, 0, 0, 0)
    wrong = answers_of(1e4 * np.eye(3), np.array([1, 2, 0]))
    assert (ece(wrong), adaptive_ece(wrong), brier(wrong)) == (1, 1, 2)
    assert nll(wrong) == 1e4  # the probability itself is 0 in float64


def test_images_that_tie_share_a_bin_s_ends():
    """Ten images of one confidence, half of them right: however they are listed, each half of them is half right."""
    logits = np.tile([1.0, 0.0], (10, 1))
    for labels in ([0] * 5 + [1] * 5, [0, 1] * 5):
        answers = answers_of(logits, np.array(labels))
        assert adaptive_reliability(answers, 2).accuracy.tolist() == [0.5, 0.5]


@settings(max_examples=150, deadline=None)
@given(any_answers(), st.integers(1, 40), st.randoms(use_true_random=False))
def test_holds_of_any_logits(answers, bins, random):
    order = list(range(len(answers.labels)))
    random.shuffle(order)
    shuffled = answers_of(answers.logits[order], answers.labels[order])
    for measure in (lambda a: ece(a, bins), lambda a: adaptive_ece(a, bins), nll, brier, top1):
        assert measure(answers) == pytest.approx(measure(shuffled), abs=1e-9)
    assert 0 <= ece(answers, bins) <= 1
    assert 0 <= adaptive_ece(answers, bins) <= 1
    # The gap of the means is the error of a single bin, and bins can only add to it.
    assert ece(answers, 1) == pytest.approx(abs(answers.correct.mean() - answers.confidence.mean()), abs=1e-12)
    assert ece(answers, bins) >= ece(answers, 1) - 1e-12
    assert adaptive_ece(answers, bins) >= ece(answers, 1) - 1e-12
    assert 0 <= brier(answers) <= 2 + 1e-12
    for diagram in (reliability(answers, bins), adaptive_reliability(answers, bins)):
        assert diagram.counts.sum() == len(answers.labels)
    sizes = adaptive_reliability(answers, bins).counts
    assert sizes.max() - sizes.min() <= 1
    shares = confident_shares(answers, 0.6)
    assert shares.confident_correct + shares.confident_wrong + shares.unsure == pytest.approx(1)
    assert shares.confident_correct <= top1(answers) + 1e-12


@settings(max_examples=150, deadline=None)
@given(any_answers())
def test_temperature_never_harms_what_it_is_fitted_on(answers):
    fit = fit_temperature(answers)
    assert fit.temperature > 0
    assert fit.nll_before == nll(answers)
    assert fit.nll_after <= fit.nll_before
    scaled = answers.at(fit.temperature)
    assert nll(scaled) == pytest.approx(fit.nll_after, abs=1e-12)
    assert (scaled.correct == answers.correct).all()
    if fit.reason is None and fit.temperature != 1:
        for nearby in (0.99, 1.01):
            assert nll(answers.at(fit.temperature * nearby)) >= fit.nll_after - 1e-12


def test_temperature_by_hand():
    """Odds of 3 : 1 for a classifier that says 9 : 1: its one logit gap log 9 must become log 3, so T = 2."""
    answers = of_probabilities([[0.9, 0.1]] * 4, [0, 0, 0, 1])
    fit = fit_temperature(answers)
    assert fit.temperature == pytest.approx(2, abs=1e-9)
    assert fit.nll_after == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert ece(answers.at(fit.temperature)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("truth", [0.3, 1.0, 4.0])
def test_temperature_is_found_again(truth):
    draw = np.random.default_rng(3)
    logits = draw.normal(size=(20000, 5)) * 2
    labels = (np.log(-np.log(draw.random(logits.shape))) * -1 + logits).argmax(axis=1)  # Gumbel: drawn from the softmax
    assert fit_temperature(answers_of(truth * logits, labels)).temperature == pytest.approx(truth, rel=0.05)


def test_no_best_temperature():
    right = fit_temperature(of_probabilities([[0.6, 0.4], [0.2, 0.8]], [0, 1]))
    assert (right.temperature, right.nll_before) == (1, right.nll_after)
    assert str(right.reason).startswith("on no validation image is a class above the true one")
    wrong = fit_temperature(of_probabilities([[0.6, 0.4], [0.2, 0.8]], [1, 0]))
    assert wrong.temperature == 1
    assert "no better than a uniform guess" in str(wrong.reason)


@pytest.mark.parametrize("label", [0, 1])
def test_equal_logits_are_a_uniform_guess_whichever_class_is_the_true_one(label):
    fit = fit_temperature(answers_of(np.full((4, 3), 2.0), np.full(4, label)))
    assert fit.temperature == 1
    assert "no better than a uniform guess" in str(fit.reason)


def test_profiles_by_hand():
    answers = of_probabilities([[0.5, 0.4, 0.1], [0.8, 0.05, 0.15], [0.2, 0.6, 0.2]], [0, 0, 1])
    profiles = non_target_profiles(answers)
    np.testing.assert_allclose(profiles[0], [np.nan, (0.8 + 0.25) / 2, (0.2 + 0.75) / 2])
    np.testing.assert_allclose(profiles[1], [0.5, np.nan, 0.5])
    assert np.isnan(profiles[2]).all()
    # A certain classifier has no mass left over, but still an order of the other classes.
    sure = non_target_profiles(answers_of([[5000.0, 1.0, 0.0]], [0]))
    assert sure[0, 1] / sure[0, 2] == pytest.approx(math.e)


def test_agreement_by_hand():
    profiles = np.array([[np.nan, 0.7, 0.3, 0.0], [0.1, np.nan, 0.2, 0.7], [0.2, 0.2, np.nan, 0.6], [np.nan] * 4])
    similarity = np.array([[1, 0.9, 0.5, 0.1], [0.9, 1, 0.3, 0.2], [0.5, 0.3, 1, 0.4], [0.1, 0.2, 0.4, 1]])
    # Row 0: same order, 1. Row 1: ranks 1 2 3 against 3 2 1, -1. Row 2: ranks 1.5 1.5 3 against 3 1 2, 0. Row 3: no images.
    assert row_agreement(profiles, similarity) == pytest.approx(0, abs=1e-12)
    assert row_agreement(profiles, profiles) == pytest.approx(1)
    assert row_agreement(profiles, 1 - np.nan_to_num(profiles)) == pytest.approx(-1)
    assert row_agreement(profiles, np.ones((4, 4))) is None


def test_symmetry_by_hand():
    even = np.array([[np.nan, 0.7, 0.3], [0.6, np.nan, 0.4], [0.2, 0.8, np.nan]])
    pairs = [(0.7, 0.6), (0.3, 0.2), (0.4, 0.8)]
    from scipy.stats import spearmanr

    first, second = [a for a, _ in pairs] + [b for _, b in pairs], [b for _, b in pairs] + [a for a, _ in pairs]
    assert symmetry(even) == pytest.approx(spearmanr(first, second).statistic)
    order = [2, 0, 1]
    assert symmetry(even[np.ix_(order, order)]) == pytest.approx(symmetry(even))
    assert symmetry(even + np.nan_to_num(even.T)) == pytest.approx(1)


def test_two_classes_have_nothing_to_rank():
    answers = drawn(classes=2)
    profiles = non_target_profiles(answers)
    np.testing.assert_allclose(profiles, [[np.nan, 1], [1, np.nan]])
    assert row_agreement(profiles, np.eye(2)) is None
    assert symmetry(profiles) is None
    assert 0 < ece(answers) < 1


def test_cosines():
    np.testing.assert_allclose(cosine_similarity([[2.0, 0.0], [3.0, 3.0]]), [[1, 2**-0.5], [2**-0.5, 1]])


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0, dtype=int), "at least 1"),
        (np.zeros((2, 3)), np.zeros(3, dtype=int), r"labels \(N,\)"),
        (np.zeros((2, 3)), np.zeros(2), "integer labels"),
        (np.full((2, 3), np.nan), np.zeros(2, dtype=int), "finite"),
        (np.zeros((2, 3)), np.array([0, 3]), r"\[0, 2\]"),
        (np.zeros((2, 3)), np.array([-1, 0]), r"\[0, 2\]"),
    ],
)
def test_refuses(logits, labels, message):
    with pytest.raises(InputError, match=message):
        answers_of(logits, labels)


def test_refuses_settings():
    with pytest.raises(InputError, match="bins must be a whole number"):
        ece(drawn(), 0)
    with pytest.raises(InputError, match="bins must be a whole number"):
        adaptive_ece(drawn(), 2.5)
    with pytest.raises(InputError, match="above 0 and at most 1"):
        confident_shares(drawn(), 1.5)
    with pytest.raises(InputError, match="one row a class"):
        row_agreement(np.eye(3), np.eye(4))
