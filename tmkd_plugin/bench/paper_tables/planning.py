"""From a table and a scale to comparisons: which arms are run, with which values, and in which folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmkd_plugin.bench.arms import ArmSpec
from tmkd_plugin.bench.configuration import Configuration, configure
from tmkd_plugin.bench.paper_tables.arms import ENHANCER, ArmName, parse_arm
from tmkd_plugin.bench.paper_tables.messages import first_sentence
from tmkd_plugin.bench.paper_tables.schema import STUDENT_ARM, TEACHER_ARM, Group, ScalesFile, ScaleSpec, TableSpec
from tmkd_plugin.bench.run_record import PLACE
from tmkd_plugin.errors import InputError
from tmkd_plugin.presets import load_preset

DATASET_PLACEHOLDER = "{dataset}"
DEFINED_BY_THE_TABLE = (
    "dataset", "teacher", "student", "baseline", "enhancer", "variants", "controls", "student_alone",
)  # fmt: skip
DECIDES_NO_RESULT = (*PLACE, "seeds")


@dataclass(frozen=True)
class Request:
    """How a table is to be run.

    Attributes:
        scale: The scale's name.
        out: The folder of all tables of this scale.
        flags: Values from options such as ``--seeds`` and ``--data-dir``, by configuration key.
        assignments: Values from ``--set``.
        find_problem: Says why a data set can't be loaded without a download, ``None`` if it can; called as
            ``find_problem(dataset, settings)``.
    """

    scale: str
    out: Path
    flags: Mapping[str, Any]
    assignments: Mapping[str, Any]
    find_problem: Callable[[str, Mapping[str, Any]], str | None]


@dataclass(frozen=True)
class PlannedComparison:
    """One call of the bench: some baselines of a group, all with TMKD or all without.

    Attributes:
        configuration: What is compared.
        arms: What it trains, one run of each for every seed.
        out: The folder of its results.
    """

    configuration: Configuration
    arms: tuple[ArmSpec, ...]
    out: Path


@dataclass(frozen=True)
class PlannedGroup:
    """A group of a table as it will be run.

    Attributes:
        group: The group in the table.
        dataset: The data set that is used.
        substitution: Why another data set than the table's is used; ``None`` if it is the table's.
        flags: The values of the group, but not which arms are run.
        comparisons: What is run.
        runs: The folder of the runs; the tables of a scale share it where all values are the same.
    """

    group: Group
    dataset: str
    substitution: str | None
    flags: Mapping[str, Any]
    comparisons: tuple[PlannedComparison, ...]
    runs: Path

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of every arm."""
        return self.comparisons[0].configuration.experiment.seeds

    @property
    def arms(self) -> list[ArmSpec]:
        """All arms, each once."""
        return list(dict.fromkeys(arm for comparison in self.comparisons for arm in comparison.arms))

    def is_done(self, arm: ArmSpec, seed: int) -> bool:
        """Says whether a run has left its record."""
        return (self.runs / arm.folder / f"seed{seed}" / "run.json").is_file()


def plan_table(table: TableSpec, scales: ScalesFile, scale: ScaleSpec, request: Request) -> list[PlannedGroup]:
    """Plans every group of a table.

    Raises:
        InputError: A value that was given can't be used; nothing has been run.
    """
    for key in DEFINED_BY_THE_TABLE:
        if key in request.assignments:
            raise InputError(
                f"--set {key}: Table {table.table} gives it. Choose with --pairs, --datasets or --baselines."
            )
    return [_plan_group(table, group, scales, scale, request) for group in table.groups]


def _plan_group(table: TableSpec, group: Group, scales: ScalesFile, scale: ScaleSpec, request: Request) -> PlannedGroup:
    flags = _group_flags(group, scale, request)
    substitution = None
    problem = None if scale.substitute is None else request.find_problem(group.dataset, flags)
    if problem is not None:
        names = f"{_title(scales, str(scale.substitute))} in place of {_title(scales, group.dataset)}"
        substitution = f"{names}: {first_sentence(problem)}"
        flags = _merged(flags, {"dataset": scale.substitute}, scale.substituted)
    flags = _with_text(flags)
    key = f"{flags['dataset']}-{group.teacher}-{group.student}-{_digest(scale, request, flags)}"
    folder = request.out / f"table{table.table}" / "comparisons"
    comparisons = []
    for number, (selection, arms) in enumerate(_comparisons(table, group)):
        configuration = configure({**flags, **selection}, request.assignments, scale.preset)
        comparisons.append(PlannedComparison(configuration, tuple(arms), folder / f"{key}-{number}"))
    return PlannedGroup(
        group, str(flags["dataset"]), substitution, flags, tuple(comparisons), request.out / "runs" / key
    )


