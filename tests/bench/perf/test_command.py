"""``tmkd perf``: what it runs, what it leaves, and its exit codes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from tmkd_plugin.bench.perf import command
from tmkd_plugin.bench.perf.command import PARTS, Options, check_parts, run_perf
from tmkd_plugin.bench.perf.figure import judged_figure
from tmkd_plugin.cli import main
from tmkd_plugin.commands import perf
from tmkd_plugin.commands.parser import Parser
from tmkd_plugin.errors import InputError, RunError


@pytest.fixture(autouse=True)
def _same_opencv_threads():
    import cv2

    threads = cv2.getNumThreads()
    yield
    cv2.setNumThreads(threads)


def parsed(*words: str) -> argparse.Namespace:
    parser = Parser(prog="tmkd")
    perf.add_parser(parser.add_subparsers(parser_class=Parser))
    return parser.parse_args(["perf", *words])


def fake_parts(monkeypatch: pytest.MonkeyPatch, values: dict[str, float]) -> list[str]:
    """Lets every part return one figure with the limit 'at most 1'; returns the names of those that ran."""
    ran: list[str] = []

    def measuring(name: str, value: float):
        def measure(conditions):
            ran.append(name)
            return [judged_figure(name, f"figure of {name}", "x", [value] * conditions.rounds(3), "at most", 1)]

        return measure

    monkeypatch.setattr(command, "PARTS", {name: measuring(name, value) for name, value in values.items()})
    return ran


def test_everything_is_measured_by_default_and_kept_limits_give_0(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = fake_parts(monkeypatch, dict.fromkeys(PARTS, 0.9))
    assert parsed("--out", str(tmp_path)).run(parsed("--out", str(tmp_path))) == 0
    assert ran == [name for name in PARTS if name != "gpu"]
    content = json.loads((tmp_path / "perf.json").read_text())
    assert content["passes"] is True
    assert content["machine"]["threads"] == torch.get_num_threads()
    assert {figure["n"] for figure in content["figures"]} == {3}
    assert (tmp_path / "perf.md").exists()
    assert "All 6 limits were kept." in capsys.readouterr().out


def test_a_missed_limit_gives_1_but_not_in_a_quick_trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_parts(monkeypatch, {"views": 0.9, "step": 1.1})
    both = ("views", "step")
    assert run_perf(Options(tmp_path, both)) == 1
    assert run_perf(Options(tmp_path, ("views",))) == 0
    assert run_perf(Options(tmp_path, both, quick=True)) == 0


def test_repeats_and_threads_reach_the_measurements(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_parts(monkeypatch, {"views": 0.9})
    run_perf(Options(tmp_path, ("views",), repeats=7, threads=2))
    content = json.loads((tmp_path / "perf.json").read_text())
    assert content["figures"][0]["n"] == 7
    assert content["machine"]["threads"] == 2


def test_what_was_measured_before_a_part_failed_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_parts(monkeypatch, {"views": 0.9, "step": 1.1})

    def failing(conditions):
        raise RunError("no memory left")

    monkeypatch.setitem(command.PARTS, "step", failing)
    with pytest.raises(RunError, match="no memory left"):
        run_perf(Options(tmp_path, ("views", "step")))
    content = json.loads((tmp_path / "perf.json").read_text())
    assert [figure["section"] for figure in content["figures"]] == ["views"]


def test_the_part_for_gpus_alone_needs_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give --device cuda"):
        run_perf(Options(tmp_path, ("gpu",)))


def test_a_folder_that_can_not_be_written_to_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = fake_parts(monkeypatch, {"views": 0.9})
    file = tmp_path / "perf.json"
    file.write_text("{}")
    for out in (file, file / "inside"):
        assert main(["perf", "--only", "views", "--out", str(out)]) == 2
        assert "Choose another one with --out" in capsys.readouterr().err
    assert ran == []


def test_cpu_time_is_said_and_is_not_for_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_parts(monkeypatch, {"views": 0.9})
    for words, clock in (((), "wall clock"), (("--cpu-time",), "CPU time")):
        arguments = parsed(*words, "--only", "views", "--out", str(tmp_path))
        assert arguments.run(arguments) == 0
        assert json.loads((tmp_path / "perf.json").read_text())["machine"]["clock"] == clock
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="does not count the time of a GPU"):
        run_perf(Options(tmp_path, ("views",), device="cuda", cpu_time=True))


def test_parts_run_in_their_own_order_and_unknown_ones_are_refused() -> None:
    assert check_parts(["lockstep", "startup", "step"]) == ("startup", "step", "lockstep")
    with pytest.raises(InputError, match=r"part of the benchmark 'lockstp'\. Did you mean 'lockstep'"):
        check_parts(["step", "lockstp"])
    with pytest.raises(InputError, match="part of the benchmark ''"):
        parsed("--only", "step,").run(parsed("--only", "step,"))


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda:99", r"this machine has \d+ GPUs"), ("tpu", "no such device"), ("meta", "only cpu, cuda and cuda:N")],
)
def test_a_device_that_is_not_there_is_refused(device: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        run_perf(Options(tmp_path, ("views",), device=device))


def test_a_quick_trial_measures_steps_lockstep_views_and_the_naive_way(tmp_path: Path) -> None:
    arguments = parsed("--quick", "--threads", "1", "--only", "step,lockstep,views,naive", "--out", str(tmp_path))
    assert arguments.run(arguments) == 0
    content = json.loads((tmp_path / "perf.json").read_text())
    assert [figure["section"] for figure in content["figures"]] == ["views"] * 3 + ["step"] * 5 + ["lockstep"] * 7 + [
        "naive"
    ] * 2
    assert all(figure["median"] > 0 for figure in content["figures"] if "own step" not in figure["name"])
    assert sum(figure["passes"] is not None for figure in content["figures"]) == 3
