"""The command ``tmkd teacher-report``: teachers and students of a finished comparison, measured beyond accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmkd_plugin.bench.figures.finished_run import FinishedRun, load_images, read_run
from tmkd_plugin.bench.fused_teachers import TeacherChoice, label_gathered, rebuilder_of, teachers_of
from tmkd_plugin.bench.lock import folder_lock
from tmkd_plugin.bench.output import RESULTS, check_writable
from tmkd_plugin.bench.rebuilding import Rebuilder
from tmkd_plugin.bench.teacher_report.data_file import DATA, DOCUMENT, FOLDER, SCHEMA_VERSION
from tmkd_plugin.bench.teacher_report.document import markdown, print_report
from tmkd_plugin.bench.teacher_report.measures import MeasureSettings
from tmkd_plugin.bench.teacher_report.students import measure_students
from tmkd_plugin.bench.teacher_report.teachers import measure_teachers
from tmkd_plugin.calibration import BINS, CONFIDENT, Floats
from tmkd_plugin.calibration_classes import cosine_similarity
from tmkd_plugin.errors import InputError, unknown_name
from tmkd_plugin.training.files import sha256_of_file, write_bytes, write_json

SPLITS = ("test", "validation")
_WIDTH = 160


@dataclass(frozen=True)
class TeacherReportOptions:
    """What the command line says.

    Attributes:
        folder: The comparison.
        out: Where the files go; ``None`` for ``teacher-report`` in the comparison's folder.
        split: ``"test"`` or ``"validation"``.
        bins: Number of bins of the calibration errors.
        confidence: Probability from which a prediction is confident.
        choice: Which fused teachers; ``None`` for the defaults.
        similarity: Text source of the similarity of class names; ``None`` for that of the run.
        students: Whether to measure the students too.
        data_dir: Where data sets known by name lie; ``None`` for where they lay.
        cache_dir: Where teachers and text teachers are kept; ``None`` for the default.
    """

    folder: Path
    out: Path | None = None
    split: str = "test"
    bins: int = BINS
    confidence: float = CONFIDENT
    choice: TeacherChoice | None = None
    similarity: str | None = None
    students: bool = True
    data_dir: str | None = None
    cache_dir: Path | None = None


def teacher_report(options: TeacherReportOptions) -> int:
    """Measures, writes the files, prints the tables, and returns 0.

    Raises:
        InputError: The comparison, its images or its teacher can't be used, or the files can't be written.
        RunError: A network's logits are NaN or infinite.
    """
    from rich.console import Console

    run = read_run(options.folder)
    out = options.out or run.folder / FOLDER
    console = Console()
    check_writable(out)
    with folder_lock(out):
        report = measure(run, options, lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True))
        write_json(out / DATA, report)
        write_bytes(out / DOCUMENT, markdown(report).encode(errors="replace"))
    print_report(console if console.is_terminal else Console(width=_WIDTH, color_system=None), report)
    print(f"{out / DATA} (also {DOCUMENT})")
    return 0


def measure(run: FinishedRun, options: TeacherReportOptions, say: Callable[[str], None]) -> dict[str, Any]:
    """Returns the data of ``teacher-report.json``: the same run gives the same data.

    Raises:
        InputError: The comparison, its images or its teacher can't be used.
    """
    if options.split not in SPLITS:
        raise unknown_name("split", options.split, SPLITS)
    settings = MeasureSettings(options.bins, options.confidence)
    dataset = load_images(run, options.data_dir)
    rebuilder = rebuilder_of(run, options.cache_dir, dataset=dataset, say=say)
    teachers = teachers_of(run, choice=options.choice, rebuilder=rebuilder)
    gathered = label_gathered(run, choice=options.choice, rebuilder=rebuilder)
    similarity, source, notices = _similarity(rebuilder, options.similarity)
    measured = measure_teachers(teachers, gathered, dataset, options.split, settings, similarity, say)
    students = measure_students(run, dataset, options.split, settings, say) if options.students else []
    if options.split == "validation":
        notices.append(
            "Temperatures are fitted on the very validation images that are reported on: figures after scaling are too good."
        )
    return {
        "schema_version": SCHEMA_VERSION,
        "results_sha256": sha256_of_file(run.folder / RESULTS),
        "dataset": {key: run.results["dataset"][key] for key in ("name", "fingerprint", "class_names")},
        "networks": {role: run.value(role) for role in ("teacher", "student")},
        "split": options.split,
        "images": len(getattr(dataset, options.split).labels),
        "bins": options.bins,
        "confidence": options.confidence,
        "similarity_source": source,
        "teachers": measured,
        "students": students,
        "notices": notices,
    }


def _similarity(rebuilder: Rebuilder, source: str | None) -> tuple[Floats | None, str | None, list[str]]:
    """Returns the similarity of the class names (K, K), where it is from, and what has to be said of that."""
    run = rebuilder.run
    named = source or run.value("text")
    if named is None:
        return None, None, ["This run has no text teacher: name one for the similarity of classes with --similarity."]
    try:
        text = (rebuilder.text if source is None else rebuilder.text_of(source)).for_views(["rgb"])
    except InputError as error:
        if source is not None:
            raise
        return None, None, [f"No similarity of class names: {error}"]
    notices: Sequence[str] = []
    if source is None:
        notices = [
            f"The similarity of classes comes from the run's own text teacher ({named}), which also guides its fused teachers: "
            "agreement with it is no independent evidence; --similarity names another."
        ]
    return cosine_similarity(text.tensor[0].numpy()), str(named), list(notices)
