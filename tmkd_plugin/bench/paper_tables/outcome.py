"""What the runs of a group came to, in the terms of the table: values by arm, metric and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tmkd_plugin.bench.paper_tables.schema import TEACHER_ARM
from tmkd_plugin.bench.statistics import PairedComparison, compare_pairs

SELECTION = "best"  # the paper takes the best student by validation accuracy


@dataclass(frozen=True)
class GroupOutcome:
    """The results of a group's comparisons; those that failed are missing.

    Attributes:
        results: The data of their ``results.json``.
        problems: Why a comparison failed as a whole.
        seeds: The seeds that every arm should have.
    """

    results: Sequence[Mapping[str, Any]]
    problems: Sequence[str] = ()
    seeds: Sequence[int] = field(default=())

    def values(self, arm: str, metric: str) -> dict[int, float]:
        """Returns the metric on the test split in percent, by seed; the teacher's under its only seed."""
        if arm == TEACHER_ARM:
            # Its top-1 on RGB images is what the other columns are compared with.
            tops = [result["teachers"][0]["test_top1"]["rgb"] for result in self.results if result["teachers"]]
            return {0: tops[0]} if tops and metric == "top1" else {}
        runs = self._runs(arm)
        return {run["seed"]: run[SELECTION][metric] for run in runs if run[SELECTION] is not None}

    def errors(self, arm: str) -> list[str]:
        """Returns why runs of an arm failed."""
        return [f"seed {run['seed']}: {run['error']}" for run in self._runs(arm) if run.get("error")]

    def difference(self, arm: str, against: str, metric: str) -> PairedComparison | None:
        """Returns the paired difference over the seeds that both arms have; ``None`` if there is none."""
        after, before = self.values(arm, metric), self.values(against, metric)
        seeds = [seed for seed in after if seed in before]
        return compare_pairs([before[seed] for seed in seeds], [after[seed] for seed in seeds]) if seeds else None

    def _runs(self, arm: str) -> list[Mapping[str, Any]]:
        for result in self.results:
            for entry in result["arms"]:
                if entry["name"] == arm:
                    return list(entry["seeds"])
        return []
