"""``tmkd power``: how many seeds it takes to resolve a gain."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tmkd_plugin.errors import InputError

EXAMPLES = """\
examples:
  tmkd power --gain 0.5
      half a point of top-1, where the difference spreads by 1.1 points over seeds
  tmkd power --gain 0.5 --results runs/digits-kd-tmkd/results.json
      with the spread that a finished comparison has found
  tmkd power --gain 0.3 --sd 0.8 --power 0.9
"""


def add_parser(commands: Any) -> None:
    """Adds ``tmkd power`` to the commands."""
    power = commands.add_parser(
        "power",
        help="how many seeds it takes to resolve a gain",
        description="Say how many seeds a paired comparison needs for its 95 % interval to exclude zero.",
        epilog=EXAMPLES,
    )
    power.add_argument("--gain", metavar="POINTS", type=float, required=True, help="the true gain to resolve")
    spread = power.add_mutually_exclusive_group()
    spread.add_argument(
        "--sd", metavar="POINTS", type=float, help="standard deviation of the difference over seeds (default: 1.1)"
    )
    spread.add_argument("--results", metavar="FILE", type=Path, help="results.json of a comparison, to take it from")
    power.add_argument(
        "--power", metavar="P", type=float, default=0.8, help="probability to resolve the gain (default: 0.8)"
    )
    power.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints a table and a sentence for each spread, and returns the exit code."""
    from rich.console import Console

    from tmkd_plugin.bench.power import DEFAULT_SD, Spread, power_sentence, power_table, spreads_in
    from tmkd_plugin.bench.results_file import read_results

    if arguments.gain <= 0:
        raise InputError(f"--gain must be above 0, but is {arguments.gain:g}.")
    if arguments.results is not None:
        spreads = spreads_in(read_results(arguments.results), arguments.results)
    elif arguments.sd is not None:
        spreads = [Spread(arguments.sd, None, None, "With the given spread")]
    else:
        spreads = [Spread(DEFAULT_SD, None, None, "With a spread like that of small students on small data")]
    console = Console()
    for spread in spreads:
        powers = sorted({0.5, 0.8, 0.9, arguments.power})
        sentence = power_sentence(arguments.gain, spread, arguments.power)
        console.print(power_table(arguments.gain, spread, powers))
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    return 0
