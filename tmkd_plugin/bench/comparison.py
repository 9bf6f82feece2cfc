"""Runs a comparison: the small CLIP and the teachers first, then every arm with every seed."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmkd_plugin.bench.arms import ArmSpec
from tmkd_plugin.bench.cell import Job, finished_cell, train_cell
from tmkd_plugin.bench.configuration import SMALL_CLIP, SMALL_CLIP_SETTINGS
from tmkd_plugin.bench.output import OutputFolder
from tmkd_plugin.bench.preparation import Preparation, describe_dataset
from tmkd_plugin.bench.results import Cell, results_of
from tmkd_plugin.bench.run_record import identity_of
from tmkd_plugin.text_teacher import TextEmbeddings, text_embeddings
from tmkd_plugin.training.checkpoint import CHECKPOINT_SECONDS
from tmkd_plugin.training.distributed import Processes
from tmkd_plugin.training.progress import Progress
from tmkd_plugin.training.run_folder import PREDICTIONS
from tmkd_plugin.training.small_clip import train_small_clip, zero_shot_accuracy
from tmkd_plugin.training.small_clip_images import images_of
from tmkd_plugin.training.teacher_store import loading_of
from tmkd_plugin.training.teachers import TrainedTeacher, trained_teacher
from tmkd_plugin.views import VIEW_NAMES, ViewSettings

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
            text, zero_shot = self._text()
            teachers = self._teachers()
        cells: dict[ArmSpec, list[Cell]] = {arm: [] for arm in preparation.plan.arms}
        # Seed by seed, so that what an interrupted comparison leaves is complete pairs.
        jobs = [
            (self._job(arm, teacher, text, seed), teacher)
            for seed in preparation.configuration.experiment.seeds
            for arm in preparation.plan.arms
            for teacher in [teachers["rgb_teacher" if arm.control == "rgb_teacher" else None]]
        ]
        made = self._on_ray(jobs, text, self.ray) if self.ray is not None else {}
        for job, teacher in jobs:
            cells[job.arm].append(made.get((job.arm, job.seed)) or self._cell(job, teacher, text))
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
            text=None if text is None else _describe_text(text, zero_shot),
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

    def _text(self) -> tuple[TextEmbeddings | None, float | None]:
        """Returns the text embeddings and, for the small CLIP, its zero-shot accuracy on the test split in percent."""
        if not self.preparation.needs_small_clip:
            return self.preparation.text, None
        dataset, start = self.preparation.dataset, time.perf_counter()
        settings = {name: setting.value for name, setting in SMALL_CLIP_SETTINGS.items()}
        settings |= self.preparation.configuration.resolved.given[SMALL_CLIP]
        clip = train_small_clip(
            images_of(dataset.train),
            dataset.train.labels,
            images_of(dataset.validation),
            dataset.validation.labels,
            dataset.class_names,
            cache_dir=self.cache_dir,
            view_settings=self._view_settings(),
            progress=lambda epoch, top1: self.say(f"small CLIP, epoch {epoch}/{settings['epochs']}: val {top1:.2f} %"),
            **settings,
        )
        self.seconds.small_clip = round(time.perf_counter() - start, 3)
        test = images_of(dataset.test)
        zero_shot = round(zero_shot_accuracy(clip.folder, test, dataset.test.labels, dataset.class_names), 4)
        self.say(
            f"small CLIP: zero-shot top-1 on the test set {zero_shot:.2f} % (epoch {clip.epoch}, chosen by validation)"
        )
        text = text_embeddings(dataset.class_names, clip.folder, views=VIEW_NAMES, cache_dir=self.cache_dir)
        # Its folder's name is this machine's business; results name what it is.
        return dataclasses.replace(text, source=SMALL_CLIP), zero_shot

    def _view_settings(self) -> ViewSettings:
        """Returns the thresholds and scales of the views, so that both teachers learn those that the enhancer shows."""
        configuration = self.preparation.configuration
        given: dict[str, Any] = {}
        for enhancer in reversed(configuration.enhancers):  # the first one's count
            given |= configuration.settings_of(enhancer)
        names = {field.name for field in dataclasses.fields(ViewSettings)}
        return ViewSettings(**{name: value for name, value in given.items() if name in names})

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
            view_settings=self._view_settings(),
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
        self, jobs: list[tuple[Job, TrainedTeacher]], text: TextEmbeddings | None, options: RayOptions
    ) -> dict[tuple[ArmSpec, int], Cell]:
        """Makes all runs that are not there as Ray tasks."""
        from tmkd_plugin.bench.ray_engine import run_on_ray

        made: dict[tuple[ArmSpec, int], Cell] = {}
        missing = []
        for job, teacher in jobs:
            there = finished_cell(job, self.say)
            if there is None:
                missing.append((job, teacher.network))
            else:
                made[job.arm, job.seed] = there
        if missing:
            for ended in run_on_ray(
                missing, self.preparation, text, options=options, progress=self.progress, say=self.say
            ):
                made[ended.job.arm, ended.job.seed] = ended.cell
                self._note_seconds(ended.job, ended.seconds)
        return made

    def _note_seconds(self, job: Job, seconds: float | None) -> None:
        if seconds is not None:
            self.seconds.arms.setdefault(job.arm.name, {})[str(job.seed)] = round(seconds, 3)

    def _cell(self, job: Job, teacher: TrainedTeacher, text: TextEmbeddings | None) -> Cell:
        """Returns a run: the one that is there, or the rest of one that was stopped, or a new one."""
        processes = self.processes
        there = finished_cell(job, self.say) if processes is None or processes.is_main else None
        if processes is not None:
            there = processes.from_main(there)
        if there is not None:
            return there
        cell, seconds = train_cell(
            self.preparation,
            job,
            teacher.network,
            text,
            progress=self.progress,
            say=self.say,
            checkpoint_seconds=self.checkpoint_seconds,
            tensorboard=self.tensorboard,
            processes=processes,
        )
        self._note_seconds(job, seconds)
        return cell


def _describe_text(text: TextEmbeddings, zero_shot: float | None) -> dict[str, Any]:
    described: dict[str, Any] = {"source": text.source, "text_views": text.text_views}
    if zero_shot is not None:
        described["zero_shot_test_top1"] = zero_shot
    return described
