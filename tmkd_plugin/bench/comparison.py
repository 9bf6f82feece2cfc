"""Runs a comparison: the small CLIP and the teachers first, then every seed with all arms side by side."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from tmkd_plugin.bench.arms import ArmSpec
from tmkd_plugin.bench.cell import Job, finished_cell, train_cells
from tmkd_plugin.bench.guide import guide_of, view_settings_of
from tmkd_plugin.bench.output import OutputFolder
from tmkd_plugin.bench.preparation import Preparation, describe_dataset
from tmkd_plugin.bench.results import Cell, results_of
from tmkd_plugin.bench.run_record import identity_of
from tmkd_plugin.text_teacher import TextEmbeddings
from tmkd_plugin.training.checkpoint import CHECKPOINT_SECONDS
from tmkd_plugin.training.distributed import Processes
from tmkd_plugin.training.progress import Progress
from tmkd_plugin.training.run_folder import PREDICTIONS
from tmkd_plugin.training.teacher_store import loading_of
from tmkd_plugin.training.teachers import TrainedTeacher, trained_teacher

if TYPE_CHECKING:
    from tmkd_plugin.bench.ray_engine import RayOptions


@dataclass
class Seconds:
    """How long the parts of a comparison took; a cached part takes no time."""

    small_clip: float = 0.0
    teachers: dict[str, float] = field(default_factory=dict)
    arms: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Runs what was prepared.

    Args:
        preparation: The checked inputs.
        output: Where the files of the runs go.
        cache_dir: Where teachers and text teachers are kept.
        progress: What shows how far each run is.
        say: Called with each line for the user.
        checkpoint_seconds: The least time between two checkpoints of a run.
        tensorboard: Whether runs write TensorBoard events.
        ray: Makes the runs as Ray tasks; ``None`` makes them here, one after another.
        processes: Those that make each run together, all of which run the comparison; ``None`` for this one alone.
    """

    preparation: Preparation
    output: OutputFolder
    cache_dir: Path
    progress: Progress
    say: Callable[[str], None]
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    tensorboard: bool = False
    ray: RayOptions | None = None
    processes: Processes | None = None
    seconds: Seconds = field(default_factory=Seconds)

    def run(self) -> dict[str, Any]:
        """Trains everything and returns the data of ``results.json``; a failed run does not stop the others.

        Raises:
            RunError: The small CLIP or a teacher could not be trained.
        """
        preparation = self.preparation
        # What the first process trains or downloads here, the others find.
        with contextlib.nullcontext() if self.processes is None else self.processes.main_first():
            guide = guide_of(self.preparation, self.cache_dir, self.say)
            teachers = self._teachers()
        text, self.seconds.small_clip = guide.text, guide.seconds
        cells: dict[ArmSpec, list[Cell]] = {arm: [] for arm in preparation.plan.arms}
        of_arm = {
            arm: teachers["rgb_teacher" if arm.control == "rgb_teacher" else None] for arm in preparation.plan.arms
        }
        # Seed by seed, so that what an interrupted comparison leaves is complete pairs.
        jobs = [
            [self._job(arm, teacher, text, seed) for arm, teacher in of_arm.items()]
            for seed in preparation.configuration.experiment.seeds
        ]
        networks = {arm: teacher.network for arm, teacher in of_arm.items()}
        on_ray = (
            None
            if self.ray is None
            else self._on_ray([job for of_seed in jobs for job in of_seed], networks, text, self.ray)
        )
        for of_seed in jobs:
            made = self._runs(of_seed, networks, text) if on_ray is None else on_ray
            for job in of_seed:
                cells[job.arm].append(made[job.arm, job.seed])
        if self.processes is not None and not self.processes.is_main:
            # The first process knows when the files are there that the results are read from.
            found: dict[str, Any] = self.processes.from_main(None)
            return found
        results = results_of(
            cells,
            preparation.plan.pairs,
            config=preparation.configuration.resolved.described,
            predictions=lambda arm, seed: self.output.cell(arm, seed) / PREDICTIONS,
            dataset=describe_dataset(preparation.dataset),
            teachers=[self._describe_teacher(role, teacher) for role, teacher in teachers.items()],
            text=guide.described,
            notices=preparation.plan.notices,
        )
        return results if self.processes is None else self.processes.from_main(results)

    def _teachers(self) -> dict[str | None, TrainedTeacher]:
        """Returns the teacher of all arms, and of the control that has its own."""
        teachers: dict[str | None, TrainedTeacher] = {}
        teachers[None] = self._teacher(self.preparation.configuration.experiment.teacher_views)
        if any(arm.control == "rgb_teacher" for arm in self.preparation.plan.arms):
            teachers["rgb_teacher"] = self._teacher("rgb")
        return teachers

    def _teacher(self, views: str) -> TrainedTeacher:
        experiment, start = self.preparation.configuration.experiment, time.perf_counter()
        teacher = trained_teacher(
            experiment.teacher,
            self.preparation.dataset,
            self.preparation.configuration.recipe("teacher_training"),
            views=views,
            seed=experiment.teacher_seed,
            cache_dir=self.cache_dir / "teachers",
            checkpoint=experiment.teacher_checkpoint,
            progress=self.progress,
            device=experiment.device if self.processes is None else self.processes.device(experiment.device),
            view_settings=view_settings_of(self.preparation.configuration),
            pretrained=experiment.teacher_pretrained,
            loading=loading_of(experiment),
            checkpoint_seconds=self.checkpoint_seconds,
        )
        self.seconds.teachers[teacher.source] = round(time.perf_counter() - start, 3)
        accuracies = ", ".join(f"{view} {top1:.2f}" for view, top1 in teacher.per_view_top1.items())
        self.say(f"teacher {teacher.source}{' (cached)' if teacher.from_cache else ''}: test top-1 in %: {accuracies}")
        return teacher

    def _describe_teacher(self, role: str | None, teacher: TrainedTeacher) -> dict[str, Any]:
        return {
            "role": role or "all other arms",
            "network": self.preparation.configuration.experiment.teacher,
            "source": teacher.source,
            "weights_sha256": teacher.weights_sha256,
            "val_top1": teacher.val_top1,
            "test_top1": teacher.per_view_top1,
        }

    def _job(self, arm: ArmSpec, teacher: TrainedTeacher, text: TextEmbeddings | None, seed: int) -> Job:
        identity = identity_of(
            self.preparation.configuration,
            arm,
            seed,
            dataset=describe_dataset(self.preparation.dataset),
            teacher_sha256=teacher.weights_sha256,
            text=text,
        )
        return Job(arm, seed, self.output.cell(arm, seed), identity)

    def _on_ray(
        self, jobs: list[Job], networks: dict[ArmSpec, nn.Module], text: TextEmbeddings | None, options: RayOptions
    ) -> dict[tuple[ArmSpec, int], Cell]:
        """Makes all runs that are not there as Ray tasks."""
        from tmkd_plugin.bench.ray_engine import run_on_ray

        made = self._made_before(jobs)
        missing = [(job, networks[job.arm]) for job in jobs if (job.arm, job.seed) not in made]
        if missing:
            for ended in run_on_ray(
                missing, self.preparation, text, options=options, progress=self.progress, say=self.say
            ):
                made[ended.job.arm, ended.job.seed] = ended.cell
                self._note_seconds(ended.job, ended.seconds)
        return made

    def _made_before(self, jobs: list[Job]) -> dict[tuple[ArmSpec, int], Cell]:
        """Returns the runs that are there and whole."""
        there = {(job.arm, job.seed): finished_cell(job, self.say) for job in jobs}
        return {key: cell for key, cell in there.items() if cell is not None}

    def _note_seconds(self, job: Job, seconds: float | None) -> None:
        if seconds is not None:
            self.seconds.arms.setdefault(job.arm.name, {})[str(job.seed)] = round(seconds, 3)

    def _runs(
        self, jobs: list[Job], networks: dict[ArmSpec, nn.Module], text: TextEmbeddings | None
    ) -> dict[tuple[ArmSpec, int], Cell]:
        """Returns the runs of a seed: those that are there, the rest of those that were stopped, and new ones."""
        processes = self.processes
        made = self._made_before(jobs) if processes is None or processes.is_main else {}
        if processes is not None:
            made = processes.from_main(made)
        missing = [job for job in jobs if (job.arm, job.seed) not in made]
        for job, cell, seconds in train_cells(
            self.preparation,
            missing,
            networks,
            text,
            progress=self.progress,
            say=self.say,
            checkpoint_seconds=self.checkpoint_seconds,
            tensorboard=self.tensorboard,
            processes=processes,
        ):
            made[job.arm, job.seed] = cell
            self._note_seconds(job, seconds)
        return made
