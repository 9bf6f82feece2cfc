"""A run that is stopped anywhere and started again ends in the same bits; a bad checkpoint is refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from tmkd_plugin.baselines.tekap import TeKAP
from tmkd_plugin.enhancer import TMKDEnhancer
from tmkd_plugin.errors import InputError
from tmkd_plugin.randomness import forked_random_state
from tmkd_plugin.training.checkpoint import CHECKPOINT, PREVIOUS, Checkpoints
from tmkd_plugin.training.trainer import train_distiller, train_distillers

STEPS = 4 * 4


class StoppedError(Exception):
    """Stands for whatever ends a process."""


class StoppedAt(nn.Module):
    """A distiller that fails in a step, in the names of the one inside."""

    def __init__(self, inner: nn.Module, step: int) -> None:
        super().__init__()
        self.__dict__["inner"] = inner
        inner.register_forward_pre_hook(self._count)
        self.left = step

    def _count(self, *_):
        self.left -= 1
        if self.left < 0:
            raise StoppedError


def enhanced(small_distiller, dataset):
    """TeKAP draws noise in every step, and so does TMKD: what depends on the count of steps must survive."""
    small = small_distiller(3)
    with forked_random_state(0, "teacher"):
        teacher = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 3))
    distiller = TeKAP(small.student, teacher, seed=1)
    text = torch.randn(3, 3, 8, generator=torch.Generator().manual_seed(0))
    return TMKDEnhancer(
        distiller, ["red", "green", "blue"], text=text, mean=dataset.mean, std=dataset.std, seed=2, input_size=8
    )


def content(folder):
    others = ("checkpoint", "log.jsonl")
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(others)}


@pytest.mark.parametrize("make", ["small", "enhanced"])
def test_a_run_stopped_before_any_step_goes_on_to_the_same_bits(make, small_distiller, dataset, settings, tmp_path):
    def build():
        return small_distiller() if make == "small" else enhanced(small_distiller, dataset)

    whole = train_distiller(build(), dataset, settings, seed=5, folder=tmp_path / "whole")
    for step in range(0, STEPS + 1, 2 if make == "small" else 3):
        folder = tmp_path / f"stopped{step}"
        stopped = build()
        StoppedAt(stopped, step)
        with pytest.raises(StoppedError) if step < STEPS else pytest.MonkeyPatch.context():
            train_distiller(
                stopped, dataset, settings, seed=5, folder=folder, checkpoints=Checkpoints(folder, every_seconds=0)
            )
        again = train_distiller(build(), dataset, settings, seed=5, folder=folder, checkpoints=Checkpoints(folder))
        assert content(folder) == content(tmp_path / "whole"), step
        assert (again.best, again.last, again.history) == (whole.best, whole.last, whole.history)


def test_arms_side_by_side_go_on_from_different_places(small_distiller, dataset, settings, tmp_path):
    train_distiller(small_distiller(1), dataset, settings, seed=0, folder=tmp_path / "alone1")
    train_distiller(small_distiller(2), dataset, settings, seed=0, folder=tmp_path / "alone2")
    folders = {name: tmp_path / name for name in ("one", "two")}
    behind = small_distiller(1)
    StoppedAt(behind, 6)
    kept = {"one": Checkpoints(folders["one"], every_seconds=1e9), "two": Checkpoints(folders["two"], every_seconds=0)}
    with pytest.raises(StoppedError):
        train_distillers(
            {"two": small_distiller(2), "one": behind}, dataset, settings, seed=0, folders=folders, checkpoints=kept
        )
    assert kept["one"].load() is None
    assert kept["two"].load().state["steps_done"] == 3
    arms = {"two": small_distiller(2), "one": small_distiller(1)}
    train_distillers(arms, dataset, settings, seed=0, folders=folders, checkpoints=kept)
    assert content(folders["one"]) == content(tmp_path / "alone1")
    assert content(folders["two"]) == content(tmp_path / "alone2")


def test_a_checkpoint_holds_no_teacher_and_nothing_that_unpickles(small_distiller, dataset, settings, tmp_path):
    stopped = small_distiller()
    StoppedAt(stopped, 6)
    with pytest.raises(StoppedError):
        train_distiller(
            stopped, dataset, settings, seed=0, folder=tmp_path, checkpoints=Checkpoints(tmp_path, every_seconds=0)
        )
    with safe_open(tmp_path / CHECKPOINT, framework="pt") as file:
        names = list(file.keys())
        state = json.loads(file.metadata()["state"])["state"]
    assert not [name for name in names if "teacher" in name]
    assert {"distiller/head.weight", "best_student/0.weight", "optimiser/0/momentum_buffer"} <= set(names)
    assert (state["epoch"], state["steps_done"], len(state["history"])) == (2, 2, 1)


@pytest.fixture
def two(tmp_path):
    """The folder of a run with two checkpoints, of steps 1 and 2."""
    kept = Checkpoints(tmp_path, {"seed": 1}, every_seconds=0)
    for step in (1, 2):
        kept.save({"w": torch.full((40,), float(step))}, {"step": step})
    return tmp_path


def load(folder, identity=None):
    lines = []
    found = Checkpoints(folder, identity or {"seed": 1}, say=lines.append).load()
    return found, lines


def test_the_one_before_is_kept_and_stands_in_for_a_damaged_one(two):
    assert load(two)[0].state == {"step": 2}
    whole = (two / CHECKPOINT).read_bytes()
    for place in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[place] ^= 0x10
        (two / CHECKPOINT).write_bytes(flipped)
        found, lines = load(two)
        if found.state == {"step": 2}:  # the flip fell on a space of the header: nothing has changed
            assert torch.equal(found.tensors["w"], torch.full((40,), 2.0))
            continue
        assert found.state == {"step": 1}, place
        assert len(lines) == 1
        assert "the one before it is used" in lines[0]
    for length in range(0, len(whole), 11):
        (two / CHECKPOINT).write_bytes(whole[:length])
        assert load(two)[0].state == {"step": 1}, length
    (two / PREVIOUS).write_bytes(b"")
    with pytest.raises(InputError, match=r"No checkpoint of .* can be used: .*Delete them"):
        load(two)


def test_a_kill_between_the_two_renames_leaves_the_one_before(two):
    (two / CHECKPOINT).unlink()
    (two / ".checkpoint.safetensors.7.part").write_bytes(b"half a file")
    assert load(two)[0].state == {"step": 1}
    Checkpoints(two).clear()
    assert load(two)[0] is None


def test_another_runs_and_a_newer_versions_checkpoints_are_refused(two, monkeypatch):
    with pytest.raises(InputError, match="is of another run"):
        load(two, {"seed": 2})
    monkeypatch.setattr("tmkd_plugin.training.checkpoint.SCHEMA_VERSION", 99)
    Checkpoints(two, {"seed": 1}).save({}, {})
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"newer version \(schema 99"):
        load(two)


def test_another_number_of_threads_is_announced(two):
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        _, (line,) = load(two)
    finally:
        torch.set_num_threads(threads)
    assert f"threads {threads}, now {threads + 1}" in line


def test_tensors_of_another_distiller_are_refused(small_distiller, dataset, settings, tmp_path):
    kept = Checkpoints(tmp_path, every_seconds=0)
    stopped = small_distiller()
    StoppedAt(stopped, 2)
    with pytest.raises(StoppedError):
        train_distiller(stopped, dataset, settings, seed=0, folder=tmp_path, checkpoints=kept)
    with pytest.raises(InputError, match="other tensors than this distiller"):
        train_distiller(
            enhanced(small_distiller, dataset), dataset, settings, seed=0, folder=tmp_path, checkpoints=kept
        )


def test_a_safetensors_file_of_something_else_is_no_checkpoint(tmp_path):
    save_file({"w": torch.zeros(3)}, tmp_path / CHECKPOINT)
    with pytest.raises(InputError, match="not what its checksum says"):
        Checkpoints(tmp_path).load()


def test_a_distiller_whose_state_json_can_not_hold_trains_without_checkpoints(
    small_distiller, dataset, settings, tmp_path
):
    class Odd(small_distiller):
        def get_extra_state(self):
            return {"set": {1, 2}}

        def set_extra_state(self, state):
            pass

    lines = []
    kept = Checkpoints(tmp_path, every_seconds=0, say=lines.append)
    train_distiller(Odd(), dataset, settings, seed=0, folder=tmp_path, checkpoints=kept)
    assert len(lines) == 1
    assert "extra state is not JSON" in lines[0]
