"""How many images each network gets right under each condition, kept in a file so that a stopped measurement goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tmkd_plugin.training.files import write_json

FILE = "counts.json"
SCHEMA_VERSION = 1
_SECONDS = 2.0  # least time between two writes, but for the last one


class Counts:
    """Correct answers by network and condition.

    What stands in the file is taken for this measurement's own only if everything that decides it is the same.

    Args:
        folder: Where the file lies.
        identity: What decides the counts beside network and condition, as JSON values: images, seed, pictures of frost.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self._path = folder / FILE
        self._identity: dict[str, Any] = json.loads(json.dumps(identity))
        self._correct: dict[str, dict[str, int]] = self._read()
        self._written = time.monotonic()

    def get(self, network: str, condition: str) -> int | None:
        """Returns how many images a network, by its digest, gets right; ``None`` where that is not known."""
        return self._correct.get(network, {}).get(condition)

    def set(self, network: str, condition: str, correct: int) -> None:
        """Remembers a count."""
        self._correct.setdefault(network, {})[condition] = correct

    def save(self, *, now: bool = True) -> None:
        """Writes the file; with ``now=False`` only if the last time is a while ago."""
        if now or time.monotonic() - self._written >= _SECONDS:
            content = {"schema_version": SCHEMA_VERSION, "identity": self._identity, "correct": self._correct}
            write_json(self._path, content)
            self._written = time.monotonic()

    def _read(self) -> dict[str, dict[str, int]]:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            if content["schema_version"] != SCHEMA_VERSION or content["identity"] != self._identity:
                return {}
            return {
                str(network): {str(condition): int(count) for condition, count in counts.items()}
                for network, counts in content["correct"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}  # not there, or damaged: all is measured again
