"""Ten arms side by side against the same ten one after another."""

from __future__ import annotations

from collections.abc import Sequence

from tmkd_plugin.bench.perf.figure import Figure, judged_figure, plain_figure
from tmkd_plugin.bench.perf.scope import Conditions, Pair
from tmkd_plugin.bench.perf.timing import Times
from tmkd_plugin.bench.perf.workload import Workload
from tmkd_plugin.training.arm import Arm
from tmkd_plugin.training.shared_teacher import shared_teachers

ALLOWED = 0.90
"""The share of what the count of passes allows that has to be reached."""


def lockstep_figures(conditions: Conditions) -> list[Figure]:
    """Times a batch through all arms in lockstep, and through the same arms each by itself, in turn."""
    scope = conditions.scope
    pair = scope.ten_arms
    workload = Workload(pair, scope.classes, conditions.device)
    student = workload.student_alone()
    alone, together = workload.arms(scope.baselines), workload.arms(scope.baselines)
    times = conditions.times(
        {
            "teacher": workload.run_teacher,
            "student": lambda: workload.step(student),
            "alone": lambda: one_after_another(workload, alone),
            "together": lambda: side_by_side(workload, together),
        },
        pair.rounds,
    )
    return judge_lockstep(pair, len(scope.baselines), times)


def one_after_another(workload: Workload, arms: Sequence[Arm]) -> None:
    """Takes every arm through the batch, sharing nothing."""
    for arm in arms:
        workload.step(arm)


def side_by_side(workload: Workload, arms: Sequence[Arm]) -> None:
    """Takes every arm through the batch as ``tmkd bench`` does: the teacher sees it once."""
    with shared_teachers([arm.distiller for arm in arms]) as forget:
        one_after_another(workload, arms)
        forget()


def judge_lockstep(pair: Pair, baselines: int, times: Times) -> list[Figure]:
    """Turns seconds of ``teacher``, ``student``, ``alone`` and ``together`` into figures.

    Args:
        pair: What was measured.
        baselines: How many there are; each has an arm alone, which needs one pass of the teacher, and one with TMKD, which
            needs three.
        times: Seconds, one a round.
    """
    arms, passes = 2 * baselines, 4 * baselines
    rounds = list(zip(times["teacher"], times["student"], times["alone"], times["together"], strict=True))
    gains = [alone / together for _, _, alone, together in rounds]
    allowed = [
        (passes * teacher + arms * student) / (3 * teacher + arms * student) for teacher, student, _, _ in rounds
    ]
    # What is left of the arms' time without the teacher's passes: heads, views and losses are in it.
    own = [max(0.0, alone - passes * teacher) / arms for teacher, _, alone, _ in rounds]
    by_own = [alone / (3 * teacher + arms * mean) for (teacher, _, alone, _), mean in zip(rounds, own, strict=True)]
    name = f"{arms} arms one after another / in lockstep, {pair}"
    note = f"{ALLOWED:.2f} ({passes}T + {arms}S) / (3T + {arms}S), S with cross-entropy alone"
    return [
        judged_figure("lockstep", name, "x", gains, "at least", [ALLOWED * limit for limit in allowed], note),
        plain_figure(
            "lockstep",
            f"the same by counting passes with the arms' own steps, {pair}",
            "x",
            by_own,
            f"what the {arms} arms take beyond {passes}T counts as their own, so also what their passes cost beyond T",
        ),
        plain_figure("lockstep", f"T, the teacher's forward pass, {pair}", "ms", _milliseconds(times["teacher"])),
        plain_figure(
            "lockstep", f"S, the student's step with cross-entropy, {pair}", "ms", _milliseconds(times["student"])
        ),
        plain_figure("lockstep", f"an arm's own step, the mean of {arms}, {pair}", "ms", _milliseconds(own)),
        plain_figure(
            "lockstep", f"{arms} arms one after another, a batch, {pair}", "ms", _milliseconds(times["alone"])
        ),
        plain_figure("lockstep", f"{arms} arms in lockstep, a batch, {pair}", "ms", _milliseconds(times["together"])),
    ]


def _milliseconds(seconds: Sequence[float]) -> list[float]:
    return [1000 * value for value in seconds]
