"""``tmkd perf``: how fast it is here, beside how fast arithmetic lets it be."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tmkd_plugin.commands.parser import whole_number

EXAMPLES = """\
examples:
  tmkd perf
      everything, about seven minutes on 2 cores; leave the machine alone meanwhile
  tmkd perf --only step,lockstep --threads 2
      two parts of it
  tmkd perf --cpu-time --threads 1
      on a machine that others use at the same time
  tmkd perf --device cuda --out runs/perf-gpu
      on a GPU, with the parts that are for GPUs
  tmkd perf --quick
      tiny networks: does everything work; its figures mean nothing and nothing is judged

parts: startup, views, step, lockstep, naive, memory, gpu (docs/performance.md says how to read them)
exit codes: 0 all limits kept, 1 a limit was missed, 2 unusable input, 3 a measurement failed, 130 interrupted
"""


def add_parser(commands: Any) -> None:
    """Adds ``tmkd perf`` to the commands."""
    perf = commands.add_parser(
        "perf",
        help="measure the speed, beside what arithmetic allows",
        description="Measure step, lockstep, views, start-up and memory in one run, each beside its limit.",
        epilog=EXAMPLES,
    )
    add = perf.add_argument
    add("--quick", action="store_true", help="tiny networks and two rounds: tries it out and judges nothing")
    add("--out", metavar="DIR", type=Path, default=Path("runs/perf"), help="folder of the files (default: runs/perf)")
    add("--repeats", metavar="N", type=whole_number, help="rounds of every part (default: each part's own number)")
    add("--threads", metavar="N", type=whole_number, help="CPU threads (default: torch's)")
    add("--device", metavar="NAME", default="cpu", help="cpu, cuda, cuda:N (default: cpu)")
    add(
        "--cpu-time",
        action="store_true",
        help="count the time that processors work, not the time that passes: where others use the machine too",
    )
    add("--only", metavar="PARTS", help="parts with commas between them (default: all)")
    add("--debug", action="store_true", help="show the traceback of an unexpected error")
    perf.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measures and returns the exit code."""
    from tmkd_plugin.bench.perf.command import PARTS, Options, check_parts, run_perf

    names = arguments.only.split(",") if arguments.only is not None else list(PARTS)
    options = Options(
        out=arguments.out,
        parts=check_parts([name.strip() for name in names]),
        quick=arguments.quick,
        repeats=arguments.repeats,
        threads=arguments.threads,
        device=arguments.device,
        cpu_time=arguments.cpu_time,
    )
    return run_perf(options)
