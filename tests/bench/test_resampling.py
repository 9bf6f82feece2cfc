"""The sign-flip test against all signs written out and against scipy, and the bootstrap where it is allowed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tmkd_plugin.bench.resampling import bootstrap_interval, sign_flip_test
from tmkd_plugin.errors import InputError

DIFFERENCES = [0.5, 1.0, -0.25, 1.0, 1.25, 0.75, -0.5]

differences_lists = st.lists(st.integers(-500, 500).map(lambda n: n / 100), min_size=1, max_size=10)


def naive_p_value(differences) -> float:
    found = abs(sum(differences))
    sums = [
        abs(sum(sign * value for sign, value in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(total >= found - 1e-9 for total in sums) / len(sums)


@given(differences_lists)
def test_counts_all_signs(differences):
    tested = sign_flip_test(differences)
    assert tested.exact
    assert tested.p_value == pytest.approx(naive_p_value(differences))
    assert sign_flip_test([-value for value in differences]).p_value == tested.p_value
    assert 2.0 ** (1 - len(differences)) - 1e-12 <= tested.p_value <= 1


def test_equals_scipy():
    expected = stats.permutation_test((np.array(DIFFERENCES),), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_test(DIFFERENCES).p_value == pytest.approx(expected.pvalue)


@pytest.mark.parametrize(("n", "smallest"), [(1, 1.0), (3, 0.25), (5, 0.0625), (6, 0.03125)])
def test_says_when_n_is_too_small_for_5_percent(n, smallest):
    tested = sign_flip_test([1.0] * n)
    assert tested.p_value == smallest
    if n < 6:
        assert tested.note == f"can't reach 0.05 with n = {n}: the smallest p-value is {smallest:g}; it takes n = 6"
    else:
        assert tested.note is None


def test_draws_signs_where_there_are_too_many():
    differences = list(np.random.default_rng(0).normal(0.3, 1, 22).round(2))
    drawn = sign_flip_test(differences)
    sums = np.array(differences[:1])
    for value in differences[1:]:
        sums = np.concatenate([sums + value, sums - value])
    exact = (np.abs(sums) >= abs(sum(differences)) - 1e-9).mean()
    assert not drawn.exact
    assert "100,000 signs drawn with seed 0" in drawn.note
    assert drawn.p_value == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 100_000) + 1e-5)
    assert sign_flip_test(differences) == drawn
    assert sign_flip_test(differences, seed=1).p_value != drawn.p_value
    assert 0 < sign_flip_test([1.0] * 40).p_value < 1e-4


@pytest.mark.parametrize("differences", [[], [math.nan], [1.0, math.inf]])
def test_unusable_differences(differences):
    with pytest.raises(InputError, match="finite differences, at least one"):
        sign_flip_test(differences)


def test_bootstrap_from_20_differences_on():
    differences = list(np.random.default_rng(1).normal(0.5, 1, 20))
    assert bootstrap_interval(differences[:19]) is None
    expected = (
        stats.bootstrap(
            (differences,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(2)
        ).confidence_interval
        if "rng" in stats.bootstrap.__doc__
        else None
    )
    low, high = bootstrap_interval(differences)
    assert low < np.mean(differences) < high
    if expected is not None:
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.03)
    assert bootstrap_interval(differences) == (low, high)
