"""Reads the list files of a data set, and collects what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tmkd_plugin.errors import InputError

_MAX_LIST_BYTES = 64 * 2**20
_SHOWN = 10


class ListProblems:
    """Collects what is wrong with the files of a data set, to say it all in one message."""

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.root = root
        self._problems: list[str] = []

    def add(self, problem: str) -> None:
        """Notes one problem; it names the file and the row."""
        self._problems.append(problem)

    def raise_if_any(self) -> None:
        """Raises an ``InputError`` that lists the first ten problems and counts the others, if there are any."""
        if not self._problems:
            return
        count = len(self._problems)
        lines = [f"  {problem}" for problem in self._problems[:_SHOWN]]
        if count > _SHOWN:
            lines.append(f"  and {count - _SHOWN:,} more")
        raise InputError(
            f"The data set '{self.name}' in '{self.root}' has {count:,} problem{'s' * (count > 1)}:\n"
            + "\n".join(lines)
            + "\nRestore the official files, for instance by unpacking the archive again into an empty folder."
        )


def read_rows(path: Path, columns: Sequence[str], problems: ListProblems) -> list[tuple[int, list[str]]]:
    """Reads a list file whose columns are separated by white space; the last column may hold spaces.

    Empty lines are skipped, a missing newline at the end is fine. A row with too few columns becomes a problem and is left
    out.

    Args:
        path: The file.
        columns: What each column holds, for messages.
        problems: Takes the rows that can't be used.

    Returns:
        For each row: its number in the file, from 1, and its columns.

    Raises:
        InputError: The file is missing, too large or no text.
    """
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        cells = line.split(maxsplit=len(columns) - 1)
        if not cells:
            continue
        if len(cells) < len(columns):
            problems.add(f"{path.name}, row {number}: {line.strip()[:80]!r}, expected {', '.join(columns)}")
        else:
            rows.append((number, [cell.strip() for cell in cells]))
    return rows


def read_text(path: Path) -> str:
    """Reads a small text file in UTF-8, with or without a byte order mark.

    Raises:
        InputError: The file is missing, unreadable, too large or no text.
    """
    try:
        if path.stat().st_size > _MAX_LIST_BYTES:
            raise InputError(
                f"'{path}' is larger than {_MAX_LIST_BYTES // 2**20} MiB: this is not the official list file."
            )
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"There is no file '{path}', which the official data set has. Unpack the archive again, or give another folder."
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"'{path}' is no text file in UTF-8: this is not the official list file.") from None
    except OSError as error:
        raise InputError(f"Can't read '{path}': {error.strerror}.") from None


def whole_number(text: str) -> int | None:
    """The number that a cell holds; ``None`` if it is no whole number of at most nine digits, without a sign."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None
