"""Runs the comparisons of a table, one after the other; one that fails does not stop the rest."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tmkd_plugin.bench.configuration import Configuration
from tmkd_plugin.bench.output import CONFIG, RESULTS
from tmkd_plugin.bench.paper_tables.outcome import GroupOutcome
from tmkd_plugin.bench.paper_tables.planning import DECIDES_NO_RESULT, PlannedComparison, PlannedGroup
from tmkd_plugin.errors import InputError, TmkdError

RunComparison = Callable[..., dict[str, Any]]


def run_group(
    planned: PlannedGroup, run: RunComparison, say: Callable[[str], None], *, quiet: bool = False
) -> GroupOutcome:
    """Runs or resumes what a group needs.

    Args:
        planned: The group.
        run: ``run_comparison`` of the bench.
        say: Called with each line for the user.
        quiet: Whether to show no progress.
    """
    results, problems = [], []
    for comparison in planned.comparisons:
        there = finished_results(comparison)
        if there is not None:
            results.append(there)
            continue
        try:
            results.append(run(comparison.configuration, comparison.out, runs=planned.runs, quiet=quiet))
        except TmkdError as error:
            say(f"{planned.group.name} failed: {error}")
            problems.append(str(error))
        except Exception as error:  # a bug in one group must not cost the others
            say(f"{planned.group.name} failed: {type(error).__name__}: {error}")
            problems.append(f"{type(error).__name__}: {error}")
    return GroupOutcome(results, problems, planned.seeds)


def check_same_version(planned: PlannedGroup) -> None:
    """Refuses to go on with runs that an earlier version made with other settings, before the table is touched.

    The folders are named by all values that are given, so that only defaults of the code can differ.

    Raises:
        InputError: A setting has changed; the message names it.
    """
    for comparison in planned.comparisons:
        there = _read_json(comparison.out / CONFIG)
        wanted = _plain(comparison.configuration)
        for section, settings in (there or {}).get("config", {}).items():
            now = wanted.get(section)
            if not isinstance(now, dict) or "value" in settings:
                continue
            for key in sorted({*settings, *now}):
                before, after = (_value(side, key) for side in (settings, now))
                if before != after:
                    raise InputError(
                        f"{comparison.out} was made by another version: {section}.{key} was {before}, and is {after} now. "
                        "Choose another folder with --out; nothing here has been changed."
                    )


def _value(settings: Mapping[str, Any], key: str) -> Any:
    return settings[key]["value"] if key in settings else "unknown"


def finished_results(comparison: PlannedComparison) -> dict[str, Any] | None:
    """Returns the results of a comparison that is complete; data and teacher need not be loaded for it again."""
    results = _read_json(comparison.out / RESULTS)
    if results is None or not {"config", "arms", "teachers", "dataset"} <= results.keys():
        return None
    same = _decisive(results["config"]) == _decisive(_plain(comparison.configuration))
    complete = all(run["best"] is not None for arm in results["arms"] for run in arm["seeds"])
    return results if same and complete else None


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _plain(configuration: Configuration) -> Any:
    return json.loads(json.dumps(configuration.resolved.described, default=str))


def _decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    place = {key for key in DECIDES_NO_RESULT if key != "seeds"}
    return {key: value for key, value in config.items() if key not in place}
