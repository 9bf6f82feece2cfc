"""The command ``tmkd regress``: holds a small comparison against its reference, or records a new one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tmkd_plugin.bench.output import TIMING
from tmkd_plugin.bench.regression.compatibility import check_same_arms, check_same_experiment, surroundings_notice
from tmkd_plugin.bench.regression.measurements import ArmMeasurements
from tmkd_plugin.bench.regression.recording import reference_of, teachers_of
from tmkd_plugin.bench.regression.reference import (
    FEWEST_SEEDS,
    FOLDER,
    Reference,
    load_reference,
    reference_path,
    save_reference,
)
from tmkd_plugin.bench.regression.report import Report, junit_xml, markdown, text_lines
from tmkd_plugin.bench.regression.rules import check_rules, strict_forecasts
from tmkd_plugin.bench.regression.source import Measured, configuration_of, read_comparison, run_anew
from tmkd_plugin.errors import InputError
from tmkd_plugin.seeds import parse_seeds
from tmkd_plugin.settings import check_number
from tmkd_plugin.training.files import write_bytes

PASSED, REGRESSED, RUN_FAILED = 0, 1, 3
DEFAULT_REFERENCE = "digits"
DEFAULT_MARGIN = 1.0
DEFAULT_CHECK_SEEDS = (0, 1, 2)
JOB_PAGE = "GITHUB_STEP_SUMMARY"


@dataclass(frozen=True)
class RegressOptions:
    """What the command line says.

    Attributes:
        reference: Name of a reference that comes with the package, or a file.
        margin: How many points worse than its baseline an enhanced arm may be.
        strict: Whether it has to be shown that it is not worse than that.
        results: The results of a comparison to take instead of running one.
        update: Whether to record a reference instead of checking.
        seeds: Which seeds to run; ``None`` for those of the reference.
        check_seeds: With ``update``: the seeds of later checks.
        out: Folder of the runs; ``None`` for one below ``runs``.
        junit: Where to write JUnit XML.
        summary: Where to write Markdown; ``None`` for GitHub's job page, if there is one.
        threads: Number of CPU threads; ``None`` for the reference's.
        quiet: Whether to print the outcome only.
    """

    reference: str = DEFAULT_REFERENCE
    margin: float = DEFAULT_MARGIN
    strict: bool = False
    results: Path | None = None
    update: bool = False
    seeds: str | None = None
    check_seeds: str | None = None
    out: Path | None = None
    junit: Path | None = None
    summary: Path | None = None
    threads: int | None = None
    quiet: bool = False


def regress(options: RegressOptions, say: Callable[[str], None] = print) -> int:
    """Runs ``tmkd regress`` and returns its exit code: 0, 1 for a regression, 3 if a run failed.

    Args:
        options: What the command line says.
        say: Called with each line for the user.

    Raises:
        InputError: Something that was given can't be used.
        RunError: The small CLIP or a teacher could not be trained.
    """
    _check_options(options)
    return _update(options, say) if options.update else _check(options, say)


def _check(options: RegressOptions, say: Callable[[str], None]) -> int:
    start = time.perf_counter()
    path = reference_path(options.reference)
    reference = load_reference(path)
    seeds = _seeds("--seeds", options.seeds) or tuple(reference.check_seeds)
    configuration = configuration_of(reference, seeds)
    if options.results is None:
        _say_forecasts(reference, options, len(seeds), say)
        threads = options.threads or reference.environment.threads
        measured = run_anew(
            configuration, _folder(options, path), images_of=reference, threads=threads, quiet=options.quiet
        )
    else:
        measured = read_comparison(options.results)
        check_same_experiment(measured.results, configuration, reference)
    check_same_arms(measured.arms, reference)
    arms = [measured.arms[name] for name in reference.arms]
    failed = any(arm.failed for arm in arms)
    report = Report(
        reference=path.stem if path.parent == FOLDER else str(path),
        findings=[] if failed else check_rules(measured.arms, reference, margin=options.margin, strict=options.strict),
        arms=arms,
        notices=_notices(measured, arms, reference),
        seconds=time.perf_counter() - start,
    )
    for line in text_lines(report):
        say(line)
    _write_reports(report, options)
    return RUN_FAILED if failed else REGRESSED if report.failed_rules else PASSED


def _update(options: RegressOptions, say: Callable[[str], None]) -> int:
    path = reference_path(options.reference)
    known = load_reference(path) if path.exists() else None
    if options.results is not None:
        measured = read_comparison(options.results)
    elif known is not None:
        seeds = _seeds("--seeds", options.seeds) or tuple(next(iter(known.arms.values())).top1.values)
        if len(seeds) < FEWEST_SEEDS:
            raise InputError(
                f"--seeds {options.seeds}: a reference takes at least {FEWEST_SEEDS} seeds, got {len(seeds)}."
            )
        threads = options.threads or known.environment.threads
        configuration = configuration_of(known, seeds)
        measured = run_anew(configuration, _folder(options, path), images_of=None, threads=threads, quiet=options.quiet)
    else:
        raise InputError(
            f"There is no reference {path} whose comparison could be run again. Run one with at least {FEWEST_SEEDS} seeds, "
            "such as `tmkd bench --baseline kd --seeds 100-119 --out runs/reference`, and record it with `tmkd regress "
            f"--update --results runs/reference/results.json --reference {path}`."
        )
    if measured.environment is None:
        raise InputError(f"{options.results} has no {TIMING} beside it, which says where the comparison ran.")
    check_seeds = _seeds("--check-seeds", options.check_seeds)
    check_seeds = check_seeds or (tuple(known.check_seeds) if known else DEFAULT_CHECK_SEEDS)
    reference = reference_of(measured.results, measured.arms, measured.environment, check_seeds)
    save_reference(path, reference)
    for arm in reference.arms.values():
        say(
            f"{arm.title}: {arm.top1.mean:.2f} +- {arm.top1.sd:.2f} % over {arm.top1.n} seeds; terms: {', '.join(arm.terms)}"
        )
    say(f"Reference: {path}; a check runs the seeds {', '.join(map(str, check_seeds))}.")
    return PASSED


def _folder(options: RegressOptions, reference: Path) -> Path:
    return options.out or Path("runs") / f"regress-{reference.stem}"


def _say_forecasts(reference: Reference, options: RegressOptions, seeds: int, say: Callable[[str], None]) -> None:
    for needed, sentence in strict_forecasts(reference, options.margin) if options.strict else ():
        more = "" if needed is None or needed <= seeds else f" Give --seeds {needed} for that."
        say(f"strict: {sentence} This check runs {seeds}.{more}")


def _notices(measured: Measured, arms: list[ArmMeasurements], reference: Reference) -> list[str]:
    notices = [surroundings_notice(reference, measured.environment, teachers_of(measured.results))]
    lacking = [
        f"{arm.title}: {term}" for arm in arms for term in reference.arms[arm.name].terms if term not in arm.terms
    ]
    if lacking:
        notices.append(f"Not checked, for the runs have no history of it: {', '.join(lacking)}.")
    shared = sorted({seed for arm in arms for seed in arm.top1 if seed in reference.arms[arm.name].top1.values})
    if shared:
        seeds = ", ".join(map(str, shared))
        notices.append(f"Seeds {seeds} are in the reference too: where nothing has changed, they repeat it.")
    return [notice for notice in notices if notice]


def _write_reports(report: Report, options: RegressOptions) -> None:
    if options.junit is not None:
        _write("--junit", options.junit, junit_xml(report))
    job_page = os.environ.get(JOB_PAGE)
    if options.summary is not None:
        _write("--summary", options.summary, markdown(report).encode())
    elif job_page:
        with Path(job_page).open("a", encoding="utf-8") as file:  # other steps of the job write there too
            file.write(markdown(report) + "\n")


def _write(option: str, path: Path, content: bytes) -> None:
    try:
        write_bytes(path, content)
    except OSError as error:
        raise InputError(f"{option} {path} can't be written: {error}.") from None


def _seeds(option: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return parse_seeds(text)
    except ValueError as error:
        raise InputError(f"{option} {text}: {error}.") from None


def _check_options(options: RegressOptions) -> None:
    check_number("--margin", options.margin, at_least=0)
    if options.results is not None and options.seeds is not None:
        raise InputError("--seeds and --results exclude each other: the results have their seeds.")
    if not options.update:
        if options.check_seeds is not None:
            raise InputError(
                "--check-seeds goes with --update: it says which seeds later checks run. Here it is --seeds."
            )
        return
    if reference_path(options.reference).parent == FOLDER:
        raise InputError(f"--update needs a file to write: give --reference FILE.json, not '{options.reference}'.")
    if options.strict or options.junit is not None or options.summary is not None:
        raise InputError("--update records and checks nothing: leave --strict, --junit and --summary out.")
