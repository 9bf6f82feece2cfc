"""Which comparisons lie below a folder, and how far each of them is."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmkd_plugin.bench.lock import is_held
from tmkd_plugin.bench.output import CONFIG, RESULTS
from tmkd_plugin.bench.run_record import RECORD
from tmkd_plugin.training.epoch_log import read_log

ERROR = "error.txt"


@dataclass(frozen=True)
class RunState:
    """One run of a comparison.

    Attributes:
        name: Its folder, such as ``kd+tmkd/seed0``.
        state: ``done``, ``failed`` or ``unfinished``.
        epoch: Finished epochs.
        top1: Test top-1 of a run that is done, in percent.
        val_top1: Validation top-1 of the last epoch in the log, in percent.
    """

    name: str
    state: str
    epoch: int
    top1: float | None
    val_top1: float | None


@dataclass(frozen=True)
class ComparisonState:
    """One comparison.

    Attributes:
        folder: Where it lies.
        state: ``running`` (a process holds the folder), ``done``, ``failed`` (a run of it did) or ``stopped``.
        epochs: Epochs of a run; None where the configuration does not say.
        runs: Those that have begun.
        planned: How many runs it has in all; None where that is not known.
        changed: When its newest file was written, in seconds since 1970.
    """

    folder: Path
    state: str
    epochs: int | None
    runs: list[RunState]
    planned: int | None
    changed: float

    @property
    def done(self) -> int:
        """The number of runs that are done."""
        return sum(run.state == "done" for run in self.runs)


def find_comparisons(folder: Path) -> list[ComparisonState]:
    """Returns the comparisons at and below a folder, the newest first; damaged files are passed over."""
    found = [_state_of(path.parent) for path in sorted(folder.rglob(CONFIG))]
    return sorted(found, key=lambda comparison: -comparison.changed)


def _state_of(folder: Path) -> ComparisonState:
    config = _read(folder / CONFIG).get("config", {})
    results = _read(folder / RESULTS)
    runs = [_run_state(folder, path) for path in sorted(folder.glob("*/seed*")) if path.is_dir()]
    if is_held(folder):
        state = "running"
    elif results:
        state = "failed" if any(run["best"] is None for arm in results["arms"] for run in arm["seeds"]) else "done"
    else:
        state = "stopped"
    planned = sum(len(arm["seeds"]) for arm in results["arms"]) if results else None
    times = [path.stat().st_mtime for path in _files(folder)]
    epochs = config.get("training", {}).get("epochs", {}).get("value")
    return ComparisonState(folder, state, epochs, runs, planned, max(times, default=0.0))


def _run_state(folder: Path, path: Path) -> RunState:
    log = read_log(path)
    record = _read(path / RECORD)
    state = "done" if record else "failed" if (path / ERROR).exists() else "unfinished"
    return RunState(
        name=str(path.relative_to(folder)),
        state=state,
        epoch=log[-1]["epoch"] if log else 0,
        top1=record["best"]["top1"] if record else None,
        val_top1=log[-1].get("val_top1") if log else None,
    )


def _files(folder: Path) -> Iterator[Path]:
    yield from (path for path in folder.glob("*") if path.is_file())
    yield from (path for path in folder.glob("*/seed*/*") if path.is_file())


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def describe(comparison: ComparisonState, now: float) -> Mapping[str, str]:
    """Returns the cells of a comparison's row in the list."""
    current = [run for run in comparison.runs if run.state == "unfinished"]
    doing = ", ".join(f"{run.name}: epoch {run.epoch}" + _of(comparison.epochs) + _accuracy(run) for run in current[:3])
    return {
        "folder": str(comparison.folder),
        "state": comparison.state,
        "runs done": f"{comparison.done}" + _of(comparison.planned),
        "unfinished": doing + (f" and {len(current) - 3} more" if len(current) > 3 else ""),
        "last write": _ago(now - comparison.changed),
    }


def _of(total: int | None) -> str:
    return "" if total is None else f"/{total}"


def _accuracy(run: RunState) -> str:
    return "" if run.val_top1 is None else f" (val {run.val_top1:.2f} %)"


def _ago(seconds: float) -> str:
    delta = datetime.timedelta(seconds=max(0, round(seconds)))
    if delta.days:
        return f"{delta.days} d ago"
    hours, rest = divmod(delta.seconds, 3600)
    return f"{hours} h ago" if hours else f"{rest // 60} min ago" if rest >= 60 else f"{rest} s ago"
