"""What the table and its sentences say of given results."""

from __future__ import annotations

import io

from rich.console import Console

from tmkd_plugin.bench.arms import ArmSpec
from tmkd_plugin.bench.results import Cell, any_failed, results_of
from tmkd_plugin.bench.table import print_outcome, verdict_lines
from tmkd_plugin.training.trainer import EpochScores

KD, TMKD = ArmSpec("kd"), ArmSpec("kd", "tmkd")


def scores(top1: float) -> EpochScores:
    return EpochScores(epoch=3, val_top1=top1, top1=top1, top5=99.0, recall=top1 - 1)


def results(before: list[float | None], after: list[float | None]):
    def cells(values):
        return [
            Cell(seed, error="the loss is nan") if value is None else Cell(seed, scores(value), scores(value - 2))
            for seed, value in enumerate(values)
        ]

    teacher = {"role": "all other arms", "source": "resnet20, trained on digits", "network": "resnet20"}
    teacher["test_top1"] = {"average": 97.0, "edge": 90.0, "high_frequency": 96.0, "rgb": 98.0}
    dataset = {"name": "digits", "train": 698, "validation": 299, "test": 800}
    return results_of(
        {KD: cells(before), TMKD: cells(after)},
        [(KD, TMKD)],
        config={"teacher": {"value": "resnet20"}, "student": {"value": "resnet8"}},
        dataset=dataset,
        teachers=[teacher],
        text={"source": "small_clip", "text_views": "per view", "zero_shot_test_top1": 95.5},
    )


def printed(given, timing=None) -> str:
    console = Console(file=io.StringIO(), width=100)
    print_outcome(console, given, timing or {"arms": {"kd": {"0": 10.0, "1": 20.0}}})
    return console.file.getvalue()


def test_a_gain_is_called_only_if_the_interval_shows_it():
    line, beside = verdict_lines(results([90, 91, 92], [91, 92, 93.2]))
    assert line.startswith("KD + TMKD is better than KD: +1.07 points, 95 % interval [+0.78, +1.35], n = 3")
    assert beside.startswith("  sign-flip p = 0.25 (")
    line, beside = verdict_lines(results([91, 92, 93.2], [90, 91, 92]))
    assert line.startswith("KD + TMKD is worse than KD")
    line, beside = verdict_lines(results([90, 91, 92], [91, 92, 99]))
    assert "not resolved with n = 3" in line
    assert "better" not in line
    line, beside = verdict_lines(results([90], [99]))
    assert "not resolved with n = 1" in line
    assert "better" not in line


def test_the_block_shows_both_selections_the_interval_and_the_teacher():
    text = printed(results([90, 91, 92], [91, 92, 93.2]))
    for part in (
        "digits: resnet20 -> resnet8; 698/299/800",
        "91.00 +- 1.00",  # KD, best epoch
        "89.00 +- 1.00",  # KD, last epoch
        "+1.07",
        "[+0.78, +1.35]",
        "15.0",  # seconds
        "RGB 98.00, edge 90.00, high-frequency 96.00, plain average of the views' logits 97.00",
        "zero-shot test top-1 95.50 %",
    ):
        assert part in text
    assert text.isascii()
    assert max(map(len, text.splitlines()[1:10])) <= 100


def test_failed_runs_are_shown_and_left_out_of_the_pairs():
    found = results([90, 91, 92], [None, 92, 93.2])
    assert any_failed(found)
    assert {entry["n"] for entry in found["comparisons"]} == {2}
    text = printed(found)
    assert "1 failed" in text
    assert "KD + TMKD, seed 0: the loss is nan" in text


def test_an_arm_without_a_finished_run():
    found = results([90, 91], [None, None])
    assert found["comparisons"] == []
    assert "failed" in printed(found)
    assert not any_failed(results([90], [91]))
