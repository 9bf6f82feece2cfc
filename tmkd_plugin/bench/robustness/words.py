"""What a measurement shows, in sentences and cells: never more than the interval does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tmkd_plugin.bench.robustness.outcome import SHIFT
from tmkd_plugin.bench.robustness.scores import LEAST_LOSS
from tmkd_plugin.bench.statistics import PairedComparison, verdict

HEADS = {
    "clean": "clean",
    "corrupted": "corrupted",
    "lost": "lost",
    "mce": "mCE",
    "relative_mce": "relative mCE",
}
"""Columns of the table, by metric."""

WHAT = {
    "corrupted": "on corrupted images (mean corruption accuracy)",
    "lost": "in accuracy lost to corruption",
    "mce": "in mCE (baseline: 100)",
}
"""Metrics that a sentence is said of, after those of shifted images."""


def sentences(results: Mapping[str, Any]) -> list[str]:
    """Says in one sentence for each pair of arms and headline metric what the interval shows."""
    titles = {arm["name"]: arm["title"] for arm in results["arms"]}
    lines = []
    for entry in results["comparisons"]:
        what = what_of(entry["metric"])
        if what is not None:
            lines.append(sentence(titles[entry["enhanced"]], titles[entry["baseline"]], what, entry))
    return lines


def what_of(metric: str) -> str | None:
    """Returns the words for a metric in a sentence; ``None`` for one that no sentence is said of."""
    if metric.startswith(SHIFT):
        return f"on the images of {metric.removeprefix(SHIFT)}"
    return WHAT.get(metric)


def sentence(enhanced: str, baseline: str, what: str, entry: Mapping[str, Any]) -> str:
    """Says what the interval of a paired difference shows."""
    found = verdict_of(entry)
    delta = f"{entry['delta']:+.2f}"
    if entry["ci95"] is None:
        return f"{enhanced} against {baseline} {what}: {delta}; {found}: one seed has no interval."
    figures = f"{delta}, 95 % interval {interval_of(entry)}, n = {entry['n']}"
    if found in ("better", "worse"):
        return f"{enhanced} is {found} than {baseline} {what}: {figures}."
    return f"{enhanced} against {baseline} {what}: {figures}; {found}."


def verdict_of(entry: Mapping[str, Any]) -> str:
    """Returns ``better``, ``worse`` or ``not resolved with n = ...`` for a comparison, whichever way its metric counts."""
    sign = 1 if entry["higher_is_better"] else -1
    bounds = None if entry["ci95"] is None else sorted(sign * bound for bound in entry["ci95"])
    interval = None if bounds is None else (bounds[0], bounds[1])
    return verdict(PairedComparison(sign * entry["delta"], entry["sd"], interval, entry["n"], entry["p_value"]))


def interval_of(entry: Mapping[str, Any]) -> str:
    """Returns the interval of a comparison as ``[-0.10, +0.30]``; ``needs 2 seeds`` where there is none."""
    if entry["ci95"] is None:
        return "needs 2 seeds"
    low, high = entry["ci95"]
    return f"[{low:+.2f}, {high:+.2f}]"


def mean_of(summary: Mapping[str, Any] | None) -> str:
    """Returns mean and standard deviation as ``71.20 +- 0.40``; ``-`` where they are not defined."""
    if summary is None:
        return "-"
    spread = "" if summary["sd"] is None else f" +- {summary['sd']:.2f}"
    return f"{summary['mean']:.2f}{spread}"


def notes(results: Mapping[str, Any]) -> list[str]:
    """Says what a reader has to know: which metrics have no value and why, and what else was noticed."""
    lines = list(results["notes"])
    groups = [*results["arms"], *results["teachers"]]
    if any(group["summary"]["mce"] is None for group in groups):
        lines.append(
            "mCE has no value where the baseline was not measured with the same seed or makes no error under a corruption."
        )
    if any(group["summary"]["relative_mce"] is None for group in groups):
        lines.append(
            f"Relative mCE has no value where some corruption costs the baseline less than {LEAST_LOSS:g} point of accuracy: "
            "a ratio of such losses is one of a few images."
        )
    return lines


def title_of(results: Mapping[str, Any]) -> str:
    """Returns the line above the tables."""
    run, plan = results["run"], results["measurement"]
    sets = f"{len(plan['corruptions'])} corruptions x {len(plan['severities'])} severities"
    return (
        f"{run['dataset']}: {run['teacher']} -> {run['student']}; {plan['images']:,} test images x {sets}; "
        "accuracy in %, mean +- sd over seeds"
    )
