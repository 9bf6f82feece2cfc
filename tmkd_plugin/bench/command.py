"""The command ``tmkd bench``: checks the inputs, runs the comparison, shows what it found."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tmkd_plugin.baselines import baseline_class
from tmkd_plugin.bench.arms import STUDENT_ALONE
from tmkd_plugin.bench.cell import acceleration_of
from tmkd_plugin.bench.comparison import Comparison, Seconds
from tmkd_plugin.bench.configuration import Configuration, configure
from tmkd_plugin.bench.lock import folder_lock
from tmkd_plugin.bench.output import RESULTS, OutputFolder, check_writable, default_folder
from tmkd_plugin.bench.preparation import Preparation, describe_dataset, prepare
from tmkd_plugin.bench.ray_engine import RayOptions, check_ray_options
from tmkd_plugin.bench.results import any_failed
from tmkd_plugin.bench.table import print_outcome
from tmkd_plugin.errors import InputError
from tmkd_plugin.text_cache import default_cache_dir
from tmkd_plugin.training.checkpoint import CHECKPOINT_SECONDS
from tmkd_plugin.training.distributed import Processes, process_count
from tmkd_plugin.training.epoch_log import check_tensorboard
from tmkd_plugin.training.isolation import shares_teacher
from tmkd_plugin.training.progress import training_progress

if TYPE_CHECKING:
    from rich.console import Console

LOG_WIDTH = 110
DONE, FAILED = 0, 3


@dataclass(frozen=True)
class BenchOptions:
    """What the command line says.

    Attributes:
        flags: Configuration values from options.
        assignments: Configuration values from ``--set``.
        preset: Name or file of a preset; ``None`` for the data set's.
        out: Folder of the results; ``None`` for one below ``runs``.
        overwrite: Whether results that stand there may be replaced.
        threads: Number of CPU threads; ``None`` for torch's choice.
        quiet: Whether to print the outcome only.
        checkpoint_seconds: The least time between two checkpoints of a run.
        tensorboard: Whether runs write TensorBoard events.
        ray: Makes the runs as Ray tasks; ``None`` makes them here.
        processes: Those that ``torchrun`` has started, of which the first one writes and speaks; ``None`` for this one alone.
    """

    flags: Mapping[str, Any]
    assignments: Mapping[str, Any]
    preset: str | None = None
    out: Path | None = None
    overwrite: bool = False
    threads: int | None = None
    quiet: bool = False
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    tensorboard: bool = False
    ray: RayOptions | None = None
    processes: Processes | None = None

    @property
    def speaks(self) -> bool:
        """Whether this process writes files and shows what it does."""
        return self.processes is None or self.processes.is_main


def bench(options: BenchOptions) -> int:
    """Runs ``tmkd bench`` and returns its exit code: 0, or 3 if a run failed.

    Raises:
        InputError: Something that was given can't be used; nothing has been trained.
        RunError: The small CLIP or a teacher could not be trained.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    console = _console()
    say = _silent if options.quiet or not options.speaks else _printer(console)
    configuration = configure(options.flags, options.assignments, options.preset)
    out = options.out or default_folder(
        configuration.experiment.dataset, configuration.baselines, configuration.enhancers
    )
    outcome = _compare(configuration, out, None, options, say)
    if options.speaks:
        print_outcome(console, outcome.results, outcome.timing)
    say(f"Results: {out / RESULTS}; {outcome.timing.get('seconds', 0):.0f} seconds in all.")
    return FAILED if any_failed(outcome.results) else DONE


def run_comparison(
    configuration: Configuration,
    out: Path,
    *,
    runs: Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
    ray: RayOptions | None = None,
) -> dict[str, Any]:
    """Runs what is missing of a comparison and returns the data of its ``results.json``, which it also writes.

    Args:
        configuration: What to compare.
        out: The folder of the results.
        runs: The folder of the runs, an arm and a seed each; several comparisons of the same data, networks and recipes can
            share one, and no run is made twice. ``None`` for ``out``.
        overwrite: Whether to replace what stands there.
        quiet: Whether to show no progress.
        say: Called with each line for the user; ``None`` prints them unless ``quiet``.
        ray: Makes the runs as Ray tasks; ``None`` makes them here.

    Raises:
        InputError: Something that was given can't be used.
        RunError: The small CLIP or a teacher could not be trained. A failed arm raises nothing: its entry says it.
    """
    if say is None:
        say = _silent if quiet else _printer(_console())
    options = BenchOptions({}, {}, overwrite=overwrite, quiet=quiet, ray=ray)
    return _compare(configuration, out, runs, options, say).results


