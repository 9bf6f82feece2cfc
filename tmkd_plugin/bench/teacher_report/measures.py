"""What is measured of a classifier: the names, titles and units of all figures, and the figures of some answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tmkd_plugin.bench.statistics import mean_and_sd
from tmkd_plugin.calibration import (
    Answers,
    Floats,
    Reliability,
    adaptive_ece,
    brier,
    confident_shares,
    nll,
    reliability,
    top1,
)
from tmkd_plugin.calibration_classes import non_target_profiles, row_agreement, symmetry

Figures = dict[str, float | None]
PERCENT = 100.0
DECIMALS = 6
SCALED = "_scaled"
"""Ends the names of figures after temperature scaling."""


@dataclass(frozen=True)
class Measure:
    """A figure.

    Attributes:
        name: In ``teacher-report.json``.
        title: In tables.
        decimals: In tables.
    """

    name: str
    title: str
    decimals: int


PLAIN = (
    Measure("top1", "top-1, %", 2),
    Measure("ece", "ECE, %", 2),
    Measure("adaptive_ece", "adaptive ECE, %", 2),
    Measure("nll", "NLL, nats", 4),
    Measure("brier", "Brier score", 4),
    Measure("confident_correct", "confident and right, %", 2),
    Measure("confident_wrong", "confident and wrong, %", 2),
    Measure("unsure", "unsure, %", 2),
)
AFTER = (
    Measure("temperature", "temperature", 3),
    *(Measure(measure.name + SCALED, measure.title, measure.decimals) for measure in PLAIN[1:]),
)
"""After temperature scaling, which changes no prediction."""
NON_TARGET = (
    Measure("semantic_agreement", "agreement with the similarity of class names", 3),
    Measure("symmetry", "symmetry", 3),
    Measure("agreement_with_single", "agreement with the single-view teacher", 3),
)
BOOTSTRAPPED = ("top1", "ece", "nll", "brier", "confident_correct", "confident_wrong", "unsure")


@dataclass(frozen=True)
class MeasureSettings:
    """How it is measured.

    Attributes:
        bins: Number of bins of both calibration errors.
        confidence: Probability from which a prediction is confident.
    """

    bins: int
    confidence: float


def plain_figures(answers: Answers, settings: MeasureSettings) -> Figures:
    """Returns accuracy and calibration; shares and calibration errors in percent."""
    shares = confident_shares(answers, settings.confidence)
    return {
        "top1": PERCENT * top1(answers),
        "ece": PERCENT * reliability(answers, settings.bins).error,
        "adaptive_ece": PERCENT * adaptive_ece(answers, settings.bins),
        "nll": nll(answers),
        "brier": brier(answers),
        "confident_correct": PERCENT * shares.confident_correct,
        "confident_wrong": PERCENT * shares.confident_wrong,
        "unsure": PERCENT * shares.unsure,
    }


def scaled_figures(answers: Answers, temperature: float, settings: MeasureSettings) -> Figures:
    """Returns the temperature, and all figures that it changes, each with ``_scaled`` behind its name."""
    figures = plain_figures(answers.at(temperature), settings)
    scaled = {f"{name}{SCALED}": value for name, value in figures.items() if name != "top1"}
    return {"temperature": temperature, **scaled}


def non_target_figures(answers: Answers, similarity: Floats | None, single: Floats | None) -> Figures:
    """Returns how the probabilities of the classes that an image is not agree with something.

    Args:
        answers: Of the classifier.
        similarity: Similarity of the class names (K, K); ``None`` where it is not known.
        single: Profiles (K, K) of the single-view teacher; ``None`` for that teacher itself.
    """
    profiles = non_target_profiles(answers)
    return {
        "semantic_agreement": None if similarity is None else row_agreement(profiles, similarity),
        "symmetry": symmetry(profiles),
        "agreement_with_single": None if single is None else row_agreement(profiles, single),
    }


def means_and_sds(rows: Sequence[Mapping[str, float | None]]) -> tuple[Figures, Figures]:
    """Returns mean and standard deviation over seeds of every figure; ``None`` where a seed has none, no sd for one seed."""
    means: Figures = {}
    sds: Figures = {}
    for name in rows[0]:
        values = [value for row in rows if (value := row.get(name)) is not None]
        means[name], sds[name] = mean_and_sd(values) if len(values) == len(rows) else (None, None)
    return rounded(means), rounded(sds)


def rounded(figures: Mapping[str, float | None]) -> Figures:
    """Rounds to what is written."""
    return {name: None if value is None else round(value, DECIMALS) for name, value in figures.items()}


def pooled_diagram(answers: Sequence[Answers], bins: int) -> dict[str, list[float | int | None]]:
    """Returns the reliability diagram of all seeds together, as JSON values; a bin without images has no means."""
    import numpy as np

    diagrams: list[Reliability] = [reliability(each, bins) for each in answers]
    counts = np.sum([diagram.counts for diagram in diagrams], axis=0)
    pooled = {}
    for name in ("confidence", "accuracy"):
        sums = np.sum([np.nan_to_num(getattr(each, name)) * each.counts for each in diagrams], axis=0)
        pooled[name] = [
            round(float(total / count), DECIMALS) if count else None for total, count in zip(sums, counts, strict=True)
        ]
    return {"count": [int(count) for count in counts], **pooled}
