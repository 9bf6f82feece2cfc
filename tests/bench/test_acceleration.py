"""Precision, parts of batches, compilation: from the command line to the run and its identity."""

from __future__ import annotations

import json

import pytest

from tmkd_plugin.bench.arms import ArmSpec
from tmkd_plugin.bench.cell import acceleration_of
from tmkd_plugin.bench.configuration import configure
from tmkd_plugin.bench.run_record import ACCELERATION, identity_of
from tmkd_plugin.cli import main
from tmkd_plugin.training.acceleration import Acceleration

GIVEN = {"teacher_batch": 4,
    "precision": "bf16", "accumulation_steps": 2, "clip_norm": 1.5, "compile": "eager", "channels_last": True,
    "sync_batch_norm": True,
}  # fmt: skip


def identity(**flags) -> dict:
    configuration = configure({"dataset": "digits", **flags}, {})
    return identity_of(configuration, ArmSpec("kd"), 0, dataset={"name": "digits"}, teacher_sha256="f", text=None)


def test_the_configuration_gives_the_acceleration():
    assert acceleration_of(configure({"dataset": "digits"}, {}).experiment) == Acceleration()
    assert acceleration_of(configure({"dataset": "digits", **GIVEN}, {}).experiment) == Acceleration(**GIVEN)
    assert set(GIVEN) == set(ACCELERATION)


@pytest.mark.parametrize("key", ACCELERATION)
def test_each_value_that_is_on_is_part_of_a_runs_identity(key):
    assert identity(**{key: GIVEN[key]}) == {**identity(), key: GIVEN[key]}


def test_values_that_are_off_leave_the_identity_of_earlier_runs_as_it_was():
    assert not set(ACCELERATION) & set(identity())


def test_a_teacher_sees_a_few_images_at_a_time(tiny_bench, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*tiny_bench, "--seeds", "1", "--out", str(whole)]) == 0
    assert main([*tiny_bench, "--seeds", "1", "--teacher-batch", "5", "--out", str(parts)]) == 0
    losses = [
        json.loads((out / "kd+tmkd" / "seed0" / "history.jsonl").read_text())["losses"]["loss"]
        for out in (whole, parts)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert json.loads((parts / "kd" / "seed0" / "run.json").read_text())["identity"]["teacher_batch"] == 5


def test_a_comparison_runs_with_all_that_a_cpu_can_do(tiny_bench, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--precision", "bf16", "--accumulation-steps", "2", "--clip-norm", "1.5", "--compile", "eager"]
    assert main([*tiny_bench, "--seeds", "1", "--out", str(out), *words]) == 0
    config = json.loads((out / "results.json").read_text())["config"]
    assert {key: config[key]["value"] for key in ACCELERATION} == {
        **GIVEN,
        "channels_last": False,
        "sync_batch_norm": False,
        "teacher_batch": None,
    }
    record = json.loads((out / "kd+tmkd" / "seed0" / "run.json").read_text())
    assert record["identity"]["precision"] == "bf16"
    capsys.readouterr()
    assert main([*tiny_bench, "--seeds", "1", "--out", str(out)]) == 2
    assert "precision: there 'bf16', now 'fp32'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--teacher-batch", "4", "--compile", "eager"], "teacher_batch and compile exclude each other"),
        (["--precision", "fp16"], "precision=fp16 needs a GPU, but device=cpu"),
        (["--channels-last"], "channels_last is for GPUs"),
        (["--sync-batch-norm"], "sync_batch_norm is for GPUs"),
        (["--compile", "indctor"], "Did you mean 'inductor'?"),
        (["--clip-norm", "-1"], "clip_norm"),
        (["--accumulation-steps", "0"], "accumulation"),
    ],
)
def test_what_can_not_be_used_is_refused_before_anything_is_trained(words, message, tiny_bench, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*tiny_bench, "--out", str(out), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (out / "kd").exists()
