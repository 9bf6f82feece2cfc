"""What a measurement found, as the plain data of ``robustness.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tmkd_plugin.bench.evidence import seed_evidence
from tmkd_plugin.bench.figures.finished_run import Entry
from tmkd_plugin.bench.robustness.counts import Counts
from tmkd_plugin.bench.robustness.images import MeasuredImages
from tmkd_plugin.bench.robustness.measuring import CLEAN, corruption_key, shift_key
from tmkd_plugin.bench.robustness.networks import MeasuredNetwork
from tmkd_plugin.bench.robustness.scores import (
    Accuracies,
    mean_corruption_error,
    relative_mean_corruption_error,
)
from tmkd_plugin.bench.statistics import compare_pairs, mean_and_sd

SCHEMA_VERSION = 1
DECIMALS = 6
SHIFT, CORRUPTION = "shift:", "corruption:"
LOWER_IS_BETTER = ("lost", "mce", "relative_mce")
"""Metrics of which less is better; of all others more is."""
NEED_BASELINE = ("mce", "relative_mce")

Metric = Callable[[Accuracies, Accuracies], float | None]
"""Of a network, given its baseline."""


@dataclass(frozen=True)
class Plan:
    """What was measured.

    Attributes:
        test: The test images.
        corruptions: Names.
        severities: From 1 to 5.
        shifts: Folders of other images.
    """

    test: MeasuredImages
    corruptions: Sequence[str]
    severities: Sequence[int]
    shifts: Sequence[MeasuredImages]


def accuracies_of(network: MeasuredNetwork, plan: Plan, counts: Counts) -> Accuracies:
    """Turns a network's counts into accuracies in percent."""

    def percent(condition: str, images: MeasuredImages) -> float:
        correct = counts.get(network.digest, condition)
        if correct is None:
            raise KeyError(condition)
        return 100 * correct / len(images)

    return Accuracies(
        percent(CLEAN, plan.test),
        {
            name: {severity: percent(corruption_key(name, severity), plan.test) for severity in plan.severities}
            for name in plan.corruptions
        },
        {shift.name: percent(shift_key(shift), shift) for shift in plan.shifts},
    )


def metrics_of(plan: Plan) -> dict[str, Metric]:
    """Returns everything that is summarised and compared, by its name in ``robustness.json``."""
    metrics: dict[str, Metric] = {
        "clean": lambda network, _: network.clean,
        "corrupted": lambda network, _: network.mean_corrupted,
        "lost": lambda network, _: network.lost,
        "mce": mean_corruption_error,
        "relative_mce": relative_mean_corruption_error,
    }
    for shift in plan.shifts:
        metrics[SHIFT + shift.name] = _shift_metric(shift.name)
    for name in plan.corruptions:
        metrics[CORRUPTION + name] = _corruption_metric(name)
    return metrics


def _shift_metric(name: str) -> Metric:
    return lambda network, _: network.shifted[name]


def _corruption_metric(name: str) -> Metric:
    return lambda network, _: network.by_corruption[name]


BySeed = Mapping[int | None, Accuracies]


def arm_entry(arm: Entry, by_seed: BySeed, baseline: BySeed | None, metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """Returns an arm's entry: each seed, and mean and standard deviation over seeds.

    Args:
        arm: As ``results.json`` has it.
        by_seed: What its students get right.
        baseline: The same of its baseline arm, for mCE; ``None`` if that was not measured.
        metrics: What is summarised.
    """
    return {
        **{key: arm[key] for key in ("name", "title", "baseline", "enhancer")},
        **_group_entry(by_seed, {seed: (baseline or {}).get(seed) for seed in by_seed}, metrics),
    }


def teacher_entry(
    networks: Sequence[MeasuredNetwork], by_seed: BySeed, reference: Accuracies, metrics: Mapping[str, Metric]
) -> dict[str, Any]:
    """Returns a teacher's entry; the seeds of a fused one are those of the runs that learned its weights.

    Args:
        networks: All of the same name.
        by_seed: What each gets right.
        reference: What the teacher as it is gets right, for mCE.
        metrics: What is summarised.
    """
    return {
        "name": networks[0].name,
        "title": networks[0].title,
        "notes": list(dict.fromkeys(network.note for network in networks)),
        **_group_entry(by_seed, dict.fromkeys(by_seed, reference), metrics),
    }


def _group_entry(
    by_seed: BySeed, baselines: Mapping[int | None, Accuracies | None], metrics: Mapping[str, Metric]
) -> dict[str, Any]:
    seeds: list[dict[str, Any]] = []
    values: dict[str, list[float | None]] = {name: [] for name in metrics}
    for seed, found in by_seed.items():
        baseline = baselines[seed]
        for name, metric in metrics.items():
            values[name].append(_value(name, metric, found, baseline))
        headline = {name: _rounded(values[name][-1]) for name in metrics if not name.startswith((SHIFT, CORRUPTION))}
        by_severity = {
            name: {str(severity): _rounded(value) for severity, value in of_one.items()}
            for name, of_one in found.corrupted.items()
        }
        shifted = {name: _rounded(value) for name, value in found.shifted.items()}
        seeds.append({"seed": seed, **headline, "corruptions": by_severity, "shifts": shifted})
    return {"seeds": seeds, "summary": {name: _summary(each) for name, each in values.items()}}


def _value(name: str, metric: Metric, found: Accuracies, baseline: Accuracies | None) -> float | None:
    """Returns a metric of one student; ``None`` where it needs the baseline's and there is none."""
    known = baseline is not None or name not in NEED_BASELINE
    return metric(found, baseline or found) if known else None


def _summary(values: Sequence[float | None]) -> dict[str, Any] | None:
    """Mean and standard deviation, or ``None`` if some seed has no value: a mean over the others would be a choice."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    mean, sd = mean_and_sd(known)
    return {"mean": _rounded(mean), "sd": _rounded(sd), "n": len(known)}


def comparison_entries(
    baseline: str, enhanced: str, before: BySeed, after: BySeed, reference: BySeed, metrics: Mapping[str, Metric]
) -> list[dict[str, Any]]:
    """Compares two arms on the seeds that both have; metrics that some seed has no value for are left out.

    Args:
        baseline: Name of the arm that the other is compared with; it may be enhanced itself.
        enhanced: Name of the other.
        before: What the first arm's students get right.
        after: What the other's get right.
        reference: What those of the arm without an enhancer get right, by which mCE divides on both sides.
        metrics: What is compared.
    """
    seeds = [seed for seed in before if seed in after]
    entries = []
    for name, metric in metrics.items() if seeds else ():
        old, new = ([_value(name, metric, arm[seed], reference.get(seed)) for seed in seeds] for arm in (before, after))
        olds, news = ([value for value in values if value is not None] for values in (old, new))
        if len(olds) < len(seeds) or len(news) < len(seeds):
            continue
        compared = compare_pairs(olds, news)
        entries.append(
            {
                "baseline": baseline,
                "enhanced": enhanced,
                "metric": name,
                "higher_is_better": name not in LOWER_IS_BETTER,
                "delta": _rounded(compared.delta),
                "sd": _rounded(compared.sd),
                "ci95": None if compared.ci95 is None else [_rounded(bound) for bound in compared.ci95],
                "n": compared.n,
                "p_value": None if compared.p_value is None else float(f"{compared.p_value:.6g}"),
                **seed_evidence([late - early for early, late in zip(olds, news, strict=True)]),
            }
        )
    return entries


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DECIMALS)
