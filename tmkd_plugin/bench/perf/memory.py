"""The peak memory of a step in each way of doing it, each in a fresh process."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tmkd_plugin.bench.perf.child import Work, memory_of
from tmkd_plugin.bench.perf.figure import Figure, plain_figure
from tmkd_plugin.bench.perf.scope import Conditions, Pair

TITLES = {
    "baseline": "KD",
    "enhanced": "KD + TMKD",
    "naive": "KD + TMKD, naive (with CLIP's text encoder)",
    "lockstep": "ten arms in lockstep",
}


def memory_figures(conditions: Conditions, measure: Callable[[Work], dict[str, float]] = memory_of) -> list[Figure]:
    """Measures every way once.

    Args:
        conditions: What and where.
        measure: Returns ``before`` and ``peak`` in MiB.
    """
    scope = conditions.scope
    plan: list[tuple[str, Pair]] = [(kind, pair) for pair in scope.steps for kind in ("baseline", "enhanced")]
    plan += [("naive", scope.naive), ("lockstep", scope.ten_arms)]
    figures = []
    for kind, pair in plan:
        work = Work(kind, pair, scope.text_tower, scope.classes, torch.get_num_threads(), str(conditions.device))
        found = measure(work)
        where = "of the GPU" if conditions.device.type == "cuda" else "of the process"
        note = f"{found['peak'] - found['before']:.0f} MiB above the process with everything imported"
        name = f"peak memory {where}, {TITLES[kind]}, {pair}"
        figures.append(plain_figure("memory", name, "MiB", [found["peak"]], note))
    return figures
