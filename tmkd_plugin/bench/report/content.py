"""Everything that the report says, gathered from a finished comparison; how it looks is the template's business."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tmkd_plugin.bench.figures.command import chosen_seed, drawings
from tmkd_plugin.bench.figures.drawing import Drawing
from tmkd_plugin.bench.figures.finished_run import ArmPair, Entry, FinishedRun, load_images
from tmkd_plugin.bench.output import TIMING
from tmkd_plugin.bench.report.calibration import CalibrationContent, calibration_content
from tmkd_plugin.bench.report.charts import interval_chart, learning_curves
from tmkd_plugin.bench.report.class_changes import Changes, changes_of
from tmkd_plugin.bench.report.outcome import (
    ArmRow,
    DifferenceRow,
    arm_rows,
    difference_rows,
    statistics_lines,
)
from tmkd_plugin.bench.results_file import read_json
from tmkd_plugin.bench.table import failure_lines, teacher_lines
from tmkd_plugin.errors import InputError, TmkdNotice

if TYPE_CHECKING:
    from tmkd_plugin.data.dataset import ImageDataset

MOST_CLASSES = 24
"""Above this many classes, the table of classes shows this many at its ends and folds the rest."""


@dataclass(frozen=True)
class PairContent:
    """A baseline and its enhanced self.

    Attributes:
        title: What is compared.
        key: A name for links.
        verdict: The row of its difference.
        baseline: Title of the baseline.
        enhanced: Title of the enhanced arm.
        statistics: Sentences beside the interval.
        drawings: Learning curves and figures.
        changes: Class by class and image by image; ``None`` where predictions are missing.
        missing: Why something is not shown.
    """

    title: str
    key: str
    verdict: DifferenceRow
    baseline: str
    enhanced: str
    statistics: list[str]
    drawings: list[Drawing]
    changes: Changes | None
    missing: list[str]


@dataclass(frozen=True)
class ConfigSection:
    """A section of the configuration; its rows are (key, value, source)."""

    name: str
    rows: list[tuple[str, str, str]]


@dataclass(frozen=True)
class ReportContent:
    """The report.

    Attributes:
        title: Of the page.
        facts: Label and value of what was run.
        verdicts: The differences that the reader came for, those of the epoch chosen by validation.
        intervals: The chart of all differences; ``None`` if there is none.
        arms: The table of arms.
        differences: The table of differences.
        pairs: What is shown of each baseline and its enhanced self.
        teachers: What the teachers can do.
        notices: What was left out and why, and which runs failed.
        configuration: Every value with its source.
        environment: Label and value.
        version: Of tmkd, which wrote the report.
        controls: The names of the control arms, which say how much of a gain is the enhancer's.
        calibration: How far the probabilities can be trusted.
    """

    title: str
    facts: list[tuple[str, str]]
    verdicts: list[DifferenceRow]
    intervals: Drawing | None
    arms: list[ArmRow]
    differences: list[DifferenceRow]
    pairs: list[PairContent]
    teachers: list[str]
    notices: list[str]
    configuration: list[ConfigSection]
    environment: list[tuple[str, str]]
    version: str
    controls: set[str]
    calibration: CalibrationContent

    def last_epoch(self, row: DifferenceRow) -> DifferenceRow | None:
        """Returns the difference of the same arms after the last epoch."""
        return _of_last_epoch(row, self.differences)

    def against_controls(self, row: DifferenceRow) -> list[DifferenceRow]:
        """Returns the differences of the same enhanced arm from the control arms, epoch chosen by validation."""
        return [
            other
            for other in self.differences
            if other.selection == "best"
            and other.entry["enhanced"] == row.entry["enhanced"]
            and other.entry["baseline"] in self.controls
        ]


def gather(
    run: FinishedRun,
    *,
    seed: int | None = None,
    images: int = 6,
    arms: Sequence[str] | None = None,
    data_dir: str | None = None,
) -> ReportContent:
    """Collects the content of a report.

    What is not there (images, weights, predictions) is left out, and the report says why.

    Args:
        run: The comparison.
        seed: Whose students the figures show; ``None`` for the first that is finished.
        images: How many images have attention maps.
        arms: Two arms to show in detail; ``None`` for every baseline and its enhanced self.
        data_dir: Where data sets known by name lie; ``None`` for where they lay.

    Raises:
        InputError: The arms or the seed that were asked for are not there.
    """
    from tmkd_plugin.version import __version__

    timing = read_json(run.folder / TIMING, "timing file") if (run.folder / TIMING).exists() else {}
    notices = [str(notice) for notice in run.results.get("notices", [])] + failure_lines(run.results)
    pairs = _pairs(run, arms, notices)
    seeds = [chosen_seed(pair, seed) for pair in pairs]
    dataset = None
    if pairs:
        try:
            dataset = load_images(run, data_dir)
        except InputError as error:
            notices.append(f"No pictures, attention maps or features: {error}")
    differences = difference_rows(run)
    best = [row for row in differences if row.selection == "best"]
    contents = [
        _pair_content(run, pair, key, best, dataset, seed=chosen, images=images)
        for key, (pair, chosen) in enumerate(zip(pairs, seeds, strict=True))
    ]
    verdicts = [content.verdict for content in contents] or best
    return ReportContent(
        title=_title(run, pairs),
        facts=_facts(run),
        verdicts=verdicts,
        intervals=_interval_chart(best, differences),
        arms=arm_rows(run, timing),
        differences=differences,
        pairs=contents,
        teachers=teacher_lines(run.results),
        notices=notices,
        configuration=_configuration(run.results["config"]),
        environment=_environment(run, timing),
        version=__version__,
        controls={arm["name"] for arm in run.results["arms"] if arm.get("control")},
        calibration=calibration_content(run, pairs),
    )


def _pairs(run: FinishedRun, arms: Sequence[str] | None, notices: list[str]) -> list[ArmPair]:
    try:
        return run.pairs(arms)
    except InputError as error:
        if arms is not None:
            raise
        notices.append(str(error))
        return []


def _title(run: FinishedRun, pairs: Sequence[ArmPair]) -> str:
    dataset = run.results["dataset"]["name"]
    if len(pairs) == 1:
        return f"{pairs[0].enhanced['title']} against {pairs[0].baseline['title']} on {dataset}"
    return f"{len(pairs)} comparisons on {dataset}" if pairs else f"Distillation on {dataset}"


def _facts(run: FinishedRun) -> list[tuple[str, str]]:
    dataset = run.results["dataset"]
    seeds = sorted({cell["seed"] for arm in run.results["arms"] for cell in arm["seeds"]})
    return [
        ("Data set", f"{dataset['name']}: {len(dataset['class_names']):,} classes, {dataset['image_size']} px"),
        (
            "Training / validation / test images",
            " / ".join(f"{dataset[split]:,}" for split in ("train", "validation", "test")),
        ),
        ("Networks", f"{run.value('teacher')} → {run.value('student')}"),
        ("Seeds", f"{len(seeds)}: {', '.join(map(str, seeds[:12]))}{', …' if len(seeds) > 12 else ''}"),
    ]


def _interval_chart(best: Sequence[DifferenceRow], differences: Sequence[DifferenceRow]) -> Drawing | None:
    rows = [(row, last) for row in best if (last := _of_last_epoch(row, differences)) is not None]
    return interval_chart([(row.title, row.entry, last.entry) for row, last in rows]) if rows else None


def _of_last_epoch(row: DifferenceRow, differences: Sequence[DifferenceRow]) -> DifferenceRow | None:
    arms = (row.entry["baseline"], row.entry["enhanced"])
    found = (other for other in differences if (other.entry["baseline"], other.entry["enhanced"]) == arms)
    return next((other for other in found if other.selection == "last"), None)


def _pair_content(
    run: FinishedRun,
    pair: ArmPair,
    key: int,
    differences: Sequence[DifferenceRow],
    dataset: ImageDataset | None,
    *,
    seed: int,
    images: int,
) -> PairContent:
    names = [str(arm["name"]) for arm in pair.both]
    verdict = next((row for row in differences if [row.entry["baseline"], row.entry["enhanced"]] == names), None)
    if verdict is None:
        raise InputError(
            f"{run.folder} does not compare {names[1]} with {names[0]}; it compares: "
            f"{'; '.join(row.entry['enhanced'] + ' with ' + row.entry['baseline'] for row in differences)}."
        )
    family = [arm for arm in run.results["arms"] if arm["baseline"] == pair.baseline["baseline"]]
    family = [*pair.both, *(arm for arm in family if arm["name"] not in names)]
    shown, missing = _drawings(run, pair, family, dataset, seed=seed, images=images)
    changes = None
    try:
        changes = changes_of(run, pair, dataset)
    except InputError as error:
        missing.append(str(error))
    return PairContent(
        f"{pair.enhanced['title']} against {pair.baseline['title']}",
        f"pair-{key}",
        verdict,
        str(pair.baseline["title"]),
        str(pair.enhanced["title"]),
        statistics_lines(run, pair),
        shown,
        changes,
        list(dict.fromkeys(missing)),
    )


def _drawings(
    run: FinishedRun, pair: ArmPair, family: Sequence[Entry], dataset: ImageDataset | None, *, seed: int, images: int
) -> tuple[list[Drawing], list[str]]:
    """Returns what can be drawn of a pair, and why the rest can't."""
    shown: list[Drawing] = []
    missing: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TmkdNotice)
        try:
            shown.append(learning_curves(run, family, "learning-curves"))
            for drawing in drawings(run, pair, dataset, seed=seed, images=images):
                shown.append(drawing)
        except InputError as error:
            missing.append(str(error))
    return shown, missing + [str(notice.message) for notice in caught if issubclass(notice.category, TmkdNotice)]


