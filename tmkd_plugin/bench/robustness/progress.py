"""How far a measurement is: a bar on a terminal, a few lines in a log file, or nothing; on standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from tmkd_plugin.training.progress import LINES


@contextlib.contextmanager
def shown_progress(total: int, *, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Shows progress while the block runs.

    Args:
        total: How many steps there are.
        quiet: Whether to show nothing.

    Yields:
        A function to call with the name of each step that is done.
    """
    if quiet:
        yield lambda _: None
        return
    from rich.console import Console

    console = Console(file=sys.stderr)
    if console.is_terminal and not console.is_dumb_terminal:
        from rich.progress import Progress

        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("robustness", total=total)
            yield lambda step: bar.update(task, advance=1, description=step.partition("/")[0].replace("_", " "))
        return
    yield _lines(total)


def _lines(total: int) -> Callable[[str], None]:
    """Returns a step that writes a line whenever another tenth is done."""
    done = 0

    def advance(_: str) -> None:
        nonlocal done
        done += 1
        if LINES * done // total > LINES * (done - 1) // total:
            print(f"robustness: {done}/{total}", file=sys.stderr, flush=True)

    return advance
