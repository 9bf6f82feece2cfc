"""The file ``teacher-report.json``: its name, its version, and how it is read where it may be missing, old or damaged."""

from __future__ import annotations

from typing import Any

from tmkd_plugin.bench.figures.finished_run import FinishedRun
from tmkd_plugin.bench.output import RESULTS
from tmkd_plugin.bench.results_file import check_version, read_json
from tmkd_plugin.errors import InputError
from tmkd_plugin.training.files import sha256_of_file

FOLDER, DATA, DOCUMENT = "teacher-report", "teacher-report.json", "teacher-report.md"
SCHEMA_VERSION = 1
_NEEDED = ("dataset", "networks", "split", "images", "bins", "confidence", "teachers", "students", "notices")


def read_teacher_report(run: FinishedRun) -> dict[str, Any] | None:
    """Returns the teacher report of a comparison, ``None`` where there is none.

    Raises:
        InputError: It can't be read, is of a newer version, or of another state of the comparison.
    """
    path = run.folder / FOLDER / DATA
    if not path.exists():
        return None
    report = read_json(path, "teacher report")
    check_version(report, SCHEMA_VERSION, path, "teacher report")
    missing = [key for key in _NEEDED if key not in report]
    if missing:
        raise InputError(
            f"The teacher report {path} has no {', '.join(missing)}: `tmkd teacher-report` makes it again."
        )
    if report.get("results_sha256") != sha256_of_file(run.folder / RESULTS):
        raise InputError(
            f"The teacher report {path} is of another state of this comparison: `tmkd teacher-report` makes it again."
        )
    return report
