"""The tables of the report, and what the statistics of a difference say beside its interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tmkd_plugin.bench.arms import subtracted
from tmkd_plugin.bench.figures.finished_run import ArmPair, Entry, FinishedRun
from tmkd_plugin.bench.power import power_sentence, spread_of
from tmkd_plugin.bench.resampling import bootstrap_interval, sign_flip_test
from tmkd_plugin.bench.results import METRICS, SELECTIONS
from tmkd_plugin.bench.statistics import PairedComparison, mean_and_sd, verdict
from tmkd_plugin.bench.table import verdict_sentence
from tmkd_plugin.bench.test_set_error import error_parts_of_runs
from tmkd_plugin.errors import InputError
from tmkd_plugin.training.run_folder import PREDICTIONS

GAIN = 0.5
"""Points of top-1 for which the report says how many seeds would resolve them."""


@dataclass(frozen=True)
class ArmRow:
    """An arm in the table; each cell is (mean, standard deviation or ``None``) in percent.

    Attributes:
        title: Of the arm.
        finished: Number of finished seeds.
        failed: Number of failed ones.
        cells: By selection and metric; empty if no seed is finished.
        seconds: Mean wall time of a run; ``None`` where it is not known.
    """

    title: str
    finished: int
    failed: int
    cells: dict[str, dict[str, tuple[float, float | None]]]
    seconds: float | None


@dataclass(frozen=True)
class DifferenceRow:
    """One comparison in the table.

    Attributes:
        title: What is compared with what.
        selection: ``best`` or ``last``.
        entry: The comparison's top-1 in ``results.json``.
        verdict: What its interval shows: ``better``, ``worse`` or ``not resolved ...``.
        sentence: The same in a sentence; empty for the last epoch.
    """

    title: str
    selection: str
    entry: Mapping[str, Any]
    verdict: str
    sentence: str

    @property
    def kind(self) -> str:
        """``better``, ``worse`` or ``open``."""
        return self.verdict if self.verdict in ("better", "worse") else "open"


def arm_rows(run: FinishedRun, timing: Mapping[str, Any]) -> list[ArmRow]:
    """Returns a row for each arm."""
    return [_arm_row(arm, timing) for arm in run.results["arms"]]


def _arm_row(arm: Entry, timing: Mapping[str, Any]) -> ArmRow:
    runs = [run for run in arm["seeds"] if run["best"] is not None]
    cells = {
        selection: {metric: mean_and_sd([run[selection][metric] for run in runs]) for metric in METRICS}
        for selection in SELECTIONS
        if runs
    }
    seconds = list(timing.get("arms", {}).get(arm["name"], {}).values())
    mean_seconds = mean_and_sd(seconds)[0] if seconds else None
    return ArmRow(arm["title"], len(runs), len(arm["seeds"]) - len(runs), cells, mean_seconds)


def difference_rows(run: FinishedRun) -> list[DifferenceRow]:
    """Returns a row for each comparison of top-1 and each choice of the epoch."""
    titles = {arm["name"]: arm["title"] for arm in run.results["arms"]}
    rows = []
    for entry in run.results["comparisons"]:
        if entry["metric"] != "top1":
            continue
        interval = None if entry["ci95"] is None else tuple(entry["ci95"])
        compared = PairedComparison(entry["delta"], entry["sd"], interval, entry["n"], entry["p_value"])
        enhanced, baseline = titles[entry["enhanced"]], titles[entry["baseline"]]
        title = f"{enhanced} \u2212 {subtracted(baseline)}"
        sentence = verdict_sentence(enhanced, baseline, entry) if entry["selection"] == "best" else ""
        rows.append(DifferenceRow(title, entry["selection"], entry, verdict(compared), sentence))
    return rows


def statistics_lines(run: FinishedRun, pair: ArmPair) -> list[str]:
    """Says what else is known of a pair's difference: other tests, the test images' share of the error, seeds needed."""
    before, after = (_top1(arm, pair.seeds) for arm in pair.both)
    differences = [late - early for early, late in zip(before, after, strict=True)]
    test = sign_flip_test(differences)
    lines = [f"Sign-flip test: p = {test.p_value:.3g}{f' ({test.note})' if test.note else ''}."]
    bootstrap = bootstrap_interval(differences)
    if bootstrap is not None:
        lines.append(f"Percentile bootstrap, 95 %: [{bootstrap[0]:+.2f}, {bootstrap[1]:+.2f}].")
    lines += _error_lines(run, pair)
    sd = mean_and_sd(differences)[1]
    if sd:
        what = f"{pair.enhanced['title']} minus {subtracted(pair.baseline['title'])}"
        try:
            lines.append(power_sentence(GAIN, spread_of(sd, len(differences), what), 0.8))
        except InputError as error:  # the spread is too large for any number of seeds
            lines.append(f"{what}: {error}")
    return lines


def _top1(arm: Entry, seeds: list[int]) -> list[float]:
    by_seed = {run["seed"]: run["best"]["top1"] for run in arm["seeds"] if run["best"] is not None}
    return [by_seed[seed] for seed in seeds]


def _error_lines(run: FinishedRun, pair: ArmPair) -> list[str]:
    files = [[run.cell(arm, seed) / PREDICTIONS for seed in pair.seeds] for arm in pair.both]
    try:
        parts = error_parts_of_runs(*files)
    except InputError as error:
        return [f"Sampling error of the test images: not known. {error}"]
    images = f"Other test images would move the difference by ± {parts.test_set_error:.2f} points (standard error)"
    if parts.seed_error is None or parts.both is None:
        return [f"{images}; one seed says nothing of other seeds."]
    return [
        f"{images}, other seeds by ± {parts.seed_error:.2f}, both by ± {parts.both:.2f}. The interval above is for "
        f"other seeds on these {parts.images:,} images."
    ]
