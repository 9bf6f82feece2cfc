"""The command ``tmkd robustness``: a finished comparison's networks on corrupted and on shifted images."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmkd_plugin.bench.figures.finished_run import Entry, FinishedRun, load_images, read_run
from tmkd_plugin.bench.lock import folder_lock
from tmkd_plugin.bench.output import RESULTS, check_writable
from tmkd_plugin.bench.robustness.counts import Counts
from tmkd_plugin.bench.robustness.document import document_of
from tmkd_plugin.bench.robustness.images import MeasuredImages, clean_images, shifted_images
from tmkd_plugin.bench.robustness.measuring import Draw, conditions_of, device_of, measure
from tmkd_plugin.bench.robustness.networks import (
    MeasuredNetwork,
    chosen_arms,
    student_networks,
    teacher_networks,
)
from tmkd_plugin.bench.robustness.outcome import (
    SCHEMA_VERSION,
    BySeed,
    Metric,
    Plan,
    accuracies_of,
    arm_entry,
    comparison_entries,
    metrics_of,
    teacher_entry,
)
from tmkd_plugin.bench.robustness.progress import shown_progress
from tmkd_plugin.bench.robustness.table import print_outcome
from tmkd_plugin.corruptions import CORRUPTIONS, SEVERITIES, VERSION
from tmkd_plugin.corruptions.frost_pictures import read_pictures
from tmkd_plugin.corruptions.severities import nearest_side
from tmkd_plugin.errors import InputError, unknown_name
from tmkd_plugin.training.files import sha256_of_file, write_bytes, write_json

if TYPE_CHECKING:
    from tmkd_plugin.data.dataset import ImageDataset

JSON_FILE, DOCUMENT = "robustness.json", "robustness.md"
LOG_WIDTH = 150
PROCEDURAL = "procedural"


@dataclass(frozen=True)
class RobustnessOptions:
    """What the command line says.

    Attributes:
        folder: The comparison.
        out: Where results go; ``None`` for ``robustness`` in the comparison's folder.
        corruptions: Names; ``None`` for all 15.
        severities: From 1 to 5; ``None`` for all.
        shifts: Folders of other images of the same classes.
        arms: Names of arms; ``None`` for all.
        teachers: Whether to measure the teachers too.
        seed: Of the corruptions' draws.
        images: The most test images; ``None`` for all.
        frost_dir: A folder with pictures of frost; ``None`` for procedural ones.
        data_dir: Where data sets known by name lie; ``None`` for where they lay.
        device: Where networks compute.
        prints_json: Whether to print the data of ``robustness.json`` instead of the tables.
        quiet: Whether to print the outcome only.
    """

    folder: Path
    out: Path | None = None
    corruptions: Sequence[str] | None = None
    severities: Sequence[int] | None = None
    shifts: Sequence[Path] = ()
    arms: Sequence[str] | None = None
    teachers: bool = True
    seed: int = 0
    images: int | None = None
    frost_dir: Path | None = None
    data_dir: str | None = None
    device: str = "cpu"
    prints_json: bool = False
    quiet: bool = False


def robustness(options: RobustnessOptions) -> int:
    """Measures, writes ``robustness.json`` and ``robustness.md``, prints the outcome, and returns 0.

    Raises:
        InputError: Something that was given can't be used.
        RunError: A network's logits are NaN or infinite.
    """
    started = time.perf_counter()
    corruptions, severities = _checked_names(options.corruptions), _checked_severities(options.severities)
    run = read_run(options.folder)
    arms = chosen_arms(run, options.arms)
    device = device_of(options.device)
    out = options.out or run.folder / "robustness"
    draw = Draw(options.seed, options.frost_dir)
    frost = _frost_digest(options.frost_dir)
    check_writable(out)
    with folder_lock(out):
        dataset = load_images(run, options.data_dir)
        shifts = _shifts(options.shifts, dataset)
        plan = Plan(clean_images(dataset, options.images), corruptions, severities, shifts)
        students = student_networks(run, arms, dataset, plan.test, device)
        teachers, missing = _teachers(run, dataset, plan.test, device) if options.teachers else ([], [])
        conditions = conditions_of(plan.test, corruptions, severities, shifts)
        say = _silent if options.quiet or options.prints_json else _say
        say(_beginning(plan, len(students), len(teachers)))
        counts = Counts(out, {"test": plan.test.digest, "seed": draw.seed, "frost": frost, "corruptions": VERSION})
        with shown_progress(len(conditions), quiet=options.quiet) as advance:
            measure([*students, *teachers], conditions, dataset, counts, draw=draw, advance=advance)
        results = _results(run, arms, students, teachers, plan, counts)
        results["measurement"] |= {"seed": draw.seed, "frost": frost}
        results["notes"] = [*missing, *_surprises(run, arms, results, plan)]
        write_json(out / JSON_FILE, results)
        write_bytes(out / DOCUMENT, document_of(results).encode(errors="replace"))
    _print(results, options)
    say(f"{out / DOCUMENT}, {JSON_FILE}: done in {time.perf_counter() - started:.0f} s")
    return 0


def _checked_names(names: Sequence[str] | None) -> list[str]:
    """Returns the corruptions in the order of the publication."""
    for name in names or ():
        if name not in CORRUPTIONS:
            raise unknown_name("corruption", name, CORRUPTIONS)
    return [name for name in CORRUPTIONS if names is None or name in names]


def _checked_severities(severities: Sequence[int] | None) -> list[int]:
    for severity in severities or ():
        if severity not in SEVERITIES:
            raise InputError(f"--severities {severity}: expected whole numbers from 1, the weakest, to 5.")
    return [severity for severity in SEVERITIES if severities is None or severity in severities]


def _frost_digest(folder: Path | None) -> str:
    """Returns what the pictures of frost are: ``procedural``, or a hash of the folder's."""
    if folder is None:
        return PROCEDURAL
    digest = hashlib.sha256()
    for picture in read_pictures(folder):
        digest.update(repr(picture.shape).encode() + picture.tobytes())
    return f"pictures with sha256 {digest.hexdigest()}"


