"""What a table still needs: runs, time and disk; said before it starts."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tmkd_plugin.bench.arms import ArmSpec
from tmkd_plugin.bench.paper_tables.measuring import Measurement, measure
from tmkd_plugin.bench.paper_tables.messages import counted, shortened
from tmkd_plugin.bench.paper_tables.planning import PlannedGroup
from tmkd_plugin.bench.paper_tables.schema import DatasetFacts, ScalesFile
from tmkd_plugin.errors import TmkdError
from tmkd_plugin.training.files import write_json

MEASUREMENTS = "measurements.json"
Measure = Callable[..., Measurement]


@dataclass(frozen=True)
class GroupEstimate:
    """What a group still needs.

    Attributes:
        name: The group's name.
        done: Runs that are there.
        missing: Runs that are not.
        seconds: How long those take, the teacher included; ``None`` if it could not be measured.
        bytes: What they leave in the folder of the tables; ``None`` likewise.
        cache_bytes: What the teacher leaves in the cache.
        remark: On what it was measured, or why not.
    """

    name: str
    done: int
    missing: int
    seconds: float | None = 0.0
    bytes: int | None = 0
    cache_bytes: int = 0
    remark: str = ""


def estimate_group(
    planned: PlannedGroup,
    scales: ScalesFile,
    out: Path,
    cache_dir: Path,
    measure_arms: Measure = measure,
    before: Sequence[PlannedGroup] = (),
) -> GroupEstimate:
    """Counts the runs of a group and measures what the missing ones cost.

    Args:
        planned: The group.
        scales: Knows the official sizes of data sets that are not on disk.
        out: The folder of the tables, where measurements are kept.
        cache_dir: Where teachers are kept.
        measure_arms: What measures.
        before: The groups that run before this one; runs and teachers that they make are not counted again.
    """
    shared = [other.group.name for other in before if other.runs == planned.runs]
    if shared:
        return GroupEstimate(planned.group.name, 0, 0, remark=f"the runs of {shared[0]}")
    missing = {arm: [seed for seed in planned.seeds if not planned.is_done(arm, seed)] for arm in planned.arms}
    runs = sum(map(len, missing.values()))
    done = len(planned.arms) * len(planned.seeds) - runs
    if not runs:
        return GroupEstimate(planned.group.name, done, 0, remark="nothing is missing")
    try:
        found = _measured(
            planned, [arm for arm, seeds in missing.items() if seeds], scales, out, cache_dir, measure_arms
        )
    except TmkdError as error:
        return GroupEstimate(
            planned.group.name, done, runs, None, None, remark=f"can't be measured: {shortened(error)}"
        )
    seconds = sum(len(seeds) * found.run_seconds[arm.name] for arm, seeds in missing.items() if seeds)
    size = sum(len(seeds) * found.run_bytes[arm.name] for arm, seeds in missing.items() if seeds)
    needs_teacher = not done and _teacher_key(planned) not in map(_teacher_key, before)
    return GroupEstimate(
        planned.group.name,
        done,
        runs,
        seconds + (found.teacher_seconds if needs_teacher else 0),
        size,
        found.teacher_bytes if needs_teacher else 0,
        f"measured on {found.on}",
    )


def _teacher_key(planned: PlannedGroup) -> str:
    configuration = planned.comparisons[0].configuration
    experiment = configuration.experiment
    keys = ("dataset", "image_size", "train_limit", "teacher", "teacher_views", "teacher_pretrained", "teacher_seed")
    return json.dumps(
        [asdict(configuration.recipe("teacher_training")), *(getattr(experiment, key) for key in keys)], default=str
    )


def _measured(
    planned: PlannedGroup,
    arms: Sequence[ArmSpec],
    scales: ScalesFile,
    out: Path,
    cache_dir: Path,
    measure_arms: Measure,
) -> Measurement:
    """Returns a measurement that was made before on this machine, or makes it."""
    path = out / MEASUREMENTS
    machine = f"{platform.node()}, {torch.__version__}, {torch.get_num_threads()} threads"
    key = f"{planned.runs.name} side by side on {machine}"
    kept = _kept(path)
    if key in kept and all(arm.name in kept[key].run_seconds for arm in arms):
        return kept[key]
    found = measure_arms(planned.comparisons[0].configuration, list(arms), _facts(planned, scales), cache_dir)
    kept[key] = found
    write_json(path, {name: asdict(measurement) for name, measurement in kept.items()})
    return found


def _facts(planned: PlannedGroup, scales: ScalesFile) -> DatasetFacts | None:
    """Returns the official sizes, within the limits of the configuration."""
    facts = scales.datasets.get(planned.dataset)
    if facts is None:
        return None
    experiment = planned.comparisons[0].configuration.experiment
    limits = {"train": experiment.train_limit, "validation": experiment.validation_limit, "test": experiment.test_limit}
    within = {name: min(limit, getattr(facts, name)) for name, limit in limits.items() if limit is not None}
    return facts.model_copy(update=within)


def _kept(path: Path) -> dict[str, Measurement]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: Measurement(**entry) for name, entry in content.items()}
    except (OSError, ValueError, TypeError):  # only a cache
        return {}


def estimate_lines(estimates: Sequence[GroupEstimate], out: Path, cache_dir: Path, device: str) -> list[str]:
    """Says what is there and what is missing, group by group and in all."""
    width = max(len(estimate.name) for estimate in estimates)
    lines = []
    for estimate in estimates:
        cost = "" if not estimate.missing else f", {_duration(estimate.seconds)}, {_size(estimate.bytes)}"
        total = estimate.done + estimate.missing
        runs = f"{estimate.done} of {total} runs done{cost} ({estimate.remark})" if total else estimate.remark
        lines.append(f"  {estimate.name:{width}}  {runs}")
    missing = sum(estimate.missing for estimate in estimates)
    total = missing + sum(estimate.done for estimate in estimates)
    known = [estimate for estimate in estimates if estimate.seconds is not None and estimate.bytes is not None]
    seconds, written = sum(item.seconds or 0 for item in known), sum(item.bytes or 0 for item in known)
    unknown = "" if len(known) == len(estimates) else f", {len(estimates) - len(known)} group(s) not counted"
    cached = sum(item.cache_bytes for item in known)
    first = f"{total} runs, {total - missing} done, {missing} missing"
    if missing:
        threads = f" with {counted(torch.get_num_threads(), 'thread')}" if device == "cpu" else ""
        first += f": {_duration(seconds)} on {device}{threads}, {_size(written)} in {out}"
        first += f", {_size(cached)} for teachers in {cache_dir}" if cached else ""
        first += unknown
    return [first + ".", *lines]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "time unknown"
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"about {seconds / length:.1f} {unit}"
    return f"about {seconds:.0f} s"


def _size(count: int | None) -> str:
    if count is None:
        return "size unknown"
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
