"""Runs of a comparison as Ray tasks, on this machine or on a cluster; the files come back to the folder of the results.

A task trains one run in a temporary folder of its machine and returns the files, so no file system has to be shared. Ray
starts a task whose worker died again.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tmkd_plugin.bench.cell import Job, train_cells
from tmkd_plugin.bench.preparation import Preparation
from tmkd_plugin.bench.results import Cell
from tmkd_plugin.errors import InputError
from tmkd_plugin.text_teacher import TextEmbeddings
from tmkd_plugin.training.files import write_bytes
from tmkd_plugin.training.progress import Progress, SilentProgress

RETRIES = 3
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class RayOptions:
    """Where and how runs are made.

    Attributes:
        address: Of the cluster; ``None`` for the one that the environment names, else a new one on this machine.
        gpus_per_run: GPUs that a run takes; a fraction lets runs share one.
        cpus_per_run: CPU cores that a run takes.
    """

    address: str | None = None
    gpus_per_run: float = 0.0
    cpus_per_run: float = 1.0


@dataclass(frozen=True)
class Finished:
    """A run that has ended.

    Attributes:
        job: Which one.
        cell: Its scores, or its error.
        seconds: How long it took; ``None`` if it failed.
    """

    job: Job
    cell: Cell
    seconds: float | None


def run_on_ray(
    jobs: Sequence[tuple[Job, nn.Module]],
    preparation: Preparation,
    text: TextEmbeddings | None,
    *,
    options: RayOptions,
    progress: Progress,
    say: Callable[[str], None],
) -> Iterator[Finished]:
    """Makes runs in parallel and yields each as it ends, its files in its folder.

    Args:
        jobs: The runs, each with the network of its teacher.
        preparation: The checked inputs of the comparison.
        text: The text embeddings.
        options: The cluster and what a run takes of it.
        progress: Shows all runs in one place.
        say: Called with each line for the user.

    Raises:
        InputError: Ray is not installed, or the cluster can't be reached.
    """
    ray = _ray()
    started = not ray.is_initialized()
    if started:
        _connect(ray, options)
    try:
        yield from _run(ray, jobs, preparation, text, options, progress, say)
    finally:
        if started:
            ray.shutdown()


def _ray() -> Any:
    # Of lines that many workers print, one; and a run that takes no GPU of Ray sees those that its machine shows.
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError(f"--engine ray needs Ray ({error}): pip install 'tmkd-plugin[ray]'.") from error
    return ray


def _connect(ray: Any, options: RayOptions) -> None:
    try:
        ray.init(
            address=options.address, log_to_driver=False, include_dashboard=False, configure_logging=True,
            logging_level="error",
        )  # fmt: skip
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        where = options.address or "a new one on this machine"
        reason = str(error).partition("\n")[0]
        raise InputError(f"The Ray cluster ({where}) can't be reached: {reason}") from error


def _run(
    ray: Any,
    jobs: Sequence[tuple[Job, nn.Module]],
    preparation: Preparation,
    text: TextEmbeddings | None,
    options: RayOptions,
    progress: Progress,
    say: Callable[[str], None],
) -> Iterator[Finished]:
    events = ray.remote(num_cpus=0)(_Events).remote()
    task = ray.remote(
        num_cpus=options.cpus_per_run, num_gpus=options.gpus_per_run, max_retries=RETRIES, retry_exceptions=False
    )(_task)
    shared = ray.put((preparation, text, torch.get_num_threads()))
    teachers = {id(teacher): ray.put(teacher) for _, teacher in jobs}
    pending = {task.remote(shared, teachers[id(teacher)], job, events): job for job, teacher in jobs}
    say(f"{len(pending)} runs on Ray: {ray.cluster_resources().get('CPU', 0):g} cores in the cluster.")
    shown: set[str] = set()
    while pending:
        ready, _ = ray.wait(list(pending), num_returns=1, timeout=_POLL_SECONDS)
        _show(ray.get(events.take.remote()), progress, say, shown)
        for reference in ready:
            job = pending.pop(reference)
            try:
                cell, seconds, files = ray.get(reference)
            except ray.exceptions.RayError as error:
                reason = str(error).strip().partition("\n")[0]
                say(f"{job.title} failed: {reason}")
                yield Finished(job, Cell(job.seed, error=f"its worker died {RETRIES + 1} times: {reason}"), None)
                continue
            for name, content in files.items():
                write_bytes(job.folder / name, content)
            yield Finished(job, cell, seconds)


def _task(shared: tuple[Preparation, TextEmbeddings | None, int], teacher: nn.Module, job: Job, events: Any) -> Any:
    """Trains one run on a worker; returns (cell, seconds, file name to content)."""
    preparation, text, threads = shared
    torch.set_num_threads(threads)  # the bits depend on it
    preparation = _writable(preparation)
    with tempfile.TemporaryDirectory(prefix="tmkd-") as name:
        local = dataclasses.replace(job, folder=Path(name))
        ((_, cell, seconds),) = train_cells(
            preparation,
            [local],
            {local.arm: teacher},
            text,
            progress=_Sent(events, job.title),
            say=lambda line: events.put.remote(("say", job.title, line)),
            checkpoint_seconds=float("inf"),
        )
        files = {path.name: path.read_bytes() for path in Path(name).iterdir() if path.is_file()}
    return cell, seconds, files


def _writable(preparation: Preparation) -> Preparation:
    """Copies the images: Ray gives workers one shared copy that can't be written to, which torch warns of."""
    from tmkd_plugin.data.dataset import ImageSplit

    def copied(split: Any) -> Any:
        if not isinstance(split, ImageSplit):
            return split
        return ImageSplit(split.images.clone(), split.labels.clone(), split.ids.clone())

    dataset = preparation.dataset
    splits = {name: copied(getattr(dataset, name)) for name in ("train", "validation", "test")}
    return dataclasses.replace(preparation, dataset=dataclasses.replace(dataset, **splits))