def _group_flags(group: Group, scale: ScaleSpec, request: Request) -> dict[str, Any]:
    """Returns the values of a group, later ones winning: scale, data set, networks, command line."""
    return _merged(
        {"dataset": group.dataset, "teacher": group.teacher, "student": group.student, "download": scale.download},
        scale.settings,
        scale.datasets.get(group.dataset, {}),
        scale.teachers.get(group.teacher, {}),
        scale.students.get(group.student, {}),
        request.flags,
    )


def _merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            merged[key] = {**merged.get(key, {}), **value} if isinstance(value, Mapping) else value
    return merged


def _with_text(flags: dict[str, Any]) -> dict[str, Any]:
    """Puts the data set's name into the name of the file of text embeddings."""
    text = flags.get("text")
    if isinstance(text, str) and DATASET_PLACEHOLDER in text:
        return {**flags, "text": text.replace(DATASET_PLACEHOLDER, str(flags["dataset"]))}
    return flags


def _digest(scale: ScaleSpec, request: Request, flags: Mapping[str, Any]) -> str:
    """Names everything that decides the results of a group's runs, so that runs with other values lie elsewhere."""
    decides = {key: value for key, value in flags.items() if key not in DECIDES_NO_RESULT}
    given = {key: value for key, value in request.assignments.items() if key not in DECIDES_NO_RESULT}
    content = [load_preset(scale.preset), decides, given]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _title(scales: ScalesFile, dataset: str) -> str:
    return scales.datasets[dataset].title if dataset in scales.datasets else dataset


def arms_of(table: TableSpec, group: Group) -> list[ArmName]:
    """Returns the arms that the cells of a group need, each once, in the order of the table."""
    names: dict[str, None] = {}
    for row in table.rows:
        for column in table.columns:
            if (row.group or column.group or table.group) == group.name:
                for name in (row.against or column.against, row.arm or column.arm):
                    if name is not None and name != TEACHER_ARM:
                        names[name] = None
    return [parse_arm(name) for name in names]


def _comparisons(table: TableSpec, group: Group) -> list[tuple[dict[str, Any], list[ArmSpec]]]:
    """Returns what to tell the bench, and what it will train for that: arms with the same variants go together."""
    arms = arms_of(table, group)
    student = any(arm.name == STUDENT_ARM for arm in arms)
    baselines = list(dict.fromkeys(arm.baseline for arm in arms if arm.baseline is not None))
    enhanced = {arm.baseline for arm in arms if arm.enhanced}
    controlled = any(arm.control for arm in arms)
    variants = {
        baseline: tuple(dict.fromkeys(arm.variant for arm in arms if arm.baseline == baseline and arm.variant))
        for baseline in baselines
    }
    parts: dict[tuple[bool, tuple[str, ...]], list[str]] = {}
    for baseline in baselines:
        parts.setdefault((baseline in enhanced, variants[baseline]), []).append(baseline)
    found: list[tuple[dict[str, Any], list[ArmSpec]]] = []
    for (with_tmkd, varied), names in parts.items():
        selection: dict[str, Any] = {
            "baseline": names,
            "enhancer": [ENHANCER if with_tmkd else "none"],
            "student_alone": student and not found,
            "controls": controlled and with_tmkd,
        }
        if varied:
            selection["variants"] = {name: table.variants[name] for name in varied}
        found.append((selection, list(_trained(selection, [arm for arm in arms if arm.control]))))
    return found


def _trained(selection: Mapping[str, Any], controls: Sequence[ArmName]) -> list[ArmSpec]:
    trained = [ArmSpec(STUDENT_ARM)] if selection["student_alone"] else []
    for baseline in selection["baseline"]:
        trained.append(ArmSpec(baseline))
        if selection["enhancer"] == [ENHANCER]:
            trained.append(ArmSpec(baseline, ENHANCER))
            trained += [ArmSpec(baseline, ENHANCER, variant=name) for name in selection.get("variants", {})]
        trained += [ArmSpec(baseline, control=arm.control) for arm in controls if arm.baseline == baseline]  # type: ignore[arg-type]
    return trained
