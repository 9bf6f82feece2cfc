"""The report's section on calibration: the students from their predictions, the teachers where a teacher report is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tmkd_plugin.bench.figures.drawing import Drawing
from tmkd_plugin.bench.figures.finished_run import ArmPair, Entry, FinishedRun, finished_seeds
from tmkd_plugin.bench.report.reliability_chart import Panel, reliability_chart
from tmkd_plugin.bench.teacher_report.data_file import read_teacher_report
from tmkd_plugin.bench.teacher_report.document import TEACHER, Grid, grids, lines, student_grid
from tmkd_plugin.bench.teacher_report.measures import MeasureSettings
from tmkd_plugin.bench.teacher_report.students import recorded_students
from tmkd_plugin.calibration import BINS, CONFIDENT
from tmkd_plugin.errors import InputError

MOST_PANELS = 6


@dataclass(frozen=True)
class CalibrationContent:
    """The section.

    Attributes:
        students: A reliability diagram for each baseline and its enhanced self.
        table: The students' figures; ``None`` where predictions are missing.
        teachers: The reliability diagrams of the teachers; ``None`` without a teacher report.
        tables: The tables of the teacher report.
        lines: What it says beside them.
        missing: Why something is not shown.
    """

    students: list[Drawing]
    table: Grid | None
    teachers: Drawing | None
    tables: list[Grid]
    lines: list[str]
    missing: list[str]


def calibration_content(run: FinishedRun, pairs: Sequence[ArmPair]) -> CalibrationContent:
    """Gathers the section; what can't be had is left out, and the section says why.

    Args:
        run: The comparison.
        pairs: Baselines and their enhanced selves.
    """
    missing: list[str] = []
    report = None
    try:
        report = read_teacher_report(run)
        shown = None if report is None else (_teacher_chart(report), grids(report), lines(report))
    except InputError as error:
        shown = None
        missing.append(str(error))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:  # a file that was changed by hand
        shown = None
        missing.append(
            f"The teacher report of this run is damaged ({type(error).__name__}): `tmkd teacher-report` makes it again."
        )
    if report is None and not missing:
        missing.append("The teachers are not measured yet, nor temperature scaling: `tmkd teacher-report` does both.")
    drawings, table = _students(run, pairs, missing)
    if shown is None:
        return CalibrationContent(drawings, table, None, [], [], missing)
    # A teacher report that has the students says more of them than their predictions do.
    table = None if report is not None and report["students"] and report["split"] == "test" else table
    return CalibrationContent(drawings, table, *shown, missing)


def _students(run: FinishedRun, pairs: Sequence[ArmPair], missing: list[str]) -> tuple[list[Drawing], Grid | None]:
    try:
        entries = recorded_students(
            run, [arm for arm in run.results["arms"] if finished_seeds(arm)], MeasureSettings(BINS, CONFIDENT)
        )
    except InputError as error:
        missing.append(f"No calibration of the students: {error}")
        return [], None
    by_arm = {entry["arm"]: entry for entry in entries}
    drawings = []
    for number, pair in enumerate(pairs):
        panels = [_panel(by_arm[str(arm["name"])]) for arm in pair.both]
        titles = " and ".join(str(arm["title"]) for arm in pair.both)
        drawings.append(reliability_chart(f"reliability-{number}", f"Reliability of the students: {titles}", panels))
    images = f"{run.results['dataset']['test']:,} test images"
    return drawings, student_grid(entries, images) if entries else None


def _panel(entry: Entry) -> Panel:
    diagram: Mapping[str, Any] = entry["reliability"]
    mean, sd = entry["mean"]["ece"], entry["sd"]["ece"]
    return Panel(
        str(entry["title"]).removeprefix(TEACHER),
        diagram["count"],
        diagram["confidence"],
        diagram["accuracy"],
        mean,
        sd,
        len(entry["seeds"]),
    )


def _teacher_chart(report: Entry) -> Drawing | None:
    # The teacher that is told the answer is no classifier: its reliability means nothing.
    entries = [entry for entry in report["teachers"] if not entry["uses_labels"]][:MOST_PANELS]
    if not entries:
        return None
    return reliability_chart(
        "reliability-teachers", "Reliability of the teachers", [_panel(entry) for entry in entries]
    )