def _shifts(folders: Sequence[Path], dataset: ImageDataset) -> list[MeasuredImages]:
    found: list[MeasuredImages] = []
    for folder in folders:
        name = _free_name(folder.expanduser().resolve().name, [other.name for other in found])
        found.append(shifted_images(folder, dataset, name))
    return found


def _free_name(name: str, taken: Sequence[str]) -> str:
    """Returns a name, with a number behind it where it is taken."""
    numbered = (f"{name} ({number})" for number in itertools.count(2))
    return next(free for free in itertools.chain([name], numbered) if free not in taken)


def _teachers(
    run: FinishedRun, dataset: ImageDataset, images: MeasuredImages, device: Any
) -> tuple[list[MeasuredNetwork], list[str]]:
    """Returns the teachers, or none and a line that says why: students can be measured without them."""
    try:
        return teacher_networks(run, dataset, images, device), []
    except InputError as error:
        return [], [f"The teachers are not measured: {error}"]


def _beginning(plan: Plan, students: int, teachers: int) -> str:
    cells = len(plan.corruptions) * len(plan.severities)
    text = (
        f"{len(plan.test):,} test images of {plan.test.side} px, {len(plan.corruptions)} corruptions x "
        f"{len(plan.severities)} severities (published for {nearest_side(plan.test.side)} px): {len(plan.test) * cells:,} "
        f"corrupted images for each of {students} students and {teachers} teachers"
    )
    return text + "".join(f"; {len(shift):,} images of {shift.name}" for shift in plan.shifts)


