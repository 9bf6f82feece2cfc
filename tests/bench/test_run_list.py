"""``tmkd runs``, the lock of a folder, and the log of every epoch."""

from __future__ import annotations

import json
import os

import pytest

from tmkd_plugin.bench.lock import folder_lock, is_held
from tmkd_plugin.cli import main
from tmkd_plugin.errors import InputError


@pytest.fixture(scope="module")
def bench_words(image_folder, text_file):
    options = ["bench", "--dataset", str(image_folder), "--text", str(text_file), "--teacher", "resnet8", "--quiet"]
    options += ["--student", "resnet8", "--threads", "1", "--seeds", "2"]
    for value in ("image_size=16", "training.epochs=2", "teacher_training.epochs=1", "training.batch_size=12"):
        options += ["--set", value]
    return options


@pytest.fixture(scope="module")
def finished(bench_words, cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "finished"
    before = os.environ.get("TMKD_CACHE")
    os.environ["TMKD_CACHE"] = str(cache)
    try:
        assert main([*bench_words, "--tensorboard", "--out", str(out)]) == 0
    finally:
        os.environ.pop("TMKD_CACHE") if before is None else os.environ.update(TMKD_CACHE=before)
    return out


def listed(folder, capsys):
    assert main(["runs", str(folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_epoch_is_logged_with_speed_and_memory(finished):
    lines = [json.loads(line) for line in (finished / "kd+tmkd" / "seed0" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert {"losses", "fusion_weights", "learning_rate", "images_per_second", "peak_memory_gigabytes"} <= set(lines[0])
    assert lines[0]["images_per_second"] > 0
    assert lines[0]["peak_memory_gigabytes"] > 0.01
    history = [json.loads(line) for line in (finished / "kd+tmkd" / "seed0" / "history.jsonl").read_text().splitlines()]
    assert [{key: line[key] for key in history[0]} for line in lines] == history


def test_tensorboard_reads_the_events(finished):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    events = accumulator.EventAccumulator(str(finished / "kd+tmkd" / "seed1" / "events"))
    events.Reload()
    assert {"val_top1", "losses/text_contrast", "fusion_weights/edge"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("losses/loss")] == [1, 2]


def test_states_and_progress(finished, bench_words, cache, monkeypatch, capsys):
    (done,) = listed(finished.parent, capsys)
    assert (done["state"], done["planned"], done["epochs"]) == ("done", 4, 2)
    assert {run["state"] for run in done["runs"]} == {"done"}
    results = json.loads((finished / "results.json").read_text())
    top1 = {run["name"]: run["top1"] for run in done["runs"]}
    assert top1["kd/seed1"] == results["arms"][0]["seeds"][1]["best"]["top1"]

    from tmkd_plugin.training import trainer

    monkeypatch.setenv("TMKD_CACHE", str(cache))
    half, seen = finished.parent / "half", []
    finish = trainer._finish

    def interrupted(*args):
        seen.append(is_held(half))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return finish(*args)

    monkeypatch.setattr(trainer, "_finish", interrupted)
    assert main([*bench_words, "--arms-at-once", "1", "--out", str(half)]) == 130
    assert seen == [True, True]
    assert not is_held(half)
    (stopped,) = listed(half, capsys)
    assert stopped["state"] == "stopped"
    states = {run["name"]: (run["state"], run["epoch"]) for run in stopped["runs"]}
    assert states == {"kd/seed0": ("done", 2), "kd+tmkd/seed0": ("unfinished", 2)}
    assert main(["runs", str(finished.parent)]) == 0
    printed = capsys.readouterr().out
    assert "stopped" in printed
    assert "kd+tmkd/seed0: epoch 2/2" in printed


def test_folders_without_comparisons(tmp_path, capsys):
    assert main(["runs", str(tmp_path)]) == 0
    assert "No comparison lies below" in capsys.readouterr().out
    assert main(["runs", str(tmp_path / "nowhere")]) == 2


def test_a_folder_is_one_processs_at_a_time(tmp_path):
    assert not is_held(tmp_path)
    with folder_lock(tmp_path):
        assert is_held(tmp_path)
        with pytest.raises(InputError, match="Another process is writing to"), folder_lock(tmp_path):
            pass
    with folder_lock(tmp_path):
        pass
