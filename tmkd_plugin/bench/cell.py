"""Runs of a comparison, an arm with a seed each: found, gone on with, or trained."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tmkd_plugin.bench.arms import ArmSpec
from tmkd_plugin.bench.distillers import build_distiller
from tmkd_plugin.bench.preparation import Preparation
from tmkd_plugin.bench.results import Cell
from tmkd_plugin.bench.run_record import ACCELERATION, read_record, write_record
from tmkd_plugin.config import Experiment
from tmkd_plugin.errors import InputError, RunError, is_storage_error
from tmkd_plugin.text_cache import default_cache_dir
from tmkd_plugin.text_teacher import TextEmbeddings
from tmkd_plugin.training.acceleration import Acceleration
from tmkd_plugin.training.arm_memory import SHARE, arm_bytes, fits, free_bytes
from tmkd_plugin.training.checkpoint import Checkpoints
from tmkd_plugin.training.distributed import Processes
from tmkd_plugin.training.files import remove_temporary_files, write_bytes
from tmkd_plugin.training.lockstep import failing_alone
from tmkd_plugin.training.progress import Progress
from tmkd_plugin.training.teacher_cache import FOLDER, TeacherCacheFolder
from tmkd_plugin.training.trainer import train_distillers

logger = logging.getLogger(__name__)

ERROR_FILE = "error.txt"


@dataclass(frozen=True)
class Job:
    """A run to make.

    Attributes:
        arm: What is trained.
        seed: With which seed.
        folder: Where its files go.
        identity: Everything that decides its bits; see ``identity_of``.
    """

    arm: ArmSpec
    seed: int
    folder: Path
    identity: Mapping[str, Any]

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.arm.title}, seed {self.seed}"


def finished_cell(job: Job, say: Callable[[str], None]) -> Cell | None:
    """Returns the run if it is there and whole; says so, or what is wrong with it.

    Raises:
        InputError: The folder holds a run of another identity.
    """
    there, problem = read_record(job.folder, job.identity)
    if problem is not None:
        say(problem)
    if there is None or there.best is None:
        return None
    # A process that was killed after the record may have left them.
    Checkpoints(job.folder).clear()
    remove_temporary_files(job.folder)
    say(f"{job.title}: done before, {there.best.top1:.2f} %")
    return there


def train_cells(
    preparation: Preparation,
    jobs: Sequence[Job],
    teachers: Mapping[ArmSpec, nn.Module],
    text: TextEmbeddings | None,
    *,
    progress: Progress,
    say: Callable[[str], None],
    checkpoint_seconds: float,
    tensorboard: bool = False,
    processes: Processes | None = None,
) -> Iterator[tuple[Job, Cell, float | None]]:
    """Makes runs of one seed, side by side in groups that fit; see ``arms_at_once`` of the configuration.

    Each goes on from its checkpoint if there is one. A failure is that run's error and raises nothing.

    Args:
        preparation: The checked inputs of the comparison.
        jobs: The runs, all with the same seed.
        teachers: The network of each arm's teacher.
        text: The text embeddings.
        progress: What shows how far they are.
        say: Called with each line for the user.
        checkpoint_seconds: The least time between two checkpoints of a run.
        tensorboard: Whether to write TensorBoard events.
        processes: Those that make the runs together, all of which call this; the first one writes. ``None`` for this alone.

    Yields:
        Each run and the seconds that it took, ``None`` if it failed.

    Raises:
        RunError: A run failed in this process, but not in all.
    """
    writes = processes is None or processes.is_main
    experiment = preparation.configuration.experiment
    device = experiment.device if processes is None else processes.device(experiment.device)
    named = _by_name(jobs)
    left = dict(named)
    while left:
        failed: dict[str, Cell] = {}

        def on_failure(name: str, error: Exception, failed: dict[str, Cell] = failed) -> None:
            failed[name] = _failure(named[name], error, say, writes, processes)

        group = _next_group(preparation, left, teachers, text, device, processes, on_failure, say)
        checkpoints = {
            name: Checkpoints(left[name].folder, left[name].identity, every_seconds=checkpoint_seconds, say=say)
            for name in group
        }
        results = train_distillers(
            group,
            preparation.dataset,
            preparation.configuration.recipe("training"),
            seed=jobs[0].seed,
            folders={name: left[name].folder for name in group},
            progress=progress,
            device=device,
            checkpoints=checkpoints,
            tensorboard=tensorboard,
            acceleration=acceleration_of(experiment),
            processes=processes,
            on_failure=on_failure,
            augmentation_variants=experiment.augmentation_variants,
            teacher_cache=TeacherCacheFolder(default_cache_dir() / FOLDER, say) if experiment.teacher_cache else None,
        )
        for name in [*failed, *results]:
            job = left.pop(name)
            if name in failed:
                yield job, failed[name], None
                continue
            cell = Cell(job.seed, results[name].best, results[name].last)
            if writes:
                (job.folder / ERROR_FILE).unlink(missing_ok=True)
                write_record(job.folder, job.identity, cell)
                checkpoints[name].clear()
            yield job, cell, results[name].seconds


def _by_name(jobs: Sequence[Job]) -> dict[str, Job]:
    """Returns runs by what messages call them: the arm's title, with its name where two have the same title."""
    titles = [job.arm.title for job in jobs]
    return {
        title if titles.count(title) == 1 else f"{title} ({job.arm.name})": job
        for title, job in zip(titles, jobs, strict=True)
    }


