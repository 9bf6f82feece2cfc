"""What is said of a difference: nothing that its interval does not show."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from tmkd_plugin.bench.robustness.outcome import comparison_entries
from tmkd_plugin.bench.robustness.scores import Accuracies, mean_corruption_error
from tmkd_plugin.bench.robustness.words import sentence, sentences, verdict_of


def students(*corrupted):
    return {seed: Accuracies(90.0, {"fog": {1: value}}, {}) for seed, value in enumerate(corrupted)}


METRICS = {
    "corrupted": lambda network, _: network.mean_corrupted,
    "lost": lambda network, _: network.lost,
    "mce": mean_corruption_error,
}


def entries(before, after):
    return {entry["metric"]: entry for entry in comparison_entries("a", "b", before, after, before, METRICS)}


def test_the_interval_is_that_of_the_paired_differences():
    found = entries(students(60.0, 70.0, 65.0), students(62.0, 71.0, 68.0))
    differences = [2.0, 1.0, 3.0]
    half = stats.t.ppf(0.975, 2) * 1.0 / math.sqrt(3)
    assert found["corrupted"]["delta"] == pytest.approx(sum(differences) / 3)
    assert found["corrupted"]["ci95"] == pytest.approx([2 - half, 2 + half], abs=1e-6)
    ratios = [100 * (38 / 40 - 1), 100 * (29 / 30 - 1), 100 * (32 / 35 - 1)]
    mean = sum(ratios) / 3
    sd = math.sqrt(sum((ratio - mean) ** 2 for ratio in ratios) / 2)
    assert found["mce"]["delta"] == pytest.approx(mean, abs=1e-6)
    assert found["mce"]["sd"] == pytest.approx(sd, abs=1e-6)
    assert found["mce"]["n"] == 3


def test_mce_of_both_arms_is_against_the_baseline():
    """KD errs on 40 and 20 %, the arms that are compared on 30 and 20, and on 24 and 18."""
    kd, tmkd, richkd = students(60.0, 80.0), students(70.0, 80.0), students(76.0, 82.0)
    found = {entry["metric"]: entry for entry in comparison_entries("a", "b", tmkd, richkd, kd, METRICS)}
    differences = [100 * (24 - 30) / 40, 100 * (18 - 20) / 20]
    assert found["mce"]["delta"] == pytest.approx(sum(differences) / 2)


def test_without_the_baseline_s_students_no_mce_is_compared():
    for kd in ({}, students(60.0)):
        compared = comparison_entries("a", "b", students(70.0, 80.0), students(76.0, 82.0), kd, METRICS)
        assert [entry["metric"] for entry in compared] == ["corrupted", "lost"]


def test_less_error_is_better_and_more_is_worse():
    better = entries(students(60.0, 70.0, 65.0), students(62.0, 71.9, 67.1))
    assert {verdict_of(entry) for entry in better.values()} == {"better"}
    worse = entries(students(62.0, 71.9, 67.1), students(60.0, 70.0, 65.0))
    assert {verdict_of(entry) for entry in worse.values()} == {"worse"}


def test_what_is_not_resolved_is_not_claimed():
    found = entries(students(60.0, 70.0), students(62.0, 79.0))
    for entry in found.values():
        assert verdict_of(entry) == "not resolved with n = 2"
        assert "not resolved with n = 2" in sentence("B", "A", "here", entry)


def test_one_seed_has_no_interval():
    found = entries(students(60.0), students(70.0))
    said = sentence("B", "A", "here", found["corrupted"])
    assert said == "B against A here: +10.00; not resolved with n = 1: one seed has no interval."


def test_seeds_that_one_arm_lacks_are_left_out():
    found = entries(students(60.0, 70.0), students(61.0))
    assert found["corrupted"]["n"] == 1
    assert entries(students(60.0), {5: students(1.0)[0]}) == {}


def test_a_metric_without_a_value_for_some_seed_is_left_out():
    found = entries(students(60.0, 100.0), students(70.0, 90.0))
    assert "mce" not in found
    assert found["corrupted"]["n"] == 2


def test_every_comparison_has_its_sentence():
    before = students(60.0, 70.0)
    compared = comparison_entries("a", "b", before, students(62.0, 71.0), before, METRICS)
    shift = {**compared[0], "metric": "shift:sketches"}
    lines = sentences(
        {"arms": [{"name": "a", "title": "A"}, {"name": "b", "title": "B"}], "comparisons": [*compared, shift]}
    )
    assert len(lines) == 4
    assert all(line.startswith("B against A ") for line in lines)
    assert "on the images of sketches" in lines[3]
