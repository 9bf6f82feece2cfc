"""What is printed and written."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from tmkd_plugin.bench.perf.figure import Figure, judged_figure, plain_figure
from tmkd_plugin.bench.perf.output import Outcome, markdown, table, verdict, write_outcome

MACHINE = {
    "cpu": "A Processor",
    "cores": 2,
    "threads": 1,
    "clock": "wall clock",
    "load": 0.1,
    "device": "cpu",
    "system": "Linux x86_64",
    "python": "3.11.0",
    "torch": "2.9",
    "opencv": "4.8",
    "tmkd": "0.1.0",
}
KEPT = judged_figure("step", "KD + TMKD step / KD step", "x", [1.5, 2.0, 2.5], "at most", [2.0, 2.5, 3.0], "a note")
MISSED = judged_figure("views", "views a second", "x", [0.5], "at least", 0.9)
PLAIN = plain_figure("memory", "peak memory", "MiB", [812.4])


def outcome(*figures: Figure, judges: bool = True) -> Outcome:
    return Outcome(MACHINE, figures, judges, 90.0)


def test_json_holds_machine_values_spread_and_limits(tmp_path: Path) -> None:
    write_outcome(outcome(KEPT, MISSED, PLAIN), tmp_path)
    content = json.loads((tmp_path / "perf.json").read_text())
    assert content["schema_version"] == 1
    assert content["machine"] == MACHINE
    assert content["passes"] is False
    assert content["figures"][0] == {
        "section": "step",
        "name": "KD + TMKD step / KD step",
        "unit": "x",
        "median": 2.0,
        "low": 1.75,
        "high": 2.25,
        "n": 3,
        "rule": "at most",
        "limit": {"median": 2.5, "low": 2.25, "high": 2.75, "n": 3},
        "passes": True,
        "note": "a note",
    }
    assert content["figures"][2]["limit"] is None
    assert content["figures"][2]["passes"] is None


def test_markdown_is_a_table_with_the_machine_above_and_notes_below() -> None:
    lines = markdown(outcome(KEPT, MISSED, PLAIN)).splitlines()
    assert lines[0].startswith("A Processor, 2 cores, 1 threads, wall clock, load 0.1 at the start; torch 2.9")
    assert "| KD + TMKD step / KD step | 2 x | 1.75 to 2.25 | 3 | at most 2.50 | kept |" in lines
    assert "| views a second | 0.500 x |  | 1 | at least 0.900 | MISSED |" in lines
    assert "| peak memory | 812 MiB |  | 1 |  |  |" in lines
    assert lines[-1] == "* KD + TMKD step / KD step: a note."
    shared = markdown(outcome(KEPT, KEPT, PLAIN)).splitlines()
    assert [line for line in shared if line.startswith("*")] == ["* step: a note."]
    columns = {line.count("|") for line in lines if line.startswith("|")}
    assert columns == {7}


def test_the_screen_shows_the_same_rows() -> None:
    console = Console(width=160, color_system=None)
    with console.capture() as captured:
        console.print(table(outcome(KEPT, MISSED)), markup=False)
    shown = captured.get()
    assert "A Processor, 2 cores" in shown
    assert "at most 2.50" in shown
    assert "MISSED" in shown


def test_the_verdict_names_what_was_missed() -> None:
    assert verdict(outcome(KEPT, PLAIN)) == "All 1 limits were kept."
    assert verdict(outcome(KEPT, MISSED)) == "1 of 2 limits were missed: views a second."
    assert verdict(outcome(PLAIN)) == "Nothing that was measured has a limit."


def test_a_quick_trial_judges_nothing(tmp_path: Path) -> None:
    trial = outcome(MISSED, judges=False)
    assert trial.missed == []
    assert "mean nothing" in verdict(trial)
    assert "MISSED" not in markdown(trial)
    assert "no figure here means anything" in markdown(trial)
    write_outcome(trial, tmp_path)
    assert json.loads((tmp_path / "perf.json").read_text())["judges"] is False