class _Events:
    """The actor that all workers tell their progress to."""

    def __init__(self) -> None:
        self._events: list[tuple[str, str, Any]] = []

    def put(self, event: tuple[str, str, Any]) -> None:
        self._events.append(event)

    def take(self) -> list[tuple[str, str, Any]]:
        taken, self._events = self._events, []
        return taken


class _Sent(SilentProgress):
    """Sends the progress of a run to the actor; single steps are not worth a message."""

    def __init__(self, events: Any, title: str) -> None:
        self._events, self._title = events, title
        self._sent = time.monotonic()

    def begin(self, arm: str, seed: int, epochs: int, steps_per_epoch: int) -> None:
        self._events.put.remote(("begin", self._title, (seed, epochs)))

    def epoch(self, arm: str, epoch: int, loss: float, val_top1: float) -> None:
        self._events.put.remote(("epoch", self._title, (epoch, loss, val_top1)))

    def end(self, arm: str) -> None:
        self._events.put.remote(("end", self._title, None))


def _show(
    events: Sequence[tuple[str, str, Any]], progress: Progress, say: Callable[[str], None], shown: set[str]
) -> None:
    for kind, title, value in events:
        if kind == "say":
            say(f"{title}: {value}")
        elif kind == "begin":
            if title in shown:
                say(f"{title}: begun again, since its worker died.")
            shown.add(title)
            seed, epochs = value
            progress.begin(title, seed, epochs, steps_per_epoch=1)
        elif kind == "epoch":
            progress.step(title)
            progress.epoch(title, *value)
        else:
            progress.end(title)


def check_ray_options(options: RayOptions, device: str) -> None:
    """Refuses options that no cluster could serve.

    Raises:
        InputError: A number is negative, or runs on a GPU are to take none.
    """
    if options.gpus_per_run < 0 or options.cpus_per_run < 0:
        raise InputError("--gpus-per-run and --cpus-per-run must be at least 0.")
    if torch.device(device).type == "cuda" and options.gpus_per_run == 0:
        raise InputError(
            f"device={device} with --engine ray needs --gpus-per-run, such as 1 or 0.25 for four runs on a GPU."
        )
