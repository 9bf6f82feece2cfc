"""What a step costs with TMKD and without, against what the passes through the networks cost."""

from __future__ import annotations

from tmkd_plugin.bench.perf.figure import Figure, judged_figure, plain_figure
from tmkd_plugin.bench.perf.scope import Conditions, Pair
from tmkd_plugin.bench.perf.timing import Times
from tmkd_plugin.bench.perf.workload import Workload

ALLOWED = 1.10
"""How far above the count of passes an enhanced step may be."""


def step_figures(pair: Pair, conditions: Conditions) -> list[Figure]:
    """Times teacher, student, KD and KD + TMKD in turn."""
    workload = Workload(pair, conditions.scope.classes, conditions.device)
    student = workload.student_alone()
    baseline, enhanced = (workload.arm("kd", enhanced=enhanced) for enhanced in (False, True))
    times = conditions.times(
        {
            "teacher": workload.run_teacher,
            "student": lambda: workload.step(student),
            "baseline": lambda: workload.step(baseline),
            "enhanced": lambda: workload.step(enhanced),
        },
        pair.rounds,
    )
    return judge_steps(pair, times)


def judge_steps(pair: Pair, times: Times) -> list[Figure]:
    """Turns seconds of ``teacher``, ``student``, ``baseline`` and ``enhanced`` into figures."""
    rounds = list(zip(times["teacher"], times["student"], times["baseline"], times["enhanced"], strict=True))
    ratios = [enhanced / baseline for _, _, baseline, enhanced in rounds]
    limits = [ALLOWED * (3 * teacher + student) / (teacher + student) for teacher, student, _, _ in rounds]
    note = f"{ALLOWED:.2f} (3T + S) / (T + S)"
    milliseconds = {name: [1000 * value for value in values] for name, values in times.items()}
    return [
        judged_figure("step", f"KD + TMKD step / KD step, {pair}", "x", ratios, "at most", limits, note),
        plain_figure("step", f"T, the teacher's forward pass, {pair}", "ms", milliseconds["teacher"]),
        plain_figure("step", f"S, the student's step with cross-entropy, {pair}", "ms", milliseconds["student"]),
        plain_figure("step", f"KD step, {pair}", "ms", milliseconds["baseline"]),
        plain_figure("step", f"KD + TMKD step, {pair}", "ms", milliseconds["enhanced"]),
    ]
