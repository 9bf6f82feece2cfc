"""Comparisons whose arms train side by side: the files of each run are those of the run alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tmkd_plugin.baselines import BASELINES
from tmkd_plugin.bench import cell
from tmkd_plugin.cli import main
from tmkd_plugin.training.run_folder import HEADS, HISTORY, PREDICTIONS, STUDENT, STUDENT_LAST

FILES = (STUDENT, STUDENT_LAST, HEADS, PREDICTIONS, HISTORY, "run.json")

FAILING = '''
import torch
from tmkd_plugin.baselines.kd import KD

class Failing(KD):
    """KD whose loss is no number in the second step."""

    done = 0

    def forward(self, images, labels):
        result = super().forward(images, labels)
        self.done += 1
        return result if self.done != 2 else {**result, "loss": result["loss"] * float("nan")}
'''


@pytest.fixture
def groups(monkeypatch) -> list[int]:
    """How many runs were trained side by side, each time."""
    sizes: list[int] = []
    train = cell.train_distillers

    def noted(arms, *args, **kwargs):
        sizes.append(len(arms))
        return train(arms, *args, **kwargs)

    monkeypatch.setattr(cell, "train_distillers", noted)
    return sizes


def files_of(out: Path) -> dict[str, bytes]:
    """The files of every run, by arm/seed/name."""
    return {
        str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob("*/seed*/*")) if path.name in FILES
    }


def test_every_baseline_and_enhancer_has_the_bits_that_it_has_alone(tiny_bench, tmp_path, groups):
    words = [*tiny_bench, "--baseline", "all", "--seeds", "1", "--controls", "--set", "student_alone=true"]
    words += ["--set", "teacher_training.epochs=2"]
    assert main([*words, "--out", str(tmp_path / "together")]) == 0
    assert groups == [len(BASELINES) * 3 + 1 + 3], "ten arms, the RGB-trained and logit KL controls, the student alone"
    groups.clear()
    assert main([*words, "--arms-at-once", "1", "--out", str(tmp_path / "alone")]) == 0
    assert set(groups) == {1}
    groups.clear()
    assert main([*words, "--arms-at-once", "5", "--out", str(tmp_path / "by five")]) == 0
    assert groups == [5, 5, 5, 4]
    together = files_of(tmp_path / "together")
    assert len(together) == len(FILES) * 19
    assert together == files_of(tmp_path / "alone") == files_of(tmp_path / "by five")


ILL_BEHAVED = '''
import torch
from tmkd_plugin.baselines.kd import KD

class Trains(KD):
    """Puts its teacher in training mode for its pass, so that batch norm writes its statistics."""

    def forward(self, images, labels):
        self.teacher.train()
        return super().forward(images, labels)

class Prepares(KD):
    """Scales its teacher's classifier once, and writes into its batch."""

    def __init__(self, student, teacher):
        super().__init__(student, teacher)
        with torch.no_grad():
            teacher.fc.weight.mul_(0.1)

    def forward(self, images, labels):
        images[:, :, 2:6, 2:6] = 0
        return super().forward(images, labels)

class Keeps(KD):
    shares_teacher = True
