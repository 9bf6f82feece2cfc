"""Measures the students of a comparison: calibration before and after temperature scaling, and against the baseline."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tmkd_plugin.bench.figures.finished_run import Entry, FinishedRun, finished_seeds
from tmkd_plugin.bench.statistics import compare_pairs
from tmkd_plugin.bench.teacher_report.measures import (
    DECIMALS,
    Figures,
    MeasureSettings,
    means_and_sds,
    plain_figures,
    pooled_diagram,
    rounded,
    scaled_figures,
)
from tmkd_plugin.calibration import Answers, answers_of
from tmkd_plugin.calibration_temperature import fit_temperature
from tmkd_plugin.data.dataset import ImageDataset
from tmkd_plugin.training.metrics import evaluate

COMPARED = ("top1", "ece", "adaptive_ece", "nll", "brier", "ece_scaled", "nll_scaled")
BATCH = 250


def measure_students(
    run: FinishedRun, dataset: ImageDataset, split: str, settings: MeasureSettings, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Returns what ``teacher-report.json`` says of the students of each arm.

    The test answers are those that the run has written (``predictions.npz``, logits in float16); the validation answers,
    by which the temperature is fitted, are computed from the student's weights.

    Args:
        run: The comparison.
        dataset: Its images.
        split: ``"test"`` or ``"validation"``; of the latter the temperature's figures are those of its own fit.
        settings: How it is measured.
        say: Called with each line for the user.

    Raises:
        InputError: A student's weights or predictions are missing.
        RunError: A student's logits are NaN or infinite.
    """
    entries = [
        _entry(arm, _scaled_seeds(run, arm, dataset, split, settings, say), settings)
        for arm in run.results["arms"]
        if finished_seeds(arm)
    ]
    return _with_differences(entries)


def recorded_students(run: FinishedRun, arms: Sequence[Entry], settings: MeasureSettings) -> list[dict[str, Any]]:
    """Returns what the test answers that the run has written say by themselves: nothing of temperature scaling.

    Args:
        run: The comparison.
        arms: Arms with finished seeds.
        settings: How it is measured.

    Raises:
        InputError: A student's predictions are missing.
    """
    found = []
    for arm in arms:
        answers = {seed: student_answers(run, arm, seed) for seed in finished_seeds(arm)}
        rows = [{"seed": seed, "figures": plain_figures(each, settings)} for seed, each in answers.items()]
        found.append(_entry(arm, (rows, list(answers.values())), settings))
    return _with_differences(found)


def student_answers(run: FinishedRun, arm: Entry, seed: int) -> Answers:
    """Returns what the student of a run said of the test split."""
    predictions = run.predictions(arm, seed)
    return answers_of(predictions.logits, predictions.labels, predictions.predicted)


def _scaled_seeds(
    run: FinishedRun,
    arm: Entry,
    dataset: ImageDataset,
    split: str,
    settings: MeasureSettings,
    say: Callable[[str], None],
) -> tuple[list[dict[str, Any]], list[Answers]]:
    seeds = finished_seeds(arm)
    say(f"students of {arm['title']}: validation logits of {len(seeds)} seed(s)")
    rows: list[dict[str, Any]] = []
    measured = []
    for seed in seeds:
        logits = evaluate(run.student(arm, seed), dataset.validation, dataset.mean, dataset.std, BATCH)[1]
        validation = answers_of(logits.numpy(), dataset.validation.labels.cpu().numpy())
        answers = validation if split == "validation" else student_answers(run, arm, seed)
        fit = fit_temperature(validation)
        figures: Figures = {**plain_figures(answers, settings), **scaled_figures(answers, fit.temperature, settings)}
        wrong = int((~validation.correct).sum())
        rows.append({"seed": seed, "figures": figures, "no_best_temperature": fit.reason, "validation_wrong": wrong})
        measured.append(answers)
    return rows, measured


def _entry(arm: Entry, seeds: tuple[list[dict[str, Any]], list[Answers]], settings: MeasureSettings) -> dict[str, Any]:
    rows, measured = seeds
    mean, sd = means_and_sds([row["figures"] for row in rows])
    return {
        "arm": str(arm["name"]),
        "title": str(arm["title"]),
        "baseline": str(arm["baseline"]),
        "seeds": [{**row, "figures": rounded(row["figures"])} for row in rows],
        "mean": mean,
        "sd": sd,
        "reliability": pooled_diagram(measured, settings.bins),
    }


def _with_differences(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by_name = {entry["arm"]: entry for entry in entries}
    for entry in entries:
        baseline = by_name.get(entry["baseline"])
        entry["difference"] = None if baseline is None or baseline is entry else _differences(baseline, entry)
    return entries


def _differences(baseline: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """Compares two arms seed by seed, lower being better for all but top-1; ``None`` without a common seed."""
    before, after = ({row["seed"]: row["figures"] for row in side["seeds"]} for side in (baseline, entry))
    common = sorted(before.keys() & after.keys())
    if not common:
        return None
    found = {}
    for name in (name for name in COMPARED if name in baseline["mean"]):
        pairs = compare_pairs(*([side[seed][name] for seed in common] for side in (before, after)))
        found[name] = _plain(dataclasses.asdict(pairs))
    return found


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    def short(value: Any) -> Any:
        if isinstance(value, Sequence):
            return [short(each) for each in value]
        return round(value, DECIMALS) if isinstance(value, float) else value

    return {key: short(value) for key, value in values.items()}