def _next_group(
    preparation: Preparation,
    jobs: Mapping[str, Job],
    teachers: Mapping[ArmSpec, nn.Module],
    text: TextEmbeddings | None,
    device: str,
    processes: Processes | None,
    on_failure: Callable[[str, Exception], None],
    say: Callable[[str], None],
) -> dict[str, nn.Module]:
    """Builds the distillers of the first runs, as many as may train side by side."""
    experiment = preparation.configuration.experiment
    limit = experiment.arms_at_once
    if limit == "auto":
        # torch gives up on a class of networks that it has compiled too often.
        limit, free = (len(jobs) if experiment.compile is None else 1), free_bytes(device)
        free = free if processes is None else processes.from_main(free)  # all must take the same arms
    else:
        free = math.inf
    built: dict[str, nn.Module] = {}
    total = 0.0
    for name, job in list(jobs.items())[:limit]:
        with failing_alone(name, on_failure):
            teacher = teachers[job.arm]
            if limit > 1:
                teacher.to(device)  # before it is copied: moving a copy would give it tensors of its own
            distiller = build_distiller(preparation, job.arm, teacher, text, job.seed, side_by_side=limit > 1)
            total += arm_bytes(distiller)
            if built and not fits(total, free):
                say(
                    f"{len(built)} of {len(jobs)} arms train side by side now: what one more keeps would not fit into "
                    f"{SHARE:.0%} of the {free / 1e9:.1f} GB that are free (--arms-at-once N takes N)"
                )
                break
            built[name] = distiller
    return built


def _failure(job: Job, error: Exception, say: Callable[[str], None], writes: bool, processes: Processes | None) -> Cell:
    """Returns a failed run, which the others outlive, whatever a user's distiller raised."""
    if is_storage_error(error):  # where nothing can be written, no other run could go on
        raise error
    described = str(error) if isinstance(error, (RunError, InputError)) else f"{type(error).__name__}: {error}"
    if processes is not None:
        processes.fail_together(described)
    say(f"{job.title} failed: {described}")
    logger.debug("%s failed", job.title, exc_info=error)
    if writes:
        write_bytes(job.folder / ERROR_FILE, "".join(traceback.format_exception(error)).encode())
    return Cell(job.seed, error=described)


def acceleration_of(experiment: Experiment) -> Acceleration:
    """Returns how the batches of an experiment are computed."""
    return Acceleration(**{name: getattr(experiment, name) for name in ACCELERATION})
