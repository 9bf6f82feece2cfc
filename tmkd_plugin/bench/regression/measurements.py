"""What a comparison measured, arm by arm and seed by seed, from its ``results.json`` and the histories of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmkd_plugin.errors import InputError
from tmkd_plugin.training.files import read_jsonl
from tmkd_plugin.training.run_folder import HISTORY


@dataclass(frozen=True)
class ArmMeasurements:
    """The runs of an arm.

    Attributes:
        name: The arm's name in ``results.json``.
        title: Its name in tables.
        baseline: The distillation method.
        enhancer: The enhancer around it, if there is one.
        control: Which control it is, if it is one.
        top1: Seed to test top-1 in percent, epoch chosen by validation.
        terms: Name of each term of the loss to seed to its mean over the last epoch, weighted; empty where the history of a
            run is not there.
        failed: Seed to the reason of each failed run.
    """

    name: str
    title: str
    baseline: str
    enhancer: str | None
    control: str | None
    top1: dict[int, float]
    terms: dict[str, dict[int, float]]
    failed: dict[int, str]


def measurements_of(results: Mapping[str, Any], runs: Path) -> dict[str, ArmMeasurements]:
    """Reads what every arm of a comparison gave.

    Args:
        results: The data of ``results.json``.
        runs: The folder that holds the arms' folders.

    Raises:
        InputError: The results are not of the form that `tmkd bench` writes.
    """
    try:
        return {arm["name"]: _arm(arm, runs) for arm in results["arms"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"The arms of the results are not what `tmkd bench` writes: {error!r}.") from None


def _arm(arm: Mapping[str, Any], runs: Path) -> ArmMeasurements:
    finished = {int(run["seed"]): float(run["best"]["top1"]) for run in arm["seeds"] if run["best"] is not None}
    return ArmMeasurements(
        name=arm["name"],
        title=arm["title"],
        baseline=arm["baseline"],
        enhancer=arm["enhancer"],
        control=arm["control"],
        top1=finished,
        terms=_terms(runs / arm["folder"], list(finished)),
        failed={int(run["seed"]): str(run.get("error")) for run in arm["seeds"] if run["best"] is None},
    )


def _terms(folder: Path, seeds: list[int]) -> dict[str, dict[int, float]]:
    """Returns the terms that every run has in its last epoch; none if a history is missing."""
    last: dict[int, dict[str, float]] = {}
    for seed in seeds:
        file = folder / f"seed{seed}" / HISTORY
        if not file.is_file():
            return {}
        try:
            last[seed] = read_jsonl(file)[-1]["losses"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(f"The history {file} can't be read: {error!r}.") from None
    names = set.intersection(*(set(losses) for losses in last.values())) if last else set()
    return {name: {seed: float(losses[name]) for seed, losses in last.items()} for name in sorted(names)}
