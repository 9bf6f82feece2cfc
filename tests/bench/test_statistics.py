"""The paired comparison against scipy and a naive reference, and the words made of its interval."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tmkd_plugin.bench.statistics import PairedComparison, compare_pairs, mean_and_sd, verdict
from tmkd_plugin.errors import InputError

BASELINE = [91.25, 90.5, 92.75, 91.0, 90.125]
ENHANCED = [91.75, 91.5, 92.5, 92.0, 91.375]

accuracies = st.lists(
    st.tuples(st.integers(0, 10000).map(lambda n: n / 100), st.integers(0, 10000).map(lambda n: n / 100)),
    min_size=2,
    max_size=12,
)


def test_equals_the_paired_t_test_of_scipy():
    compared = compare_pairs(BASELINE, ENHANCED)
    expected = stats.ttest_rel(ENHANCED, BASELINE)
    interval = expected.confidence_interval(0.95)
    assert compared.delta == pytest.approx(0.7)
    assert compared.p_value == pytest.approx(expected.pvalue)
    assert compared.ci95 == pytest.approx((interval.low, interval.high))
    assert compared.n == 5


def test_interval_by_hand():
    # t(0.975, 2 degrees of freedom) = 4.302652729911275; differences 1, 2, 3: mean 2, sd 1.
    compared = compare_pairs([0, 0, 0], [1, 2, 3])
    half = 4.302652729911275 / math.sqrt(3)
    assert compared.sd == pytest.approx(1)
    assert compared.ci95 == pytest.approx((2 - half, 2 + half))


@given(accuracies)
def test_properties(pairs):
    baseline, enhanced = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    compared, reversed_ = compare_pairs(baseline, enhanced), compare_pairs(enhanced, baseline)
    differences = [after - before for before, after in pairs]
    assert compared.delta == pytest.approx(statistics.mean(differences), abs=1e-9)
    assert compared.sd == pytest.approx(statistics.stdev(differences), abs=1e-7)
    low, high = compared.ci95
    assert low <= compared.delta <= high
    assert reversed_.ci95 == pytest.approx((-high, -low))
    opposite = {"better": "worse", "worse": "better"}
    assert verdict(reversed_) == opposite.get(verdict(compared), verdict(compared))
    # The test at 5 % and the interval of 95 % say the same.
    if compared.sd and abs(compared.p_value - 0.05) > 1e-9:
        assert (verdict(compared) in opposite) == (compared.p_value < 0.05)


def test_one_pair_has_no_interval():
    compared = compare_pairs([90.0], [95.0])
    assert compared == PairedComparison(5.0, None, None, 1, None)
    assert verdict(compared) == "not resolved with n = 1"


def test_equal_differences_resolve_nothing():
    # 0.3 - 0.2 and 0.2 - 0.1 differ by rounding only.
    compared = compare_pairs([0.2, 0.1], [0.3, 0.2])
    assert compared.sd == 0
    assert compared.ci95 == pytest.approx((0.1, 0.1))
    assert compared.p_value is None
    assert verdict(compared) == "not resolved with n = 2"
    assert compare_pairs([1, 2], [1, 2]).p_value == 1.0


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((0.1, 0.9), "better"),
        ((-0.9, -0.1), "worse"),
        ((-0.1, 0.9), "not resolved with n = 4"),
        ((0.0, 0.9), "not resolved with n = 4"),
    ],
)
def test_verdict_is_the_intervals(interval, words):
    assert verdict(PairedComparison(sum(interval) / 2, 0.3, interval, 4, 0.5)) == words


@pytest.mark.parametrize(
    ("baseline", "enhanced", "message"),
    [
        ([], [], "at least one"),
        ([1.0], [1.0, 2.0], "got 1 and 2"),
        ([1.0], [math.nan], "finite"),
        ([math.inf], [1.0], "finite"),
    ],
)
def test_unusable_pairs(baseline, enhanced, message):
    with pytest.raises(InputError, match=message):
        compare_pairs(baseline, enhanced)


def test_mean_and_sd():
    assert mean_and_sd([2.0]) == (2.0, None)
    assert mean_and_sd(BASELINE) == pytest.approx((statistics.mean(BASELINE), statistics.stdev(BASELINE)))


@pytest.mark.parametrize("n", [3, 5, 8])
def test_the_interval_covers_the_true_difference_in_95_percent_of_comparisons(n):
    draw = np.random.default_rng(n)
    true_difference, covered, comparisons = 0.4, 0, 2000
    for _ in range(comparisons):
        shared = draw.normal(90, 2, n)  # of the seed, in both arms
        compared = compare_pairs(
            list(shared + draw.normal(0, 0.5, n)), list(shared + true_difference + draw.normal(0, 0.9, n))
        )
        low, high = compared.ci95
        covered += low <= true_difference <= high
    assert 0.93 <= covered / comparisons <= 0.97
