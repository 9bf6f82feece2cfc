"""Long messages made short enough for a note below a table."""

from __future__ import annotations

import re

LONGEST = 300


def shortened(text: object) -> str:
    """Returns a message on one line, cut where it is long."""
    line = " ".join(str(text).split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


def first_sentence(text: object) -> str:
    """Returns the first sentence of a message, without its full stop."""
    return re.split(r"[.:](?=\s|$)", shortened(text), maxsplit=1)[0]


def counted(count: int, what: str) -> str:
    """Returns ``1 seed``, ``2 seeds``."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")
