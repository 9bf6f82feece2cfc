"""One run of a comparison, an arm with a seed: found, gone on with, or trained."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tmkd_plugin.bench.arms import ArmSpec
from tmkd_plugin.bench.preparation import Preparation
from tmkd_plugin.bench.results import Cell
from tmkd_plugin.bench.run_record import ACCELERATION, read_record, write_record
from tmkd_plugin.config import Experiment
from tmkd_plugin.errors import InputError, RunError, is_storage_error
from tmkd_plugin.text_teacher import TextEmbeddings
from tmkd_plugin.training.acceleration import Acceleration
from tmkd_plugin.training.checkpoint import Checkpoints
from tmkd_plugin.training.distributed import Processes
from tmkd_plugin.training.files import remove_temporary_files, write_bytes
from tmkd_plugin.training.progress import Progress
from tmkd_plugin.training.trainer import train_distiller

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


def train_cell(
    preparation: Preparation,
    job: Job,
    teacher: nn.Module,
    text: TextEmbeddings | None,
    *,
    progress: Progress,
    say: Callable[[str], None],
    checkpoint_seconds: float,
    tensorboard: bool = False,
    processes: Processes | None = None,
) -> tuple[Cell, float | None]:
    """Makes a run, going on from its checkpoint if there is one; a failure is the cell's error and raises nothing.

    Args:
        preparation: The checked inputs of the comparison.
        job: The run.
        teacher: The network of its teacher.
        text: The text embeddings.
        progress: What shows how far it is.
        say: Called with each line for the user.
        checkpoint_seconds: The least time between two checkpoints.
        tensorboard: Whether to write TensorBoard events.
        processes: Those that make the run together, all of which call this; the first one writes. ``None`` for this alone.

    Returns:
        The run and the seconds that it took, ``None`` if it failed.

    Raises:
        RunError: The run failed in this process, but not in all.
    """
    writes = processes is None or processes.is_main
    folder, configuration = job.folder, preparation.configuration
    checkpoints = Checkpoints(folder, job.identity, every_seconds=checkpoint_seconds, say=say)
    try:
        result = train_distiller(
            preparation.distiller(job.arm, teacher, text, job.seed),
            preparation.dataset,
            configuration.recipe("training"),
            seed=job.seed,
            folder=folder,
            progress=progress,
            device=configuration.experiment.device
            if processes is None
            else processes.device(configuration.experiment.device),
            name=job.arm.title,
            checkpoints=checkpoints,
            tensorboard=tensorboard,
            acceleration=acceleration_of(configuration.experiment),
            processes=processes,
        )
    except Exception as error:  # the other runs go on, whatever a user's distiller raises
        if is_storage_error(error):  # where nothing can be written, no other run could go on
            raise
        described = str(error) if isinstance(error, (RunError, InputError)) else f"{type(error).__name__}: {error}"
        if processes is not None:
            processes.fail_together(described)
        say(f"{job.title} failed: {described}")
        logger.debug("%s failed", job.title, exc_info=True)
        if writes:
            write_bytes(folder / ERROR_FILE, traceback.format_exc().encode())
        return Cell(job.seed, error=described), None
    cell = Cell(job.seed, result.best, result.last)
    if writes:
        (folder / ERROR_FILE).unlink(missing_ok=True)
        write_record(folder, job.identity, cell)
        checkpoints.clear()
    return cell, result.seconds


def acceleration_of(experiment: Experiment) -> Acceleration:
    """Returns how the batches of an experiment are computed."""
    return Acceleration(**{name: getattr(experiment, name) for name in ACCELERATION})
