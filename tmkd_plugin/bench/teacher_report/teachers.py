"""Measures the teachers of a comparison: as they are, fused without labels, and apart from these gathered by the true class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tmkd_plugin.bench.fused_teachers import SINGLE, GatheredTeacher, NamedTeacher
from tmkd_plugin.bench.teacher_report.image_bootstrap import ImageValues, bootstrap_intervals
from tmkd_plugin.bench.teacher_report.measures import (
    BOOTSTRAPPED,
    DECIMALS,
    Figures,
    MeasureSettings,
    means_and_sds,
    non_target_figures,
    plain_figures,
    pooled_diagram,
    rounded,
    scaled_figures,
)
from tmkd_plugin.bench.view_fusion import FusedViews
from tmkd_plugin.calibration import Answers, Floats, answers_of
from tmkd_plugin.calibration_classes import non_target_profiles
from tmkd_plugin.calibration_temperature import fit_temperature
from tmkd_plugin.data.dataset import ImageDataset, Split
from tmkd_plugin.fusion import fuse
from tmkd_plugin.training.metrics import evaluate

BATCH = 250


@dataclass(frozen=True)
class SplitAnswers:
    """What teachers say of a split; the shared teacher runs once for each view, not once for each fusion.

    Args:
        dataset: The images.
        split: Which of them.
    """

    dataset: ImageDataset
    split: Split
    _views: dict[Any, Tensor] = field(default_factory=dict)

    def of(self, network: nn.Module) -> Answers:
        """Returns a classifier's answers; a label-gathered teacher is given the labels."""
        labels = self.split.labels.cpu()
        if isinstance(network, FusedViews):
            per_view = [self._view(network, view) for view in network.views]
            logits = fuse(per_view, network.weights_of(labels))
        else:
            logits = self._evaluate(network)
        return answers_of(logits.numpy(), labels.numpy())

    def _view(self, network: FusedViews, view: str) -> Tensor:
        key = (id(network.teacher), view, None if view == "rgb" else network.view_settings)
        if key not in self._views:
            alone = FusedViews(
                network.teacher, torch.ones(1), (view,), network.mean, network.std, network.view_settings
            )
            self._views[key] = self._evaluate(alone)
        return self._views[key]

    def _evaluate(self, network: nn.Module) -> Tensor:
        return evaluate(network, self.split, self.dataset.mean, self.dataset.std, BATCH)[1]


@dataclass(frozen=True)
class _Group:
    """A teacher with each seed that its fusion comes from."""

    name: str
    title: str
    arm: str | None
    notes: dict[int | None, str]
    networks: dict[int | None, nn.Module]
    uses_labels: bool


def measure_teachers(
    teachers: Sequence[NamedTeacher],
    gathered: Sequence[GatheredTeacher],
    dataset: ImageDataset,
    split: str,
    settings: MeasureSettings,
    similarity: Floats | None,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Returns what ``teacher-report.json`` says of each teacher.

    Args:
        teachers: Those into which no label enters; the first is the single-view teacher.
        gathered: Those whose weights are those of the true class.
        dataset: The images.
        split: ``"test"`` or ``"validation"``.
        settings: How it is measured.
        similarity: Similarity of the class names (K, K), if it is known.
        say: Called with each line for the user.

    Raises:
        RunError: A teacher's logits are NaN or infinite.
    """
    measured = SplitAnswers(dataset, getattr(dataset, split))
    validation = measured if split == "validation" else SplitAnswers(dataset, dataset.validation)
    entries: dict[str, dict[str, Any]] = {}
    values: dict[str, list[ImageValues]] = {}
    single: Floats | None = None
    for group in _groups(teachers, gathered):
        say(f"{group.title}: {'all seeds' if len(group.networks) > 1 else 'one pass'}")
        answers = {seed: measured.of(network) for seed, network in group.networks.items()}
        rows = [
            _row(seed, answers[seed], validation.of(network), settings, similarity, single)
            for seed, network in group.networks.items()
        ]
        if group.name == SINGLE:
            single = non_target_profiles(answers[None])
        figures = [row["figures"] for row in rows]
        mean, sd = means_and_sds(figures)
        key = f"{group.name} {group.arm} {group.uses_labels}"
        values[key] = [ImageValues.of(each, settings) for each in answers.values()]
        entries[key] = {
            "name": group.name,
            "title": group.title,
            "arm": group.arm,
            "uses_labels": group.uses_labels,
            "seeds": [{**row, "figures": rounded(row["figures"]), "note": group.notes[row["seed"]]} for row in rows],
            "mean": mean,
            "sd": sd,
            "reliability": pooled_diagram(list(answers.values()), settings.bins),
        }
    reference = next(iter(entries))
    intervals, differences = bootstrap_intervals(values, reference)
    for key, entry in entries.items():
        entry["ci95"] = intervals[key]
        entry["difference"] = None if key == reference else _differences(entry, entries[reference], differences[key])
    return list(entries.values())


def _groups(teachers: Sequence[NamedTeacher], gathered: Sequence[GatheredTeacher]) -> list[_Group]:
    groups: dict[tuple[str, str | None, bool], _Group] = {}
    for each in teachers:
        group = groups.setdefault((each.name, each.arm, False), _Group(each.name, each.title, each.arm, {}, {}, False))
        group.networks[each.seed], group.notes[each.seed] = each.network, each.note
    for other in gathered:
        group = groups.setdefault(("tmkd", other.arm, True), _Group("tmkd", other.title, other.arm, {}, {}, True))
        group.networks[other.seed] = other.network
        group.notes[other.seed] = "each image has the weights of its true class: the answer enters"
    return list(groups.values())


def _row(
    seed: int | None,
    answers: Answers,
    validation: Answers,
    settings: MeasureSettings,
    similarity: Floats | None,
    single: Floats | None,
) -> dict[str, Any]:
    fit = fit_temperature(validation)
    figures: Figures = {
        **plain_figures(answers, settings),
        **scaled_figures(answers, fit.temperature, settings),
        **non_target_figures(answers, similarity, single),
    }
    wrong = int((~validation.correct).sum())
    return {"seed": seed, "figures": figures, "no_best_temperature": fit.reason, "validation_wrong": wrong}


def _differences(
    entry: Mapping[str, Any], reference: Mapping[str, Any], intervals: Mapping[str, list[float]]
) -> dict[str, Any]:
    return {
        name: {
            "delta": round(entry["mean"][name] - reference["mean"][name], DECIMALS),
            "ci95": intervals[name],
        }
        for name in BOOTSTRAPPED
    }
