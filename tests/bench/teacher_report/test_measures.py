"""The figures of a group, pooled diagrams, and intervals over resampled images."""

from __future__ import annotations

import numpy as np
import pytest

from tmkd_plugin.bench.teacher_report.image_bootstrap import RESAMPLES, ImageValues, bootstrap_intervals
from tmkd_plugin.bench.teacher_report.measures import (
    BOOTSTRAPPED,
    MeasureSettings,
    means_and_sds,
    non_target_figures,
    plain_figures,
    pooled_diagram,
    scaled_figures,
)
from tmkd_plugin.calibration import answers_of, nll

SETTINGS = MeasureSettings(bins=10, confidence=0.7)


def drawn(seed, n=60, strength=2.0):
    draw = np.random.default_rng(seed)
    labels = np.random.default_rng(99).integers(0, 4, n)
    logits = draw.normal(size=(n, 4))
    logits[np.arange(n), labels] += strength
    return answers_of(logits, labels)


def test_figures_are_in_percent_and_nats():
    answers = drawn(0)
    figures = plain_figures(answers, SETTINGS)
    assert figures["top1"] == pytest.approx(100 * answers.correct.mean())
    assert figures["nll"] == nll(answers)
    assert figures["confident_correct"] + figures["confident_wrong"] + figures["unsure"] == pytest.approx(100)
    scaled = scaled_figures(answers, 2.0, SETTINGS)
    assert scaled["temperature"] == 2
    assert scaled["nll_scaled"] == nll(answers.at(2.0))
    assert "top1_scaled" not in scaled


def test_agreement_with_itself_is_one():
    from tmkd_plugin.calibration_classes import non_target_profiles

    answers = drawn(0)
    figures = non_target_figures(answers, None, non_target_profiles(answers))
    assert figures["agreement_with_single"] == pytest.approx(1)
    assert figures["semantic_agreement"] is None


def test_means_and_spread():
    mean, sd = means_and_sds([{"a": 1.0, "b": 2.0, "c": None}, {"a": 2.0, "b": 4.0, "c": 1.0}])
    assert mean == {"a": 1.5, "b": 3.0, "c": None}
    assert sd["b"] == pytest.approx(2**0.5, abs=1e-6)
    assert means_and_sds([{"a": 1.0}])[1] == {"a": None}


def test_pooled_diagram_is_that_of_all_predictions():
    one, two = drawn(1), drawn(2, strength=0.5)
    both = answers_of(np.concatenate([one.logits, two.logits]), np.concatenate([one.labels, two.labels]))
    pooled, expected = pooled_diagram([one, two], 10), pooled_diagram([both], 10)
    assert pooled["count"] == expected["count"]
    for name in ("confidence", "accuracy"):
        for found, wanted in zip(pooled[name], expected[name], strict=True):
            assert found == (None if wanted is None else pytest.approx(wanted, abs=2e-6))


def test_resampled_figures_are_the_figures_of_the_resample():
    answers = drawn(3)
    chosen = np.random.default_rng(0).integers(0, 60, 60)
    counts = np.bincount(chosen, minlength=60).astype(float)[None]
    found = dict(zip(BOOTSTRAPPED, ImageValues.of(answers, SETTINGS).figures(counts)[0], strict=True))
    expected = plain_figures(answers_of(answers.logits[chosen], answers.labels[chosen]), SETTINGS)
    for name in BOOTSTRAPPED:
        assert found[name] == pytest.approx(expected[name], abs=1e-9), name


def test_intervals_are_paired():
    """Two classifiers that differ by nothing on every image have a difference of exactly zero, whatever the images."""
    values = ImageValues.of(drawn(4), SETTINGS)
    intervals, differences = bootstrap_intervals({"single": [values], "same": [values, values]}, "single")
    for name, ends in intervals["single"].items():
        assert ends == pytest.approx(intervals["same"][name], abs=2e-6)
    assert list(differences) == ["same"]
    for ends in differences["same"].values():
        assert ends == pytest.approx([0, 0], abs=1e-9)
    low, high = intervals["single"]["top1"]
    assert low < plain_figures(drawn(4), SETTINGS)["top1"] < high
    assert bootstrap_intervals({"single": [values]}, "single")[0] == {"single": intervals["single"]}


def test_interval_has_the_width_of_the_binomial():
    """800 images, 80 % right: the standard error is 1.41 points, and 95 % are 3.92 of them."""
    labels = np.zeros(800, dtype=int)
    logits = np.zeros((800, 2))
    logits[:640, 0], logits[640:, 1] = 1, 1
    values = ImageValues.of(answers_of(logits, labels), SETTINGS)
    low, high = bootstrap_intervals({"single": [values]}, "single")[0]["single"]["top1"]
    assert high - low == pytest.approx(3.92 * 1.414, rel=0.15)
    assert RESAMPLES >= 1000
