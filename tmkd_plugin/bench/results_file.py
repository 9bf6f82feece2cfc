"""Reads a ``results.json``, and says in words what is wrong with one that can't be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tmkd_plugin.bench.results import SCHEMA_VERSION
from tmkd_plugin.errors import InputError

NEEDED = ("config", "dataset", "arms", "comparisons")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path: The file.
        what: What it should hold, for messages.

    Raises:
        InputError: The file can't be read, or is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The {what} {path} can't be read: {error}.") from None
    except ValueError as error:
        raise InputError(f"The {what} {path} is not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise InputError(f"The {what} {path} is not JSON of the form {{...}}.")
    return content


def check_version(content: dict[str, Any], known: int, path: Path, what: str) -> None:
    """Refuses a file without a schema version or of a newer one.

    Raises:
        InputError: With what was found and what can be read here.
    """
    version = content.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InputError(f"The {what} {path} has no schema_version: expected a whole number up to {known}.")
    if version > known:
        raise InputError(
            f"The {what} {path} has schema_version {version}, and this version of tmkd reads up to {known}: use the newer tmkd "
            "that wrote it."
        )


def read_results(path: Path) -> dict[str, Any]:
    """Reads the results of a comparison.

    Raises:
        InputError: The file can't be read, is of a newer version, or is no comparison.
    """
    results = read_json(path, "results file")
    missing = [key for key in NEEDED if key not in results]
    if missing:
        raise InputError(f"{path} is no results.json of `tmkd bench`: it has no {', '.join(missing)}.")
    check_version(results, SCHEMA_VERSION, path, "results file")
    return results
