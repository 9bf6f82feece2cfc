"""Mean corruption accuracy, mCE and relative mCE against the published formulas written out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmkd_plugin.bench.robustness.scores import Accuracies, mean_corruption_error, relative_mean_corruption_error

percent = st.floats(0, 99)
tables = st.lists(st.lists(percent, min_size=3, max_size=3), min_size=2, max_size=4)


def accuracies(clean, table):
    return Accuracies(clean, {f"c{k}": dict(enumerate(row, 1)) for k, row in enumerate(table)}, {})


BASELINE = accuracies(90.0, [[80.0, 70.0, 60.0], [50.0, 40.0, 30.0]])
NETWORK = accuracies(92.0, [[85.0, 75.0, 68.0], [50.0, 35.0, 20.0]])


def test_mce_is_the_mean_of_the_ratios_of_sums():
    ratios = [(15 + 25 + 32) / (20 + 30 + 40), (50 + 65 + 80) / (50 + 60 + 70)]
    assert mean_corruption_error(NETWORK, BASELINE) == pytest.approx(100 * sum(ratios) / 2)


def test_relative_mce_takes_the_clean_error_off():
    ratios = [(7 + 17 + 24) / (10 + 20 + 30), (42 + 57 + 72) / (40 + 50 + 60)]
    assert relative_mean_corruption_error(NETWORK, BASELINE) == pytest.approx(100 * sum(ratios) / 2)


def test_accuracies_are_averaged_over_severities_then_corruptions():
    assert NETWORK.by_corruption == pytest.approx({"c0": 76.0, "c1": 35.0})
    assert NETWORK.mean_corrupted == pytest.approx(55.5)
    assert NETWORK.lost == pytest.approx(36.5)


@given(table=tables, clean=percent)
def test_a_network_against_itself_has_100(table, clean):
    network = accuracies(clean, table)
    assert mean_corruption_error(network, network) == pytest.approx(100)
    assert relative_mean_corruption_error(network, network) in (None, pytest.approx(100))


@given(table=tables, gain=st.floats(0.1, 1))
def test_fewer_errors_mean_less(table, gain):
    network, baseline = (accuracies(100.0, [[value + more for value in row] for row in table]) for more in (gain, 0))
    assert mean_corruption_error(network, baseline) < 100
    assert network.mean_corrupted > baseline.mean_corrupted


def test_a_baseline_without_errors_gives_no_ratio():
    perfect = accuracies(100.0, [[100.0, 100.0, 100.0], [50.0, 40.0, 30.0]])
    assert mean_corruption_error(NETWORK, perfect) is None
    assert mean_corruption_error(perfect, BASELINE) is not None


@pytest.mark.parametrize(("loss", "is_known"), [(0.9, False), (1.1, True), (-3.0, False)])
def test_a_baseline_that_loses_nothing_gives_no_relative_ratio(loss, is_known):
    steady = accuracies(90.0, [[90 - loss] * 3, [50.0, 40.0, 30.0]])
    assert (relative_mean_corruption_error(NETWORK, steady) is not None) == is_known
