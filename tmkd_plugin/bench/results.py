"""What a comparison found, as the plain data of ``results.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tmkd_plugin.bench.arms import ArmSpec
from tmkd_plugin.bench.evidence import evidence_of_test_set, seed_evidence
from tmkd_plugin.bench.statistics import compare_pairs
from tmkd_plugin.training.trainer import EpochScores

SCHEMA_VERSION = 1
METRICS = ("top1", "top5", "recall")
SELECTIONS = ("best", "last")
DECIMALS = 6


@dataclass(frozen=True)
class Cell:
    """One run: an arm with a seed.

    Attributes:
        seed: The run's seed.
        best: The epoch with the best validation top-1; ``None`` if the run failed.
        last: The last epoch.
        error: Why the run failed; ``None`` if it did not.
    """

    seed: int
    best: EpochScores | None = None
    last: EpochScores | None = None
    error: str | None = None


Cells = Mapping[ArmSpec, Sequence[Cell]]


def results_of(
    cells: Cells,
    pairs: Sequence[tuple[ArmSpec, ArmSpec]],
    *,
    config: Mapping[str, Any],
    predictions: Callable[[ArmSpec, int], Path] | None = None,
    **described: Any,
) -> dict[str, Any]:
    """Puts the results of a comparison together; equal runs give equal data.

    Args:
        cells: The runs of every arm.
        pairs: The arms to compare, as (baseline, enhanced).
        config: The resolved configuration, each value with its source.
        predictions: The file with what the best weights of an arm and a seed say of the test split; ``None`` leaves the error
            of the test set out.
        **described: What else there is to say, such as ``teacher`` and ``dataset``.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "config": dict(config),
        **described,
        "arms": [_arm_entry(arm, runs) for arm, runs in cells.items()],
        "comparisons": [entry for pair in pairs for entry in _comparisons(*pair, cells, predictions)],
    }


def _arm_entry(arm: ArmSpec, runs: Sequence[Cell]) -> dict[str, Any]:
    return {
        "name": arm.name,
        "title": arm.title,
        "folder": arm.folder,
        "baseline": arm.baseline,
        "enhancer": arm.enhancer,
        "control": arm.control,
        "variant": arm.variant,
        "seeds": [_cell_entry(run) for run in runs],
    }


def _cell_entry(run: Cell) -> dict[str, Any]:
    if run.best is None or run.last is None:
        return {"seed": run.seed, "best": None, "last": None, "error": run.error}
    return {"seed": run.seed, "best": asdict(run.best), "last": asdict(run.last)}


def _comparisons(
    baseline: ArmSpec, enhanced: ArmSpec, cells: Cells, predictions: Callable[[ArmSpec, int], Path] | None
) -> list[dict[str, Any]]:
    """Compares two arms on the seeds that both have finished; none if there is no such seed."""
    before = {run.seed: run for run in cells[baseline] if run.best is not None}
    after = {run.seed: run for run in cells[enhanced] if run.best is not None}
    seeds = [seed for seed in before if seed in after]
    entries = []
    for selection in SELECTIONS if seeds else ():
        for metric in METRICS:
            values = [[getattr(getattr(runs[seed], selection), metric) for seed in seeds] for runs in (before, after)]
            compared = compare_pairs(*values)
            evidence = seed_evidence([new - old for old, new in zip(*values, strict=True)])
            if predictions is not None and (selection, metric) == ("best", "top1"):
                files = [[predictions(arm, seed) for seed in seeds] for arm in (baseline, enhanced)]
                evidence["test_set"] = evidence_of_test_set(*files)
            entries.append(
                {
                    "baseline": baseline.name,
                    "enhanced": enhanced.name,
                    "metric": metric,
                    "selection": selection,
                    "delta": round(compared.delta, DECIMALS),
                    "sd": None if compared.sd is None else round(compared.sd, DECIMALS),
                    "ci95": None if compared.ci95 is None else [round(bound, DECIMALS) for bound in compared.ci95],
                    "n": compared.n,
                    "p_value": None if compared.p_value is None else float(f"{compared.p_value:.6g}"),
                    **evidence,
                }
            )
    return entries


def any_failed(results: Mapping[str, Any]) -> bool:
    """Says whether a run of the comparison failed."""
    return any(run["best"] is None for arm in results["arms"] for run in arm["seeds"])