@dataclass(frozen=True)
class _Outcome:
    results: dict[str, Any]
    timing: dict[str, Any]


def _compare(
    configuration: Configuration, out: Path, runs: Path | None, options: BenchOptions, say: Callable[[str], None]
) -> _Outcome:
    started, start = _now(), time.perf_counter()
    cache_dir, processes = default_cache_dir(), options.processes
    if options.tensorboard:
        check_tensorboard()
    if options.ray is not None:
        check_ray_options(options.ray, configuration.experiment.device)
        if processes is not None:
            raise InputError("--engine ray starts its own workers: give it without torchrun.")
    with contextlib.nullcontext() if processes is None else processes.main_first():
        preparation = prepare(configuration, cache_dir, say)
    acceleration_of(configuration.experiment).check(configuration.experiment.device)
    identity = {"config": configuration.resolved.described, "dataset": describe_dataset(preparation.dataset)}
    if options.speaks:
        check_writable(out)
    with folder_lock(out) if options.speaks else contextlib.nullcontext():
        output = (
            OutputFolder(out, identity, overwrite=options.overwrite, runs=runs)
            if options.speaks
            else _WrittenElsewhere(out, runs)
        )
        finished = output.finished if processes is None else processes.from_main(output.finished)
        if finished is not None:
            say(f"{out} holds the results of this very comparison; --overwrite runs it again.")
            return _Outcome(*finished)
        for line in _plan_lines(configuration, preparation, out):
            say(line)
        progress = training_progress("silent" if options.quiet or not options.speaks else "auto")
        comparison = Comparison(
            preparation,
            output,
            cache_dir,
            progress,
            say,
            options.checkpoint_seconds,
            options.tensorboard,
            options.ray,
            processes,
        )
        results = comparison.run()
        timing = _timing(comparison.seconds, started, time.perf_counter() - start)
        output.write(results, timing)
        return _Outcome(results, timing)


class _WrittenElsewhere(OutputFolder):
    """The folder of the results as the processes see it that don't write."""

    def __init__(self, path: Path, runs: Path | None) -> None:
        self.path, self.runs, self.finished = path, runs or path, None

    def write(self, results: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        """Writes nothing."""


def _plan_lines(configuration: Configuration, preparation: Preparation, out: Path) -> list[str]:
    experiment, dataset = configuration.experiment, preparation.dataset
    sizes = (
        f"{len(dataset.train):,} training, {len(dataset.validation):,} validation, {len(dataset.test):,} test images"
    )
    teacher = (
        experiment.teacher_checkpoint or f"trained on {'RGB' if experiment.teacher_views == 'rgb' else 'all views'}"
    )
    return [
        f"Data set {dataset.name}: {sizes} of {dataset.image_size} px, {dataset.num_classes} classes",
        f"Preset {configuration.preset}; teacher {experiment.teacher} ({teacher}), student {experiment.student}",
        f"Arms: {'; '.join(arm.title for arm in preparation.plan.arms)}",
        *_not_sharing(preparation),
        f"Seeds: {', '.join(map(str, experiment.seeds))}; {torch.get_num_threads()} threads; files go to {out}",
        *preparation.plan.notices,
        *(f"--set {key} changes nothing: nothing in this comparison uses it." for key in configuration.without_effect),
    ]


def _not_sharing(preparation: Preparation) -> list[str]:
    """Says which distillers of the user's own ask their teachers themselves, where others share what they say."""
    names = dict.fromkeys(arm.baseline for arm in preparation.plan.arms if arm.baseline != STUDENT_ALONE)
    own = [name for name in names if not shares_teacher(baseline_class(name))]
    if not own or len(preparation.plan.arms) == 1 or preparation.configuration.experiment.arms_at_once == 1:
        return []
    return [
        f"{', '.join(own)}: trains on a batch and a teacher of its own; with shares_teacher = True on the class it shares the "
        "teacher's passes (docs/scaling.md)"
    ]


def _timing(seconds: Seconds, started: str, total: float) -> dict[str, Any]:
    return {
        "started": started,
        "finished": _now(),
        "seconds": round(total, 3),
        **dataclasses.asdict(seconds),
        "host": platform.node(),
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processes": process_count(),
    }


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _console() -> Console:
    from rich.console import Console

    console = Console()
    # A log file has no width of its own; rich would take 80 and fold the table.
    return console if console.is_terminal else Console(width=LOG_WIDTH, color_system=None)


def _printer(console: Console) -> Callable[[str], None]:
    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    return say


def _silent(line: str) -> None:
    """Says nothing."""
