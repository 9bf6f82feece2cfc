"""The arithmetic of the figures and of their limits, on times that are made up."""

from __future__ import annotations

import pytest

from tmkd_plugin.bench.perf.figure import Figure, judged_figure, plain_figure
from tmkd_plugin.bench.perf.lockstep import judge_lockstep
from tmkd_plugin.bench.perf.naive import judge_naive
from tmkd_plugin.bench.perf.scope import Pair
from tmkd_plugin.bench.perf.startup import judge_startup
from tmkd_plugin.bench.perf.step import judge_steps
from tmkd_plugin.bench.perf.view_rate import judge_views

PAIR = Pair("teacher", "student", 32, 8, rounds=3)


def steps(enhanced: list[float]) -> Figure:
    n = len(enhanced)
    times = {"teacher": [2.0] * n, "student": [3.0] * n, "baseline": [5.0] * n, "enhanced": enhanced}
    return judge_steps(PAIR, times)[0]


def test_a_step_may_cost_a_tenth_more_than_its_passes() -> None:
    # 3T + S = 9, T + S = 5.
    kept, missed = steps([5 * 1.9, 5 * 1.9]), steps([5 * 2.0, 5 * 2.0])
    assert kept.limit is not None
    assert kept.limit.median == pytest.approx(1.10 * 9 / 5)
    assert kept.value.median == pytest.approx(1.9)
    assert (kept.passes, missed.passes) == (True, False)
    assert "teacher -> student, 32 px, batch 8" in kept.name


def test_each_round_is_held_against_the_limit_of_its_own_round() -> None:
    # The machine was ten times slower in the middle of the last round: value and limit both are beside the truth there.
    times = {
        "teacher": [2.0, 2.0, 20.0],
        "student": [3.0, 3.0, 3.0],
        "baseline": [5.0, 5.0, 50.0],
        "enhanced": [9.5, 9.5, 95.0],
    }
    figure = judge_steps(PAIR, times)[0]
    assert figure.passes
    assert figure.value.median == pytest.approx(1.9)
    assert figure.limit is not None
    assert figure.limit.high > figure.limit.median


def test_the_parts_of_a_step_are_given_in_milliseconds() -> None:
    times = {"teacher": [0.002], "student": [0.003], "baseline": [0.005], "enhanced": [0.009]}
    assert [(figure.value.median, figure.unit) for figure in judge_steps(PAIR, times)[1:]] == [
        (pytest.approx(value), "ms") for value in (2, 3, 5, 9)
    ]


def lockstep(alone: float, together: float) -> list[Figure]:
    return judge_lockstep(PAIR, 5, {"teacher": [4.0], "student": [1.0], "alone": [alone], "together": [together]})


def test_lockstep_has_to_reach_nine_tenths_of_the_count_of_passes() -> None:
    # 20T + 10S = 90, 3T + 10S = 22.
    kept, missed = lockstep(90.0, 24.0)[0], lockstep(90.0, 25.0)[0]
    assert kept.limit is not None
    assert kept.limit.median == pytest.approx(0.9 * 90 / 22)
    assert kept.value.median == pytest.approx(90 / 24)
    assert (kept.passes, missed.passes) == (True, False)
    assert kept.name.startswith("10 arms")


def test_the_arms_own_steps_are_what_the_teachers_passes_leave() -> None:
    # 110 - 20 * 4 = 30 for ten arms, 3 each; with that, lockstep can't be faster than 110 / (12 + 30).
    by_name = {figure.name.split(",")[0]: figure.value.median for figure in lockstep(110.0, 50.0)}
    assert by_name["an arm's own step"] == pytest.approx(3000)
    assert by_name["the same by counting passes with the arms' own steps"] == pytest.approx(110 / 42)
    # Noise can make the passes cost more than the whole.
    assert {f.name.split(",")[0]: f.value.median for f in lockstep(70.0, 50.0)}["an arm's own step"] == 0


def test_notes_count_the_passes_and_the_arms_that_were_measured() -> None:
    times = {"teacher": [4.0], "student": [1.0], "alone": [90.0], "together": [24.0]}
    limit, own = [figure.note for figure in judge_lockstep(PAIR, 3, times)[:2]]
    assert "(12T + 6S) / (3T + 6S)" in limit
    assert "what the 6 arms take beyond 12T counts" in own


def test_views_have_to_reach_nine_tenths_of_the_bare_loop() -> None:
    kept, ours, bare = judge_views(32, 16, {"ours": [0.010], "bare": [0.0091]})
    assert kept.value.median == pytest.approx(0.91)
    assert kept.passes
    assert (ours.value.median, bare.value.median) == (pytest.approx(1600), pytest.approx(16 / 0.0091))
    assert judge_views(32, 16, {"ours": [0.010], "bare": [0.0089]})[0].passes is False


def test_the_naive_way_has_no_limit() -> None:
    times = {"ours": [2.0], "naive": [5.0], "ours_ten": [10.0], "naive_ten": [80.0]}
    one, ten = judge_naive(PAIR, 10, times)
    assert (one.value.median, ten.value.median) == (2.5, 8.0)
    assert one.passes is None
    assert ten.passes is None


@pytest.mark.parametrize(
    ("changed", "value", "missed"),
    [
        ("torch", 2.0, ""),
        ("package", 2.3, "import tmkd_plugin / import torch"),
        ("enhancer", 2.3, "from tmkd_plugin import TMKDEnhancer / import torch"),
        ("help", 3.1, "tmkd --help / import torch"),
        ("text", 101.0, "a warm text teacher: 100 classes from the cache"),
        ("open_clip", 1.0, "open_clip imported by a warm text teacher"),
    ],
)
def test_each_limit_of_the_start_is_judged(changed: str, value: float, missed: str) -> None:
    seconds = {"torch": 2.0, "package": 2.1, "enhancer": 2.1, "help": 2.9} | {changed: value}
    times = {name: [seconds[name]] for name in ("torch", "package", "enhancer", "help")}
    text = [value if changed == "text" else 99.0]
    figures = judge_startup(times, text, imports=changed == "open_clip")
    assert [figure.name for figure in figures if figure.passes is False] == ([missed] if missed else [])
    assert sum(figure.passes is not None for figure in figures) == 5


@pytest.mark.parametrize(
    ("rule", "values", "passes"),
    [
        ("at most", [1.0, 5.0, 1.9], True),
        ("at most", [3.0, 1.0, 2.1], False),
        ("at least", [1.0, 5.0, 2.1], True),
        ("at least", [1.0, 5.0, 1.9], False),
        ("at most", [2.0], True),
        ("at least", [2.0], True),
    ],
)
def test_the_median_decides(rule, values: list[float], passes: bool) -> None:
    figure = judged_figure("part", "name", "x", values, rule, 2)
    assert figure.passes is passes
    assert figure.limit is not None
    assert (figure.limit.median, figure.limit.n) == (2, len(values))


def test_a_figure_needs_a_limit_for_each_round() -> None:
    with pytest.raises(ValueError, match="shorter"):
        judged_figure("part", "name", "x", [1.0, 2.0], "at most", [1.0])


def test_a_plain_figure_is_not_judged() -> None:
    figure = plain_figure("part", "name", "ms", [1.0, 3.0])
    assert (figure.value.median, figure.rule, figure.limit, figure.passes) == (2.0, None, None, None)
