"""What people watch while a run trains: a line of JSON for each epoch, and TensorBoard events where they are wanted.

Unlike the history, the log holds times and memory, so it differs from machine to machine and from run to run.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from tmkd_plugin.errors import InputError
from tmkd_plugin.training.arm import Arm
from tmkd_plugin.training.files import append_jsonl, json_line, read_jsonl, write_bytes

LOG, EVENTS = "log.jsonl", "events"


class EpochLog:
    """The log of one run.

    Args:
        folder: The folder of the run.
        images: Training images in an epoch.
        tensorboard: Whether to write TensorBoard events into its folder ``events`` too.

    Raises:
        InputError: TensorBoard is wanted but not installed.
    """

    def __init__(self, folder: Path, images: int, *, tensorboard: bool = False) -> None:
        self._path = folder / LOG
        self._events = folder / EVENTS
        self._images = images
        self._tensorboard = tensorboard
        self._writer: Any = None
        self._seconds = 0.0
        if tensorboard:
            check_tensorboard()

    def begin(self, arm: Arm) -> None:
        """Keeps the lines of the epochs that the arm has behind it."""
        done = len(arm.history)
        self._seconds = arm.seconds
        kept = [line for line in read_jsonl(self._path) if line["epoch"] <= done] if self._path.exists() else []
        if kept:
            write_bytes(self._path, b"".join(json_line(line) for line in kept))
        else:
            self._path.unlink(missing_ok=True)
        if self._tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._events), purge_step=done + 1)

    def epoch(self, arm: Arm, record: Mapping[str, Any]) -> None:
        """Adds an epoch that has ended."""
        seconds = arm.seconds - self._seconds
        self._seconds = arm.seconds
        line = {
            **record,
            "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
            "images_per_second": round(self._images / seconds, 1) if seconds > 0 else None,
            "peak_memory_gigabytes": peak_memory_gigabytes(arm.device),
        }
        append_jsonl(self._path, line)
        if self._writer is not None:
            for name, value in _scalars(line):
                self._writer.add_scalar(name, value, record["epoch"])
            self._writer.flush()

    def close(self) -> None:
        """Closes the events; may be called more than once."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def check_tensorboard() -> None:
    """Raises an ``InputError`` that names the extra where TensorBoard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise InputError(f"TensorBoard can't be imported ({error}): pip install 'tmkd-plugin[tensorboard]'.") from error


def peak_memory_gigabytes(device: torch.device) -> float | None:
    """Returns the most memory that this process has used so far, on the GPU or of the machine; None where unknown."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e9, 3)
    try:
        import resource
    except ImportError:  # not on this system
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)


def _scalars(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and name != "epoch":
            yield prefix + name, float(value)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's log; none where there is no log or it can't be read."""
    try:
        return read_jsonl(folder / LOG)
    except (OSError, json.JSONDecodeError):
        return []
