"""The command ``tmkd table``: plans, says what it will cost, runs what is missing, writes and prints the table."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tmkd_plugin.baselines import baseline_class
from tmkd_plugin.bench.command import run_comparison
from tmkd_plugin.bench.output import check_writable
from tmkd_plugin.bench.paper_tables.definitions import load_scales, load_table, scale_named
from tmkd_plugin.bench.paper_tables.document import Document, data_of, document_of
from tmkd_plugin.bench.paper_tables.estimate import Measure, estimate_group, estimate_lines
from tmkd_plugin.bench.paper_tables.execution import RunComparison, check_same_version, run_group
from tmkd_plugin.bench.paper_tables.formats import csv_text, latex, markdown
from tmkd_plugin.bench.paper_tables.measuring import measure
from tmkd_plugin.bench.paper_tables.outcome import GroupOutcome
from tmkd_plugin.bench.paper_tables.planning import PlannedGroup, Request, plan_table
from tmkd_plugin.bench.paper_tables.schema import ScalesFile
from tmkd_plugin.bench.paper_tables.selection import Selection, select
from tmkd_plugin.bench.ray_engine import RayOptions
from tmkd_plugin.data import load_dataset
from tmkd_plugin.errors import InputError
from tmkd_plugin.text_cache import default_cache_dir
from tmkd_plugin.training.files import write_bytes, write_json

DONE, FAILED = 0, 3
WRITERS: dict[str, tuple[str, Callable[[Document], str]]] = {
    "markdown": ("md", markdown),
    "csv": ("csv", csv_text),
    "latex": ("tex", latex),
}
LOADING = ("image_size", "train_limit", "validation_limit", "test_limit", "data_dir", "augmentation")


@dataclass(frozen=True)
class TableOptions:
    """What the command line says.

    Attributes:
        table: The table's number.
        scale: ``smoke``, ``small`` or ``paper``.
        selection: What of the table is wanted.
        flags: Configuration values from options.
        assignments: Configuration values from ``--set``.
        out: Folder of all tables of this scale; ``None`` for ``runs/tables-<scale>``.
        threads: Number of CPU threads; ``None`` for torch's choice.
        dry_run: Whether to stop after the estimate.
        format: What to print: ``markdown``, ``csv``, ``latex`` or ``all``; all are written.
        quiet: Whether to print the table only.
        ray: Makes the runs as Ray tasks; ``None`` makes them here.
    """

    table: int
    scale: str
    selection: Selection
    flags: Mapping[str, Any]
    assignments: Mapping[str, Any]
    out: Path | None = None
    threads: int | None = None
    dry_run: bool = False
    format: str = "markdown"
    quiet: bool = False
    ray: RayOptions | None = None


def make_table(options: TableOptions, *, run: RunComparison = run_comparison, measure_arms: Measure = measure) -> int:
    """Runs ``tmkd table`` and returns its exit code: 0, or 3 if a part of the table failed.

    Args:
        options: What the command line says.
        run: Runs one comparison; see :func:`~tmkd_plugin.bench.command.run_comparison`.
        measure_arms: Measures the arms of a group; see :func:`~tmkd_plugin.bench.paper_tables.measuring.measure`.

    Raises:
        InputError: Something that was given can't be used; nothing has been run.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    scales = load_scales()
    scale = scale_named(scales, options.scale)
    table = select(load_table(options.table), options.selection, _adds_logit_kl)
    out = options.out or Path("runs") / f"tables-{options.scale}"
    request = Request(options.scale, out, options.flags, options.assignments, DataProblems())
    planned = {plan.group.name: plan for plan in plan_table(table, scales, scale, request)}
    for group in planned.values():
        check_same_version(group)
    check_writable(out)
    _say_plan(options, scales, planned, out, measure_arms)
    if options.dry_run:
        return DONE
    say = _silent if options.quiet else _say
    outcomes: dict[str, GroupOutcome] = {}
    runner = run if options.ray is None else functools.partial(run, ray=options.ray)
    for place, (name, group) in enumerate(planned.items(), 1):
        say(f"\n{name} ({place} of {len(planned)})")
        outcomes[name] = run_group(group, runner, say, quiet=options.quiet)
    document = document_of(table, scales, options.scale, planned, outcomes)
    _write(document, out / f"table{options.table}", options)
    failed = any(outcome.problems for outcome in outcomes.values()) or any(
        cell.missing for cell in document.cells.values()
    )
    return FAILED if failed else DONE


class DataProblems:
    """Says why data sets can't be loaded without a download; asks for each once."""

    def __init__(self) -> None:
        self._found: dict[str, str | None] = {}

    def __call__(self, dataset: str, settings: Mapping[str, Any]) -> str | None:
        """Returns the reason, ``None`` if it can be loaded."""
        if dataset not in self._found:
            given = {key: settings[key] for key in LOADING if key in settings}
            try:
                load_dataset(dataset, download=False, **given)
            except InputError as error:
                self._found[dataset] = str(error)
            else:
                self._found[dataset] = None
        return self._found[dataset]


def _adds_logit_kl(baseline: str) -> bool:
    return getattr(baseline_class(baseline), "has_logit_kl", None) is False


def _say_plan(
    options: TableOptions, scales: ScalesFile, planned: Mapping[str, PlannedGroup], out: Path, measure_arms: Measure
) -> None:
    if options.quiet and not options.dry_run:
        return
    _say(f"Table {options.table}. {scales.scales[options.scale].title}.")
    for text in dict.fromkeys(group.substitution for group in planned.values() if group.substitution):
        _say(f"Not the paper's data: {text}")
    cache_dir = default_cache_dir()
    groups = list(planned.values())
    estimates = [
        estimate_group(group, scales, out, cache_dir, measure_arms, groups[:place])
        for place, group in enumerate(groups)
    ]
    device = groups[0].comparisons[0].configuration.experiment.device
    for line in estimate_lines(estimates, out, cache_dir, device):
        _say(line)


def _write(document: Document, folder: Path, options: TableOptions) -> None:
    stem = f"table{document.table.table}"
    texts = {name: (ending, write(document)) for name, (ending, write) in WRITERS.items()}
    for ending, text in texts.values():
        write_bytes(folder / f"{stem}.{ending}", text.encode())
    write_json(folder / f"{stem}.json", data_of(document))
    wanted: Sequence[str] = list(texts) if options.format == "all" else [options.format]
    _say("\n" + "\n".join(texts[name][1] for name in wanted))
    if not options.quiet:
        _say(f"Files: {', '.join(str(folder / f'{stem}.{ending}') for ending in ('md', 'csv', 'tex', 'json'))}")


def _say(line: str) -> None:
    print(line, flush=True)


def _silent(line: str) -> None:
    """Says nothing."""
