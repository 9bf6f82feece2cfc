"""How far training is: a bar on a terminal, a few lines in a log file, or nothing."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from tmkd_plugin.errors import unknown_name

if TYPE_CHECKING:
    from rich.console import Console

LINES = 10
"""The most lines that a run writes into a log file."""


class Progress(Protocol):
    """What the trainer tells about each arm."""

    def begin(self, arm: str, seed: int, epochs: int, steps_per_epoch: int) -> None:
        """An arm starts."""

    def step(self, arm: str) -> None:
        """An arm has done a step."""

    def epoch(self, arm: str, epoch: int, loss: float, val_top1: float) -> None:
        """An arm has finished an epoch (from 1), with this mean loss and validation top-1 in percent."""

    def end(self, arm: str) -> None:
        """An arm has ended, well or not; also called for arms that never began."""


class SilentProgress:
    """Shows nothing."""

    def begin(self, arm: str, seed: int, epochs: int, steps_per_epoch: int) -> None:
        """Shows nothing."""

    def step(self, arm: str) -> None:
        """Shows nothing."""

    def epoch(self, arm: str, epoch: int, loss: float, val_top1: float) -> None:
        """Shows nothing."""

    def end(self, arm: str) -> None:
        """Shows nothing."""


class LineProgress:
    """Writes plain lines, at most one for each tenth of the epochs; for log files and CI.

    Args:
        stream: Where to write.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._runs: dict[str, _Run] = {}

    def begin(self, arm: str, seed: int, epochs: int, steps_per_epoch: int) -> None:
        """Remembers the arm."""
        self._runs[arm] = _Run(arm, seed, epochs)

    def step(self, arm: str) -> None:
        """Shows nothing."""

    def epoch(self, arm: str, epoch: int, loss: float, val_top1: float) -> None:
        """Writes a line if another tenth of the epochs is done."""
        run = self._runs[arm]
        if LINES * epoch // run.epochs > LINES * (epoch - 1) // run.epochs:
            self._stream.write(run.line(epoch, loss, val_top1) + "\n")
            self._stream.flush()

    def end(self, arm: str) -> None:
        """Forgets the arm."""
        self._runs.pop(arm, None)


class BarProgress:
    """Shows a bar for each arm that runs, and leaves one line of it behind.

    Args:
        console: The terminal.
    """

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            TimeRemainingColumn(),
        )
        self._bars = RichProgress(*columns, console=console, transient=True)
        self._runs: dict[str, _Run] = {}
        self._tasks: dict[str, Any] = {}
        self._last_lines: dict[str, str] = {}

    def begin(self, arm: str, seed: int, epochs: int, steps_per_epoch: int) -> None:
        """Adds a bar; the first one opens the display."""
        run = self._runs[arm] = _Run(arm, seed, epochs)
        self._bars.start()
        state = f"epoch 0/{epochs}"
        self._tasks[arm] = self._bars.add_task(run.title, total=epochs * steps_per_epoch, state=state)

    def step(self, arm: str) -> None:
        """Moves the bar."""
        self._bars.advance(self._tasks[arm])

    def epoch(self, arm: str, epoch: int, loss: float, val_top1: float) -> None:
        """Shows the epoch's figures beside the bar."""
        run = self._runs[arm]
        self._bars.update(self._tasks[arm], state=run.state(epoch, loss, val_top1))
        self._last_lines[arm] = run.line(epoch, loss, val_top1)

    def end(self, arm: str) -> None:
        """Turns the bar into a line; the last one closes the display, which gives the cursor back."""
        if arm not in self._tasks:
            return
        self._bars.remove_task(self._tasks.pop(arm))
        if arm in self._last_lines:
            self._bars.console.print(self._last_lines.pop(arm), highlight=False, markup=False)
        if not self._tasks:
            self._bars.stop()


@dataclass(frozen=True)
class _Run:
    arm: str
    seed: int
    epochs: int

    @property
    def title(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    def state(self, epoch: int, loss: float, val_top1: float) -> str:
        return f"epoch {epoch}/{self.epochs}, loss {loss:.4g}, val {val_top1:.2f} %"

    def line(self, epoch: int, loss: float, val_top1: float) -> str:
        return f"{self.title}: {self.state(epoch, loss, val_top1)}"


def training_progress(kind: str = "auto", stream: TextIO | None = None) -> Progress:
    """Returns a display of the progress.

    Args:
        kind: ``"bar"``, ``"lines"``, ``"silent"``, or ``"auto"``: a bar on a terminal, lines elsewhere.
        stream: Where to write; None for standard error, so that standard output holds results alone.
    """
    if kind not in ("auto", "bar", "lines", "silent"):
        raise unknown_name("progress", kind, ("auto", "bar", "lines", "silent"))
    if kind == "silent":
        return SilentProgress()
    stream = stream or sys.stderr
    if kind == "lines":
        return LineProgress(stream)
    from rich.console import Console

    console = Console(file=stream, force_terminal=True if kind == "bar" else None)
    if kind == "bar" or (console.is_terminal and not console.is_dumb_terminal):
        return BarProgress(console)
    return LineProgress(stream)
