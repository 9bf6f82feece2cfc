"""The memory that a container, a batch system or systemd leaves to this process: Linux' control groups, versions 1 and 2."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class _Files:
    """What the files of a version are called, and the line of ``memory.stat`` with the page cache that can be taken back."""

    limit: str
    used: str
    cache: str


_VERSION_1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = _Files("memory.max", "memory.current", "inactive_file")


def free_in_groups(groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> float:
    """Returns the bytes that the tightest group around a process leaves; infinity without a limit.

    Files that were read and could be read again (inactive page cache) count as free: the system drops them first.

    Args:
        groups: Names the groups of the process, one a line.
        mounted: Where the groups stand as folders.
    """
    return min((_free(folder, files) for folder, files in _chain(groups, mounted)), default=math.inf)


def _chain(groups: Path, mounted: Path) -> Iterator[tuple[Path, _Files]]:
    """Yields the groups from the outermost to the process's own, which need not all be visible from inside a container."""
    for line in _text(groups).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        folder, files = (mounted / "memory", _VERSION_1) if controllers else (mounted, _VERSION_2)
        yield folder, files
        for name in path.strip("/").split("/") if path.strip("/") else []:
            folder /= name
            yield folder, files


def _free(folder: Path, files: _Files) -> float:
    try:
        limit, used = float(_text(folder / files.limit)), float(_text(folder / files.used))
    except ValueError:  # not there, or no limit, which is written as a word
        return math.inf
    cache = dict(line.split(maxsplit=1) for line in _text(folder / "memory.stat").splitlines())
    return limit - used + float(cache.get(files.cache, 0))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except OSError:
        return ""
