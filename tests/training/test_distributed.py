"""Two real processes against one: started once by torchrun, with the cases of support/distributed_cases.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import distributed_cases
import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from tmkd_plugin.data import load_dataset
from tmkd_plugin.errors import InputError, RunError
from tmkd_plugin.training import distributed
from tmkd_plugin.training.checkpoint import Checkpoints
from tmkd_plugin.training.distributed import Processes, joined_processes
from tmkd_plugin.training.metrics import evaluate
from tmkd_plugin.training.sharding import sharded_networks, share_sizes

EXACT = 1e-10
CASES = [
    (name, enhanced, size)
    for name in (*distributed_cases.BASELINES, "own form")
    for enhanced in (False, True)
    for size in distributed_cases.BATCHES
    if not (name == "own form" and size == 1)
]


def torchrun(*words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=500, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("processes")
    ended = torchrun(distributed_cases.__file__, str(out))
    assert ended.returncode == 0, ended.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def found(folder) -> dict:
    return json.loads((folder / "found0.json").read_text())


@pytest.mark.parametrize(("name", "enhanced", "size"), CASES)
def test_two_processes_give_the_losses_and_gradients_of_one(found, name, enhanced, size):
    (case,) = [
        case
        for case in found["differences"]
        if (case["name"], case["enhanced"], case["size"]) == (name, enhanced, size)
    ]
    assert case["loss"] < EXACT
    assert case["gradient"] < EXACT
    assert case["scale"] > 1e-3  # or it would show nothing
    assert case["tensors"] == (16 if enhanced else 6)


@pytest.mark.parametrize("kind", ["steps", "clipped", "accumulated", "compiled"])
def test_several_steps_give_the_weights_of_one_process(found, kind):
    assert found[kind] < EXACT


def test_dropout_is_drawn_for_the_sample_not_for_the_process(found):
    first, second = (np.array(mask).reshape(2, -1) for mask in found["dropout"])
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first, second)


def test_networks_start_as_those_of_the_first_process(found):
    assert found["start"] == 0


def test_a_distiller_that_looks_at_a_part_is_refused(found):
    assert "the loss differs between the processes" in found["refused"]
    assert "hooks of its own" in found["refused"]


def test_all_processes_have_the_same_figures_and_only_the_first_one_writes(found, folder):
    other = json.loads((folder / "found1.json").read_text())
    assert {**other, "dropout": None} == {**found, "dropout": None}
    assert other["dropout"] == found["dropout"]
    assert not list(folder.glob("*_of_another"))
    assert found["trained"]["count"] == 2


def test_training_together_gives_the_figures_of_training_alone(found, folder):
    alone, together = found["trained"]["alone"], found["trained"]["together"]
    for one, two in zip(alone, together, strict=True):
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-3)
        assert (two["train_top1"], two["val_top1"]) == (one["train_top1"], one["val_top1"])
    weights = [load_file(folder / name / "student_last.safetensors") for name in ("alone0", "together")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-4)


def test_a_stopped_run_goes_on_to_the_same_bits(found, folder):
    assert found["trained"]["resumed"] == found["trained"]["together"]
    for name in (
        "student.safetensors",
        "student_last.safetensors",
        "heads.safetensors",
        "predictions.npz",
        "history.jsonl",
    ):
        assert (folder / "stopped" / name).read_bytes() == (folder / "together" / name).read_bytes(), name


def test_with_batch_norm_what_is_saved_is_what_was_measured(found, folder):
    network = distributed_cases.Net(4, 1)
    network.norm = nn.BatchNorm2d(4)
    dataset = distributed_cases.dataset_of(17)
    predictions = np.load(folder / "batch_norm" / "predictions.npz")
    for name, key in (("student.safetensors", "best_top1"), ("student_last.safetensors", "top1")):
        network.load_state_dict(load_file(folder / "batch_norm" / name))
        scores, logits = evaluate(network, dataset.test, dataset.mean, dataset.std, 11)
        assert scores.top1 == found["trained"][key]
        if key == "best_top1":
            np.testing.assert_allclose(predictions["logits"], logits, rtol=2e-3, atol=2e-3)


def test_a_loss_that_is_not_finite_ends_all_processes_alike(found):
    assert "the loss is" in found["trained"]["diverged"]


def test_another_number_of_processes_is_announced(folder, monkeypatch):
    said = []
    checkpoints = Checkpoints(folder / "new", "a run", every_seconds=0, say=said.append)
    monkeypatch.setattr("tmkd_plugin.training.checkpoint.process_count", lambda: 2)
    checkpoints.save({"weights": torch.zeros(1)}, {})
    monkeypatch.undo()
    assert checkpoints.load() is not None
    assert "begun with processes 2, now 1: the last bits may differ" in said[0]


def test_the_command_trains_in_two_processes(tmp_path):
    out = tmp_path / "out"
    text, classes = tmp_path / "text.npz", load_dataset("digits").class_names
    embeddings = np.random.default_rng(0).normal(size=(3, len(classes), 6)).astype(np.float32)
    np.savez(text, emb=embeddings, names=np.array(classes))
    options = ["--dataset", "digits", "--baseline", "kd", "--text", str(text), "--seeds", "1", "--threads", "1"]
    options += ["--teacher", "resnet8", "--student", "resnet8", "--out", str(out)]
    for value in ("image_size=8", "train_limit=30", "validation_limit=20", "test_limit=20", "training.batch_size=15"):
        options += ["--set", value]
    options += ["--set", "training.epochs=1", "--set", "teacher_training.epochs=1"]
    ended = torchrun("-m", "tmkd_plugin", "bench", *options, environment={"TMKD_CACHE": str(tmp_path / "cache")})
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count("Results: ") == 1
    assert ended.stdout.count("mean +- sd over seeds") == 1
    assert json.loads((out / "results.json").read_text())["arms"][0]["seeds"][0]["best"]["epoch"] == 1
    assert json.loads((out / "timing.json").read_text())["processes"] == 2
    assert all((out / arm / "seed0" / "run.json").exists() for arm in ("kd", "kd+tmkd"))


def test_shares_are_as_equal_as_can_be():
    assert share_sizes(7, 3) == [3, 2, 2]
    assert share_sizes(1, 3) == [1, 0, 0]
    assert sum(share_sizes(101, 8)) == 101


def test_without_torchrun_there_is_one_process():
    with joined_processes() as processes:
        assert processes is None
    holder = nn.Module()
    holder.student = nn.Linear(2, 2)
    with sharded_networks(holder, None):
        assert "forward" not in vars(holder.student)


@pytest.fixture
def pair() -> tuple[Processes, Processes]:
    store = dist.HashStore()
    return Processes(0, 2, 0, store), Processes(1, 2, 1, store)


def test_only_the_first_that_fails_speaks(pair):
    assert [pair[1].speaks_first(), pair[0].speaks_first(), pair[1].speaks_first()] == [True, False, True]


def test_a_failure_of_all_processes_lets_all_go_on(pair):
    others = threading.Thread(target=pair[1].fail_together, args=("the loss is nan",))
    others.start()
    pair[0].fail_together("the loss is nan")
    others.join()


def test_a_failure_of_one_process_ends_the_run(pair, monkeypatch):
    monkeypatch.setattr(distributed, "AGREEMENT_SECONDS", 0.1)
    with pytest.raises(RunError, match="process 1 of 2 failed alone: no memory"):
        pair[1].fail_together("no memory")
    assert pair[1].speaks_first()
    with pytest.raises(RunError, match="another process ended before process 0"):
        pair[0].fail_together("connection closed by peer")
    assert not pair[0].speaks_first()


def test_each_process_takes_the_gpu_with_its_number(pair, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert pair[0].device("cuda") == "cuda:0"
    assert chosen == [0]
    assert pair[1].device("cpu") == "cpu"
    with pytest.raises(InputError, match="Process 1 has no GPU: there are 1"):
        pair[1].device("cuda")
    with pytest.raises(InputError, match="one GPU, but there are 2 processes"):
        pair[0].device("cuda:0")
