"""The errors that this package raises on purpose.

``InputError`` is for something that was given and can't be used, ``RunError`` for a run that could not finish. The
command ``tmkd`` turns them into the exit codes 2 and 3.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class TmkdError(Exception):
    """Base class of every error that this package raises on purpose."""


class InputError(TmkdError, ValueError):
    """Something that the user gave can't be used; the message names it, says what was expected and what to do."""


class RunError(TmkdError, RuntimeError):
    """A run could not finish."""


class NonFiniteLossError(RunError):
    """A loss became NaN or infinite; the message gives the step and the value of every term."""


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> InputError:
    """Builds the error for a name that is not among the known ones.

    Args:
        kind: What the name stands for, such as ``"baseline"``.
        name: What was given.
        choices: The known names.

    Returns:
        The error to raise; its message suggests the nearest known name.
    """
    known = sorted(choices)
    near = difflib.get_close_matches(name.lower(), [choice.lower() for choice in known], n=1, cutoff=0.5)
    suggestion = next((f" Did you mean '{choice}'?" for choice in known if near and choice.lower() == near[0]), "")
    return InputError(f"Unknown {kind} '{name}'.{suggestion} Known: {', '.join(known)}.")


class TmkdNotice(UserWarning):
    """Something that a user should know but that stops nothing; said once."""


STORAGE_ERRORS = frozenset(
    number
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "EMFILE", "ESTALE")
    if (number := getattr(errno, name, None)) is not None
)


def is_storage_error(error: BaseException) -> bool:
    """Says whether a disk that is full, read-only or broken is to blame, and no one's code."""
    return isinstance(error, OSError) and error.errno in STORAGE_ERRORS
