"""One process at a time in a folder of results; the operating system frees a killed process's lock."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tmkd_plugin.errors import InputError

LOCK = ".lock"


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Holds a folder, which is made if it is missing, while the block runs.

    Where the system or the file system has no locks, it holds nothing.

    Raises:
        InputError: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+b") as file:
        if not _take(file.fileno()):
            raise InputError(
                f"Another process is writing to {folder}. Wait for it, stop it, or choose another folder with --out."
            )
        yield


def is_held(folder: Path) -> bool:
    """Says whether a process holds the folder."""
    try:
        with (folder / LOCK).open("r+b") as file:
            return not _take(file.fileno())
    except OSError:
        return False


def _take(descriptor: int) -> bool:
    """Locks an open file until it is closed; returns False where another process has it."""
    try:
        import fcntl
    except ImportError:  # not on this system
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
