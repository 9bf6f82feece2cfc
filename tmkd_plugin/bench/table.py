"""The outcome of a comparison as a table and a few sentences, from the data of ``results.json`` and ``timing.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tmkd_plugin.bench.evidence import evidence_sentence
from tmkd_plugin.bench.statistics import PairedComparison, mean_and_sd, verdict

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

VIEW_TITLES = {
    "rgb": "RGB",
    "edge": "edge",
    "high_frequency": "high-frequency",
    "average": "plain average of the views' logits",
}
COLUMNS = (("best", "top1"), ("last", "top1"), ("best", "top5"), ("best", "recall"))


def print_outcome(console: Console, results: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
    """Prints the table, what the teacher does, one sentence for each comparison, and the runs that failed."""
    console.print(_title(results), highlight=False, markup=False, soft_wrap=True)
    console.print(outcome_table(results, timing))
    for line in [*teacher_lines(results), *verdict_lines(results), *failure_lines(results)]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def outcome_table(results: Mapping[str, Any], timing: Mapping[str, Any]) -> Table:
    """Builds the table: a row for each arm, and below each enhanced arm its difference from the baseline."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.ASCII2)
    table.add_column("test set, %", no_wrap=True)
    for head in ("top-1\n(best by val.)", "top-1\n(last epoch)", "top-5", "recall", "n", "seconds\na run"):
        table.add_column(head, justify="right", no_wrap=True)
    arms = results["arms"]
    for position, arm in enumerate(arms):
        table.add_row(arm["title"], *_means(arm), str(len(_finished(arm))), _seconds(arm, timing))
        baseline = next(other for other in arms if other["baseline"] == arm["baseline"])
        entries = _entries(results, baseline["name"], arm["name"])
        if entries:
            n = str(entries["best", "top1"]["n"])
            ends = position + 1 == len(arms) or arms[position + 1]["baseline"] != arm["baseline"]
            table.add_row("  difference\n  95 % interval", *_differences(entries), n, "", end_section=ends)
        elif position + 1 < len(arms) and arms[position + 1]["baseline"] != arm["baseline"]:
            table.add_section()
    return table


def _title(results: Mapping[str, Any]) -> str:
    config, dataset = results["config"], results["dataset"]
    sizes = "/".join(f"{dataset[split]:,}" for split in ("train", "validation", "test"))
    networks = f"{config['teacher']['value']} -> {config['student']['value']}"
    return f"{dataset['name']}: {networks}; {sizes} train/validation/test images; mean +- sd over seeds"


def _finished(arm: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [run for run in arm["seeds"] if run["best"] is not None]


def _means(arm: Mapping[str, Any]) -> list[str]:
    runs = _finished(arm)
    if not runs:
        return ["failed"] + ["" for _ in COLUMNS[1:]]
    cells = []
    for selection, metric in COLUMNS:
        mean, sd = mean_and_sd([run[selection][metric] for run in runs])
        shows_sd = metric == "top1" and sd is not None
        cells.append(f"{mean:.2f} +- {sd:.2f}" if shows_sd else f"{mean:.2f}")
    failed = len(arm["seeds"]) - len(runs)
    if failed:
        cells[0] += f"\n{failed} failed"
    return cells


def _entries(results: Mapping[str, Any], baseline: str, enhanced: str) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {
        (entry["selection"], entry["metric"]): entry
        for entry in results["comparisons"]
        if entry["baseline"] == baseline and entry["enhanced"] == enhanced
    }


def _differences(entries: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[str]:
    cells = []
    for column in COLUMNS:
        entry = entries[column]
        cell = f"{entry['delta']:+.2f}"
        if column[1] == "top1" and entry["ci95"] is not None:
            cell += "\n" + _interval(entry)
        elif column[1] == "top1":
            cell += "\nneeds 2 seeds"
        cells.append(cell)
    return cells


def _interval(entry: Mapping[str, Any]) -> str:
    low, high = entry["ci95"]
    return f"[{low:+.2f}, {high:+.2f}]"


def _seconds(arm: Mapping[str, Any], timing: Mapping[str, Any]) -> str:
    seconds = list(timing.get("arms", {}).get(arm["name"], {}).values())
    return f"{mean_and_sd(seconds)[0]:.1f}" if seconds else ""


_ASKED = {"once": "every training image once, without augmentation", "augmented": "every batch as the teacher sees it"}


def teacher_lines(results: Mapping[str, Any]) -> list[str]:
    """Says for each teacher, view by view, how good it is on the test set, and on the plain average of its logits."""
    lines = []
    for teacher in results["teachers"]:
        top1 = teacher["test_top1"]
        views = ", ".join(f"{title} {top1[name]:.2f}" for name, title in VIEW_TITLES.items() if name in top1)
        lines.append(f"Teacher {teacher['source']}, test top-1 in %: {views}.")
    text = results["text"]
    if text is not None:
        zero_shot = text.get("zero_shot_test_top1")
        lines.append(
            f"Text teacher {text['source']} (text_views: {text['text_views']})"
            + (f", zero-shot test top-1 {zero_shot:.2f} %." if zero_shot is not None else ".")
        )
        asked = " and ".join(_ASKED[name] for name in text.get("clip_images", []))
        if asked:
            trained = ", trained on the training images of this comparison alone" if zero_shot is not None else ""
            lines.append(f"RichKD's CLIP {text['source']}{trained}, was asked about {asked}.")
    return lines


def verdict_lines(results: Mapping[str, Any]) -> list[str]:
    """Says in one sentence for each pair of arms what the interval of the test top-1 shows, and no more than that."""
    titles = {arm["name"]: arm["title"] for arm in results["arms"]}
    lines = []
    for entry in results["comparisons"]:
        if entry["metric"] == "top1" and entry["selection"] == "best":
            lines.append(verdict_sentence(titles[entry["enhanced"]], titles[entry["baseline"]], entry))
            beside = evidence_sentence(entry)
            if beside is not None:
                lines.append(f"  {beside}")
    return lines


def verdict_sentence(enhanced: str, baseline: str, entry: Mapping[str, Any]) -> str:
    """Says in one sentence what the interval of an entry of ``comparisons`` shows, under the titles of its two arms."""
    interval = None if entry["ci95"] is None else tuple(entry["ci95"])
    compared = PairedComparison(entry["delta"], entry["sd"], interval, entry["n"], entry["p_value"])
    words = verdict(compared)
    if compared.ci95 is None:
        return f"{enhanced} against {baseline}: {entry['delta']:+.2f} points; {words}: one seed has no interval."
    found = f"{entry['delta']:+.2f} points, 95 % interval {_interval(entry)}, n = {entry['n']}"
    if words in ("better", "worse"):
        return f"{enhanced} is {words} than {baseline}: {found}."
    return f"{enhanced} against {baseline}: {found}; {words}."


def failure_lines(results: Mapping[str, Any]) -> list[str]:
    """Returns a line for each failed run, after a line that counts them."""
    lines = [
        f"  {arm['title']}, seed {run['seed']}: {run['error']}"
        for arm in results["arms"]
        for run in arm["seeds"]
        if run.get("error")
    ]
    return [f"{len(lines)} run(s) failed:", *lines] if lines else []
