"""Runs what ``tmkd perf`` was asked for, part by part."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tmkd_plugin.bench.output import check_writable
from tmkd_plugin.bench.perf.figure import Figure
from tmkd_plugin.bench.perf.gpu import gpu_figures
from tmkd_plugin.bench.perf.lockstep import lockstep_figures
from tmkd_plugin.bench.perf.machine import describe_machine, use_threads
from tmkd_plugin.bench.perf.memory import memory_figures
from tmkd_plugin.bench.perf.naive import naive_figures
from tmkd_plugin.bench.perf.output import JSON_FILE, MARKDOWN_FILE, Outcome, table, verdict, write_outcome
from tmkd_plugin.bench.perf.scope import FULL, QUICK, Conditions
from tmkd_plugin.bench.perf.startup import startup_figures
from tmkd_plugin.bench.perf.step import step_figures
from tmkd_plugin.bench.perf.view_rate import view_figures
from tmkd_plugin.errors import InputError, unknown_name

Measure = Callable[[Conditions], list[Figure]]


def _steps(conditions: Conditions) -> list[Figure]:
    return [figure for pair in conditions.scope.steps for figure in step_figures(pair, conditions)]


# Start-up first: the processes that it starts share the machine with this one, which is idle and small then.
PARTS: dict[str, Measure] = {
    "startup": startup_figures,
    "views": view_figures,
    "step": _steps,
    "lockstep": lockstep_figures,
    "naive": naive_figures,
    "memory": memory_figures,
    "gpu": gpu_figures,
}
"""Name -> what measures it, in the order in which they run. ``gpu`` runs on a GPU alone."""


@dataclass(frozen=True)
class Options:
    """What the command was given.

    Attributes:
        out: The folder of ``perf.json`` and ``perf.md``.
        parts: Names out of ``PARTS``.
        quick: Whether it is only tried out.
        repeats: Rounds of every part; None for each part's own number.
        threads: CPU threads; None for torch's number.
        device: Where.
        cpu_time: Whether the time counts that processors work, instead of the time that passes.
    """

    out: Path
    parts: tuple[str, ...] = tuple(PARTS)
    quick: bool = False
    repeats: int | None = None
    threads: int | None = None
    device: str = "cpu"
    cpu_time: bool = False


def check_parts(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the parts in the order in which they run.

    Raises:
        InputError: There is no part of a name.
    """
    for name in names:
        if name not in PARTS:
            raise unknown_name("part of the benchmark", name, PARTS)
    return tuple(name for name in PARTS if name in names)


def run_perf(options: Options) -> int:
    """Measures, prints and writes; returns 0, or 1 if a limit was missed.

    Raises:
        InputError: The device can't be used, or the folder can't be written to.
    """
    from rich.console import Console

    device = _usable(options.device)
    if options.cpu_time and device.type == "cuda":
        raise InputError("--cpu-time does not count the time of a GPU: leave it out with --device cuda.")
    parts = [name for name in options.parts if name != "gpu" or device.type == "cuda"]
    if not parts:
        raise InputError("The part 'gpu' measures a GPU: give --device cuda with it.")
    check_writable(options.out)
    use_threads(options.threads)
    conditions = Conditions(QUICK if options.quick else FULL, device, options.repeats, options.cpu_time)
    progress = Console(stderr=True)
    machine = describe_machine(device) | {"clock": "CPU time" if options.cpu_time else "wall clock"}
    start = time.perf_counter()
    figures: list[Figure] = []
    for name in parts:
        progress.print(f"{time.perf_counter() - start:5.0f} s  measuring {name} ...", highlight=False)
        figures += PARTS[name](conditions)
        outcome = Outcome(machine, figures, conditions.scope.judges, time.perf_counter() - start)
        write_outcome(outcome, options.out)  # part by part: minutes of measuring survive what comes after them
    console = Console()
    (console if console.is_terminal else Console(width=160, color_system=None)).print(table(outcome), markup=False)
    print(verdict(outcome))
    print(f"{options.out / JSON_FILE}, {options.out / MARKDOWN_FILE}")
    return 1 if outcome.missed else 0


def _usable(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name}: there is no such device. Use cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: this machine has {torch.cuda.device_count()} GPUs that torch can use.")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: only cpu, cuda and cuda:N are measured.")
    return device
