"""Runs as Ray tasks on a real local cluster: the same results as here, also where a worker is killed."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from tmkd_plugin.cli import main
from tmkd_plugin.errors import InputError

TIMES = {"log.jsonl", "timing.json", ".lock"}


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in TIMES
    }


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield ray
    ray.shutdown()


@pytest.fixture
def here(tiny_bench, tmp_path):
    assert main([*tiny_bench, "--out", str(tmp_path / "here")]) == 0
    return files(tmp_path / "here")


def test_two_workers_give_the_same_files_as_none(cluster, here, tiny_bench, tmp_path, capsys):
    out = tmp_path / "ray"
    talkative = [word for word in tiny_bench if word != "--quiet"]
    assert main([*talkative, "--engine", "ray", "--out", str(out)]) == 0
    assert files(out) == here
    assert "4 runs on Ray: 2 cores" in capsys.readouterr().out
    # What is there is not made again.
    (out / "results.json").unlink()
    assert main([*talkative, "--engine", "ray", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "runs on Ray" not in printed
    assert printed.count("done before") == 4
    assert files(out) == here


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the worker under /proc")
def test_a_killed_workers_run_is_made_again(cluster, here, tiny_bench, tmp_path):
    killed = []

    def kill_a_worker():
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            for process in Path("/proc").glob("[0-9]*"):
                try:  # Ray gives a worker the name of its task
                    busy = b"ray::_task" in (process / "cmdline").read_bytes()
                except OSError:
                    continue
                if busy:
                    os.kill(int(process.name), signal.SIGKILL)
                    killed.append(process.name)
                    return
            time.sleep(0.02)

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    code = main([*tiny_bench, "--engine", "ray", "--out", str(tmp_path / "ray")])
    killer.join()
    assert code == 0
    assert killed
    assert files(tmp_path / "ray") == here


def test_a_run_that_fails_on_a_worker_stops_no_other(cluster, tiny_bench, tmp_path, capsys):
    out = tmp_path / "out"
    options = [*tiny_bench, "--set", "tmkd.contrast_weight=1e39", "--engine", "ray"]
    assert main([*options, "--out", str(out)]) == 3
    results = json.loads((out / "results.json").read_text())
    assert all(run["best"] for run in results["arms"][0]["seeds"])
    assert all("inf" in run["error"] for run in results["arms"][1]["seeds"])
    assert (out / "kd+tmkd" / "seed0" / "error.txt").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus-per-run", "0.5"], "--gpus-per-run needs --engine ray"),
        (["--engine", "rya"], "Did you mean 'ray'"),
        (["--engine", "ray", "--gpus-per-run", "-1"], "must be at least 0"),
    ],
)
def test_unusable_options(tiny_bench, tmp_path, capsys, words, message):
    assert main([*tiny_bench, *words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_ray_that_is_not_installed(monkeypatch):
    from tmkd_plugin.bench.ray_engine import _ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"tmkd-plugin\[ray\]"):
        _ray()