'''


@pytest.mark.parametrize("arms_at_once", ["auto", "2"])
def test_what_a_users_distiller_does_to_its_teacher_reaches_no_other_arm_and_no_other_seed(
    arms_at_once, tiny_bench, tmp_path, monkeypatch, capsys
):
    (tmp_path / "ill_behaved.py").write_text(ILL_BEHAVED)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = [word for word in tiny_bench if word != "--quiet"]
    words += ["--baseline", "ill_behaved:Trains,ill_behaved:Prepares,ill_behaved:Keeps,kd", "--seeds", "2"]
    assert main([*words, "--arms-at-once", arms_at_once, "--out", str(tmp_path / "together")]) == 0
    said = capsys.readouterr().out
    assert "ill_behaved:Trains, ill_behaved:Prepares: trains on a batch and a teacher of its own" in " ".join(
        said.split()
    )
    assert main([*words, "--arms-at-once", "1", "--out", str(tmp_path / "alone")]) == 0
    assert "of its own" not in capsys.readouterr().out
    together = files_of(tmp_path / "together")
    assert len(together) == len(FILES) * 8 * 2
    assert together == files_of(tmp_path / "alone")


def test_how_many_train_at_once_decides_no_result(tiny_bench, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*tiny_bench, "--seeds", "1", "--out", str(out)]) == 0
    capsys.readouterr()
    words = [word for word in tiny_bench if word != "--quiet"]
    assert main([*words, "--seeds", "1", "--arms-at-once", "1", "--out", str(out)]) == 0
    assert "holds the results of this very comparison" in capsys.readouterr().out


def test_little_memory_makes_small_groups_and_is_said(tiny_bench, tmp_path, groups, monkeypatch, capsys):
    monkeypatch.setattr(cell, "free_bytes", lambda device: 1e8)
    monkeypatch.setattr(cell, "arm_bytes", lambda distiller: 4e7)
    words = [word for word in tiny_bench if word != "--quiet"]
    assert main([*words, "--seeds", "1", "--out", str(tmp_path / "out")]) == 0
    assert groups == [1, 1]
    assert capsys.readouterr().out.count("1 of 2 arms train side by side now: ") == 1
    assert main([*words, "--seeds", "1", "--arms-at-once", "1", "--out", str(tmp_path / "alone")]) == 0
    assert "side by side" not in capsys.readouterr().out


def test_a_run_that_fails_stops_alone(tiny_bench, tmp_path, monkeypatch, capsys):
    (tmp_path / "failing_kd.py").write_text(FAILING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = [*tiny_bench, "--seeds", "1", "--baseline", "kd,failing_kd:Failing,rkd"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 3
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    ended = {arm["name"]: arm["seeds"][0] for arm in results["arms"]}
    failed = {name for name, run in ended.items() if run["best"] is None}
    assert failed == {"failing_kd:Failing", "failing_kd:Failing+tmkd"}
    assert all("the loss is nan" in ended[name]["error"] for name in failed)
    assert "nan" in (tmp_path / "out" / "failing_kd_Failing" / "seed0" / "error.txt").read_text()
    assert main([*tiny_bench, "--seeds", "1", "--baseline", "kd,rkd", "--out", str(tmp_path / "without")]) == 0
    without = files_of(tmp_path / "without")
    assert without
    assert {name: content for name, content in files_of(tmp_path / "out").items() if name in without} == without


def test_arms_at_once_is_a_number_or_auto(tiny_bench, capsys):
    assert main([*tiny_bench, "--arms-at-once", "all"]) == 2
    assert "expected 'auto' or a whole number" in capsys.readouterr().err
    assert main([*tiny_bench, "--set", "arms_at_once=0"]) == 2
    assert "arms_at_once" in capsys.readouterr().err


def test_two_processes_train_side_by_side_with_the_bits_of_one_after_another(tiny_bench, tmp_path):
    (tmp_path / "failing_kd.py").write_text(FAILING)
    words = [*tiny_bench, "--seeds", "1", "--baseline", "kd,failing_kd:Failing"]
    for name, more in (("together", []), ("alone", ["--arms-at-once", "1"])):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += ["-m", "tmkd_plugin", *words, *more, "--out", str(tmp_path / name)]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
        ended = subprocess.run(
            command, capture_output=True, text=True, env=variables, timeout=500, check=False, cwd=tmp_path
        )
        assert "failing_kd" in (tmp_path / name / "results.json").read_text(), ended.stderr[-3000:]
    together = files_of(tmp_path / "together")
    assert sum(name.endswith("run.json") for name in together) == 2, "the two that fail leave no record"
    assert together == files_of(tmp_path / "alone")
