"""The number of seeds against published tables and simulation, and what ``tmkd power`` says."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tmkd_plugin.bench.power import power_of, seeds_for_non_inferiority, seeds_needed, spread_of
from tmkd_plugin.commands import power as command
from tmkd_plugin.commands.parser import Parser
from tmkd_plugin.errors import InputError


@pytest.mark.parametrize(("effect", "power", "n"), [(0.2, 0.8, 199), (0.5, 0.8, 34), (0.8, 0.8, 15), (0.5, 0.9, 44)])
def test_the_numbers_of_published_tables(effect, power, n):
    # J. Cohen's effect sizes for the two-sided t test of one mean at 5 %, as G*Power gives them.
    assert seeds_needed(effect, 1.0, power) == n
    assert seeds_needed(-10 * effect, 10.0, power) == n


@pytest.mark.parametrize(("gain", "sd", "n"), [(0.5, 1.1, 12), (1.0, 0.8, 5), (0.5, 0.3, 4)])
def test_power_is_the_share_of_simulated_comparisons_that_resolve_the_gain(gain, sd, n):
    simulated = np.random.default_rng(0).normal(gain, sd, (40_000, n))
    tested = stats.ttest_1samp(simulated, 0, axis=1)
    share = ((tested.pvalue < 0.05) & (tested.statistic > 0)).mean()
    assert power_of(gain, sd, n) == pytest.approx(share, abs=0.01)


@given(st.floats(0.05, 50), st.floats(0.05, 20), st.floats(0.1, 0.95))
def test_is_the_fewest_that_is_enough(gain, sd, power):
    n = seeds_needed(gain, sd, power)
    assert power_of(gain, sd, n) >= power
    assert n == 2 or power_of(gain, sd, n - 1) < power


def test_non_inferiority_is_a_gain_over_the_margin():
    assert seeds_for_non_inferiority(0.2, 1.1, 0.3) == seeds_needed(0.5, 1.1)
    assert seeds_for_non_inferiority(-1.0, 1.1, 1.0) is None
    assert seeds_for_non_inferiority(-1.0, 1.1, 1.0 + 1e-6) is None


def test_the_interval_of_a_standard_deviation_covers_it():
    draw = np.random.default_rng(1)
    intervals = [spread_of(float(np.std(draw.normal(0, 2, 5), ddof=1)), 5, "").ci95 for _ in range(2000)]
    assert 0.93 <= np.mean([low <= 2 <= high for low, high in intervals]) <= 0.97


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0), "gain must not be 0"),
        ((0.5, 0.0), "sd must be a number above 0"),
        ((0.5, 1.0, 1.0), "power must be below 1"),
        ((0.5, 1.0, 0.8, 0.0), "alpha must be a number above 0"),
        ((float("nan"), 1.0), "gain must be a number"),
        ((0.0001, 1.0), "more than 1,000,000 seeds"),
    ],
)
def test_unusable_values(arguments, message):
    with pytest.raises(InputError, match=message):
        seeds_needed(*arguments)


def run(words: list[str]) -> int:
    parser = Parser(prog="tmkd")
    command.add_parser(parser.add_subparsers(parser_class=Parser))
    arguments: argparse.Namespace = parser.parse_args(["power", *words])
    return arguments.run(arguments)


def results_file(tmp_path, sd=1.1):
    arms = [{"name": "kd", "title": "KD"}, {"name": "kd+tmkd", "title": "KD + TMKD"}]
    entry = {"baseline": "kd", "enhanced": "kd+tmkd", "metric": "top1", "selection": "best", "sd": sd, "n": 8}
    content = {"schema_version": 1, "config": {}, "dataset": {}, "arms": arms, "comparisons": [entry]}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    return path


def test_the_command_prints_a_table_and_a_sentence(capsys):
    assert run(["--gain", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "power 80 %" in printed
    assert "to resolve a gain of 0.5 points with 80 % probability takes 40 seeds (sd 1.10 points" in printed


def test_the_command_takes_the_spread_of_a_comparison_with_its_own_uncertainty(tmp_path, capsys):
    assert run(["--gain", "0.5", "--results", str(results_file(tmp_path))]) == 0
    printed = capsys.readouterr().out
    # sqrt(7 / chi2(0.975, 7)) = 0.66 and sqrt(7 / chi2(0.025, 7)) = 2.04 times the estimate.
    assert "KD + TMKD minus KD" in printed
    assert "takes 40 seeds (sd 1.10 points from n = 8, itself within [0.73, 2.24]: 19 to 160 seeds)" in printed


def test_the_command_refuses_what_it_cant_use(tmp_path):
    with pytest.raises(InputError, match="--gain must be above 0"):
        run(["--gain", "-1"])
    with pytest.raises(InputError, match="holds no difference with a spread"):
        run(["--gain", "1", "--results", str(results_file(tmp_path, sd=None))])
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match=r"is no results\.json of `tmkd bench`"):
        run(["--gain", "1", "--results", str(tmp_path / "other.json")])
    newer = json.loads(results_file(tmp_path).read_text()) | {"schema_version": 99}
    (tmp_path / "newer.json").write_text(json.dumps(newer))
    with pytest.raises(InputError, match="schema_version 99"):
        run(["--gain", "1", "--results", str(tmp_path / "newer.json")])