def _results(
    run: FinishedRun,
    arms: Sequence[Entry],
    students: Sequence[MeasuredNetwork],
    teachers: Sequence[MeasuredNetwork],
    plan: Plan,
    counts: Counts,
) -> dict[str, Any]:
    metrics = metrics_of(plan)
    by_arm = _by_seed(students, plan, counts)
    of_teachers = _by_seed(teachers, plan, counts)
    described = run.results["dataset"]
    return {
        "schema_version": SCHEMA_VERSION,
        "run": {
            "dataset": described["name"],
            "fingerprint": described.get("fingerprint"),
            "teacher": run.value("teacher"),
            "student": run.value("student"),
            "results_sha256": sha256_of_file(run.folder / RESULTS),
        },
        "config": run.results["config"],
        "measurement": {
            "corruptions": list(plan.corruptions),
            "severities": list(plan.severities),
            "parameters_of_side": nearest_side(plan.test.side),
            "image_size": plan.test.side,
            "images": len(plan.test),
            "images_sha256": plan.test.digest,
            "shifts": [
                {
                    "name": shift.name,
                    "images": len(shift),
                    "classes": len(set(shift.labels.tolist())),
                    "sha256": shift.digest,
                }
                for shift in plan.shifts
            ],
        },
        "arms": [arm_entry(arm, by_arm[arm["name"]], by_arm.get(str(arm["baseline"])), metrics) for arm in arms],
        "comparisons": _comparisons(run, by_arm, metrics),
        "teachers": _teacher_entries(teachers, of_teachers, metrics),
    }


def _by_seed(networks: Sequence[MeasuredNetwork], plan: Plan, counts: Counts) -> dict[str, BySeed]:
    found: dict[str, dict[int | None, Any]] = {}
    for network in networks:
        found.setdefault(network.name, {})[network.seed] = accuracies_of(network, plan, counts)
    return dict(found)


def _comparisons(run: FinishedRun, by_arm: Mapping[str, BySeed], metrics: Mapping[str, Metric]) -> list[dict[str, Any]]:
    """Compares the pairs of arms that the comparison itself compares; mCE of both is against the baseline of the second."""
    pairs = dict.fromkeys((entry["baseline"], entry["enhanced"]) for entry in run.results["comparisons"])
    return [
        entry
        for baseline, enhanced in pairs
        if baseline in by_arm and enhanced in by_arm
        for entry in comparison_entries(
            baseline,
            enhanced,
            by_arm[baseline],
            by_arm[enhanced],
            by_arm.get(str(run.arm(enhanced)["baseline"]), {}),
            metrics,
        )
    ]


def _teacher_entries(
    teachers: Sequence[MeasuredNetwork], by_name: Mapping[str, BySeed], metrics: Mapping[str, Metric]
) -> list[dict[str, Any]]:
    if not teachers:
        return []
    reference = by_name[teachers[0].name][teachers[0].seed]
    return [
        teacher_entry([each for each in teachers if each.name == name], by_seed, reference, metrics)
        for name, by_seed in by_name.items()
    ]


def _surprises(run: FinishedRun, arms: Sequence[Entry], results: Mapping[str, Any], plan: Plan) -> list[str]:
    """Returns a line for each student whose clean accuracy is not what its run says, by more than two images."""
    if len(plan.test) < int(run.results["dataset"].get("test", len(plan.test))):
        return []
    lines = []
    for arm, entry in zip(arms, results["arms"], strict=True):
        said = {each["seed"]: each["best"]["top1"] for each in arm["seeds"] if each["best"] is not None}
        for each in entry["seeds"]:
            if abs(each["clean"] - said[each["seed"]]) * len(plan.test) > 2.5 * 100:
                lines.append(
                    f"{entry['title']}, seed {each['seed']}: {each['clean']:.2f} % of the clean test images are right here, "
                    f"and {said[each['seed']]:.2f} % were when it was trained."
                )
    return lines


def _print(results: Mapping[str, Any], options: RobustnessOptions) -> None:
    if options.prints_json:
        print(json.dumps(results, sort_keys=True, indent=2))
        return
    from rich.console import Console

    console = Console()
    # A log file has no width of its own; rich would take 80 and fold the table.
    print_outcome(console if console.is_terminal else Console(width=LOG_WIDTH, color_system=None), results)


def _say(line: str) -> None:
    print(line, flush=True)


def _silent(line: str) -> None:
    """Says nothing."""
