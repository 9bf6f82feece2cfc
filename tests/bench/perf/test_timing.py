"""Times taken in turn, with a clock that a test moves."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch

from tmkd_plugin.bench.perf.scope import QUICK, Conditions
from tmkd_plugin.bench.perf.timing import Spread, cpu_seconds, interleaved, spread_of


class World:
    """A clock, and cases that let time pass and note that they ran."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[str] = []

    def case(self, name: str, *seconds: float):
        durations = iter(seconds)

        def run() -> None:
            self.ran.append(name)
            self.now += next(durations) if len(seconds) > 1 else seconds[0]

        return run

    def clock(self) -> float:
        return self.now


def test_values_of_a_round_stand_at_the_same_place_and_the_first_call_does_not_count() -> None:
    world = World()
    cases = {"a": world.case("a", 9.0, 1.0, 2.0, 3.0), "b": world.case("b", 9.0, 10.0, 20.0, 30.0)}
    assert interleaved(cases, 3, clock=world.clock) == {"a": [1.0, 2.0, 3.0], "b": [10.0, 20.0, 30.0]}


def test_cases_take_turns_and_each_round_starts_with_another_one() -> None:
    world = World()
    interleaved({name: world.case(name, 1.0) for name in "abc"}, 4, clock=world.clock)
    assert "".join(world.ran) == "abc" + "abc" + "bca" + "cab" + "abc"


def test_short_cases_are_called_until_the_least_time_is_filled_and_give_the_mean_of_a_call() -> None:
    world = World()
    times = interleaved(
        {"short": world.case("s", 0.25), "long": world.case("l", 3.0)}, 2, least_seconds=1.0, clock=world.clock
    )
    assert times == {"short": [0.25, 0.25], "long": [3.0, 3.0]}
    # The first call, one that tells how many it takes, and two rounds.
    assert world.ran.count("s") == 2 + 2 * 4
    assert world.ran.count("l") == 2 + 2 * 1


def test_a_case_that_takes_no_time_by_the_clock_comes_to_an_end() -> None:
    world = World()
    assert interleaved({"a": world.case("a", 0.0)}, 1, least_seconds=1.0, clock=world.clock) == {"a": [0.0]}


def test_the_device_is_waited_for_before_each_look_at_the_clock() -> None:
    world = World()

    def wait() -> None:
        world.ran.append("wait")
        world.now += 0.5  # what was still under way

    times = interleaved({"a": world.case("a", 1.0)}, 2, wait=wait, clock=world.clock)
    assert times == {"a": [1.5, 1.5]}
    assert world.ran == ["a"] + ["wait", "a", "wait"] * 2


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], Spread(3.0, 3.0, 3.0, 1)),
        ([1.0, 3.0], Spread(2.0, 1.5, 2.5, 2)),
        ([5.0, 1.0, 2.0, 4.0, 3.0], Spread(3.0, 2.0, 4.0, 5)),
        ([1.0, 1.0, 1.0, 100.0], Spread(1.0, 1.0, 25.75, 4)),
    ],
)
def test_median_and_quartiles(values: list[float], expected: Spread) -> None:
    assert spread_of(values) == expected


def test_cpu_time_counts_work_here_and_in_processes_that_have_ended_but_no_sleep() -> None:
    start = cpu_seconds()
    time.sleep(0.3)
    assert cpu_seconds() - start < 0.2
    start = cpu_seconds()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    in_a_process = cpu_seconds() - start
    assert in_a_process >= 0.3
    start, here = cpu_seconds(), time.process_time()
    while time.process_time() - here < 0.2:
        pass
    assert cpu_seconds() - start >= 0.19


def test_conditions_choose_the_clock_and_the_number_of_rounds() -> None:
    plain = Conditions(QUICK, torch.device("cpu"))
    assert plain.times({"sleep": lambda: time.sleep(0.05)}, 2)["sleep"][1] >= 0.05
    cpu = Conditions(QUICK, torch.device("cpu"), repeats=3, cpu_time=True)
    values = cpu.times({"sleep": lambda: time.sleep(0.05)}, 2)["sleep"]
    assert len(values) == 3
    assert max(values) < 0.05
