"""A process of its own for one piece of work: ``python -m tmkd_plugin.bench.perf.child JSON`` prints the memory it took."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tmkd_plugin.bench.perf.lockstep import side_by_side
from tmkd_plugin.bench.perf.machine import use_threads
from tmkd_plugin.bench.perf.naive import make_naive, text_encoder
from tmkd_plugin.bench.perf.scope import BASELINES, Pair, TextTower
from tmkd_plugin.bench.perf.workload import Workload
from tmkd_plugin.errors import RunError

_STEPS = 2  # the optimiser's state is there from the second step on


@dataclasses.dataclass(frozen=True)
class Work:
    """What a child does.

    Attributes:
        kind: ``baseline``: KD; ``enhanced``: KD + TMKD; ``naive``: the same in the naive way; ``lockstep``: all arms.
        pair: The networks.
        text_tower: CLIP's text encoder, for the naive way.
        classes: Number of classes.
        threads: CPU threads.
        device: Where.
    """

    kind: str
    pair: Pair
    text_tower: TextTower
    classes: int
    threads: int
    device: str


def memory_of(work: Work) -> dict[str, float]:
    """Returns what :func:`run_work` returned in a fresh process.

    Raises:
        RunError: The process failed.
    """
    command = [sys.executable, "-m", "tmkd_plugin.bench.perf.child", json.dumps(dataclasses.asdict(work))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise RunError(f"The process that measures the memory of '{work.kind}' failed: {lines[-1]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def run_work(work: Work) -> dict[str, float]:
    """Takes a few steps; returns ``before`` (with everything imported) and ``peak`` memory in MiB, of the GPU on one."""
    use_threads(work.threads)
    device = torch.device(work.device)
    before = _peak_mib(device)
    workload = Workload(work.pair, work.classes, device)
    single = work.kind != "lockstep"
    arms = [workload.arm("kd", enhanced=work.kind != "baseline")] if single else workload.arms(BASELINES)
    if work.kind == "naive":
        make_naive(arms[0], text_encoder(work.text_tower, workload))
    for _ in range(_STEPS):
        side_by_side(workload, arms)
    return {"before": before, "peak": _peak_mib(device)}


def _peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux its peak counts what the parent had when it started this process.
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def _read_work(text: str) -> Work:
    given: dict[str, Any] = json.loads(text)
    return Work(**given | {"pair": Pair(**given["pair"]), "text_tower": TextTower(**given["text_tower"])})


if __name__ == "__main__":
    print(json.dumps(run_work(_read_work(sys.argv[1]))))