def _configuration(config: Mapping[str, Any]) -> list[ConfigSection]:
    """Returns the values outside sections first, then each section."""
    top = [(key, entry) for key, entry in config.items() if _is_value(entry)]
    sections = [(key, entry) for key, entry in config.items() if not _is_value(entry)]
    return [
        ConfigSection("comparison", [_row(key, entry) for key, entry in top]),
        *(ConfigSection(name, [_row(key, entry) for key, entry in rows.items()]) for name, rows in sections if rows),
    ]


def _is_value(entry: Any) -> bool:
    return isinstance(entry, Mapping) and set(entry) == {"value", "source"}


def _row(key: str, entry: Mapping[str, Any]) -> tuple[str, str, str]:
    value = entry["value"]
    return key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), str(entry["source"])


def _environment(run: FinishedRun, timing: Mapping[str, Any]) -> list[tuple[str, str]]:
    labels = {
        "started": "Started", "finished": "Finished", "seconds": "Seconds in all", "machine": "Machine", "host": "Host",
        "python": "Python", "torch": "torch", "threads": "Threads",
    }  # fmt: skip
    rows = [(label, f"{timing[key]:,}" if key == "seconds" else str(timing[key])) for key, label in labels.items()
            if key in timing]  # fmt: skip
    rows.append(("Fingerprint of the images", str(run.results["dataset"]["fingerprint"])))
    rows += [
        (f"Teacher weights, {teacher.get('role', '')}", str(teacher["weights_sha256"]))
        for teacher in run.results.get("teachers", [])
        if teacher.get("weights_sha256")
    ]
    return rows
