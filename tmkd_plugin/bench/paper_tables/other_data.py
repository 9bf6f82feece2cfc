"""Where a group's data are not those of the paper: another data set in its place, or a part of it."""

from __future__ import annotations

from dataclasses import dataclass

from tmkd_plugin.bench.paper_tables.outcome import GroupOutcome
from tmkd_plugin.bench.paper_tables.planning import PlannedGroup
from tmkd_plugin.bench.paper_tables.schema import DatasetFacts, ScalesFile


@dataclass(frozen=True)
class OtherData:
    """What to say of a group's data.

    Attributes:
        marker: What stands beside the group in the table.
        warning: What stands above the table.
        note: What stands below it.
    """

    marker: str
    warning: str
    note: str


def other_data(planned: PlannedGroup, outcome: GroupOutcome, scales: ScalesFile) -> OtherData | None:
    """Says how a group's data differ from the official data set; ``None`` if they do not."""
    facts = scales.datasets.get(planned.group.dataset)
    title = facts.title if facts is not None else planned.group.dataset
    if planned.substitution is not None:
        used = scales.datasets.get(planned.dataset)
        name = used.title if used is not None else planned.dataset
        return OtherData(name, f"{name} in place of {title}", planned.substitution)
    if facts is None or not outcome.results:
        return None
    parts = _differences(planned, outcome, facts)
    if not parts:
        return None
    return OtherData(f"part of {title}", f"{title} with {parts[0]}", f"{title} with {' and '.join(parts)}")


def _differences(planned: PlannedGroup, outcome: GroupOutcome, facts: DatasetFacts) -> list[str]:
    data = outcome.results[0]["dataset"]
    experiment = planned.comparisons[0].configuration.experiment
    parts = []
    if len(data["class_names"]) != facts.classes:
        parts.append(f"{len(data['class_names'])} of {facts.classes} classes")
    training, official = data["train"] + data["validation"], facts.train + facts.validation
    if experiment.train_limit is None and experiment.validation_limit is None and training != official:
        parts.append(f"{training:,} of {official:,} training images")
    if experiment.test_limit is None and data["test"] != facts.test:
        parts.append(f"{data['test']:,} of {facts.test:,} test images")
    return parts
