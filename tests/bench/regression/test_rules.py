"""What a check finds in figures that are known, and how often unchanged code raises an alarm."""

from __future__ import annotations

import math

import numpy as np
import pytest
from regression_cases import write_comparison
from scipy import stats

from tmkd_plugin.bench.regression.bands import difference_interval, prediction_band
from tmkd_plugin.bench.regression.command import RegressOptions, regress

CHANGES = {"training": {"epochs": 2}}


@pytest.fixture
def check(reference, tmp_path):
    """Checks a comparison with the given figures; returns the exit code and the printed lines."""

    def run(seeds=range(3), margin=1.0, strict=False, **figures):
        results = write_comparison(tmp_path / "check", seeds, assignments=CHANGES, **figures)
        lines: list[str] = []
        options = RegressOptions(reference=str(reference), results=results, margin=margin, strict=strict)
        return regress(options, lines.append), lines

    return run


def only(lines: list[str], *parts: str) -> str:
    (line,) = [line for line in lines if all(part in line for part in parts)]
    return line


def test_unchanged_figures_pass(check):
    code, lines = check()
    assert code == 0
    assert lines[-1] == "No regression: all 6 rules hold."
    assert not any("FAILED" in line for line in lines)


def test_an_arm_below_its_band_fails_with_the_distance(check):
    code, lines = check(kd=84.0, tmkd=85.0)
    assert code == 1
    line = only(lines, "FAILED  KD is where it was: test top-1")
    assert "points below its band." in line
    assert "band [" in line
    assert "n = 20)" in line
    assert lines[-1] == "Regression: 2 of 6 rules failed."


def test_an_arm_above_its_band_fails_too(check):
    code, lines = check(tmkd=96.0)
    assert code == 1
    assert "points above its band." in only(lines, "FAILED", "KD + TMKD is where it was: test top-1")


def test_a_term_of_the_loss_out_of_its_band_fails_where_accuracy_does_not(check):
    code, lines = check(contrast=-0.5)
    assert code == 1
    assert "below its band." in only(lines, "FAILED", "KD + TMKD is where it was: text_contrast")
    assert lines[-1] == "Regression: 1 of 6 rules failed."


def test_shown_worse_fails_with_the_distance_from_the_margin(check):
    code, lines = check(kd=90.0, tmkd=85.0, sd=0.1)
    assert code == 1
    line = only(lines, "FAILED", "not shown to be worse")
    interval = line.split("interval [")[1].split("]")[0]
    upper = float(interval.split(", ")[1])
    assert f"the upper bound is {-1.0 - upper:.2f} points below -1.00." in line
    assert check(kd=90.0, tmkd=85.0, sd=0.1, margin=9.0)[1][-1] == "Regression: 1 of 6 rules failed."


def test_a_worse_mean_alone_shows_nothing(check):
    code, lines = check(kd=90.3, tmkd=89.9)
    assert code == 0
    assert "is not below -1.00" in only(lines, "not shown to be worse")


def test_strict_demands_the_lower_bound(check):
    code, lines = check(kd=90.3, tmkd=89.9, strict=True)
    assert code == 1
    assert "points short of -1.00" in only(lines, "FAILED", "(strict)")
    assert check(sd=0.1, strict=True)[0] == 0
    code, lines = check(seeds=[5], strict=True)
    assert code == 1
    assert "one seed has no interval" in only(lines, "FAILED", "(strict)")


def test_equal_differences_of_a_few_seeds_show_no_more_than_the_test_set_resolves(check):
    _, lines = check(kd=90.0, tmkd=91.0, sd=0.0)
    half = stats.t.ppf(0.975, 2) * (100 / 800) / math.sqrt(3)
    assert f"interval [{1 - half:+.2f}, {1 + half:+.2f}]" in only(lines, "not shown to be worse")


def test_band_against_the_textbook():
    band = prediction_band(10.0, 2.0, 20, 4, bands=1)
    half = stats.t.ppf(0.9995, 19) * 2.0 * math.sqrt(1 / 4 + 1 / 20)
    assert (band.low, band.high) == pytest.approx((10 - half, 10 + half))
    assert band.distance(10 + half + 1) == pytest.approx(1)
    assert band.distance(10 - half - 2) == pytest.approx(2)
    assert band.distance(10) == 0
    wider = prediction_band(10.0, 2.0, 20, 4, bands=5)
    assert wider.high == pytest.approx(10 + stats.t.ppf(1 - 0.0001, 19) * 2.0 * math.sqrt(1 / 4 + 1 / 20))
    assert prediction_band(10.0, 0.0, 20, 4, bands=1, least_sd=2.0) == band


def test_unchanged_code_raises_an_alarm_in_one_of_a_thousand_checks():
    draw, alarms, checks, n, new = np.random.default_rng(0), 0, 20_000, 20, 3
    reference = draw.normal(90, 1.5, (checks, n))
    means = draw.normal(90, 1.5, (checks, new)).mean(axis=1)
    half = prediction_band(0.0, 1.0, n, new, bands=1).high  # in units of the reference's sd
    alarms = (np.abs(means - reference.mean(axis=1)) > half * reference.std(axis=1, ddof=1)).sum()
    assert 5 <= alarms <= 40  # 20 expected


def test_interval_is_scipys():
    differences = [0.5, 1.25, -0.25, 1.0]
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert difference_interval(differences, 0.125) == pytest.approx((expected.low, expected.high))
    assert difference_interval([1.0], 0.125) is None


@pytest.mark.parametrize(("contrast", "code"), [(0.25, 1), (1.0, 1), (0.4, 0), (0.6, 0)])
def test_a_term_that_is_halved_or_doubled_fails_and_one_of_late_learners_does_not(check, contrast, code):
    assert check(contrast=contrast, sd=0.3)[0] == code
