"""Real processes that are killed at any moment and started again end in the same bytes as one that was not."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tmkd_plugin.cli import main

KILLS = int(os.environ.get("TMKD_KILLS", "6"))
DETERMINISTIC = {"student.safetensors", "student_last.safetensors", "heads.safetensors", "predictions.npz", "run.json"}
DETERMINISTIC |= {"history.jsonl", "results.json"}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def in_a_process(words: list[str], before=lambda: None) -> int:
    """Runs ``tmkd`` in a process of its own, forked so that imports cost nothing; returns its id."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            before()
            code = main(words)
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    """Waits for a process; returns its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.name in DETERMINISTIC
    }


@pytest.fixture
def words(tiny_bench):
    return [*tiny_bench, "--baseline", "tekap", "--set", "training.epochs=3", "--checkpoint-seconds", "0"]


def test_killed_at_random_moments(words, tmp_path):
    start = time.monotonic()
    assert ended(in_a_process([*words, "--out", str(tmp_path / "whole")])) == 0
    seconds = time.monotonic() - start
    expected = files(tmp_path / "whole")
    assert len(expected) == 4 * 6 + 1
    draw, killed, attempts = random.Random(0), 0, 0
    while killed < KILLS:
        attempts += 1
        out = tmp_path / f"killed{attempts}"
        code = None
        while code != 0:  # killed again and again until one attempt comes through
            child = in_a_process([*words, "--out", str(out)])
            if killed < KILLS:
                time.sleep(draw.uniform(0.02, seconds))
                os.kill(child, signal.SIGKILL)
            code = ended(child)
            assert code in (0, -signal.SIGKILL), f"kill {killed}: exit code {code}"
            killed += code == -signal.SIGKILL
        assert files(out) == expected


@pytest.mark.parametrize("write", [3, 8, 15, 25])
def test_killed_in_the_middle_of_a_write(words, tmp_path, write):
    """The process kills itself when the n-th file has been written aside but not yet renamed."""
    out = tmp_path / "out"
    assert main([*words, "--seeds", "1", "--out", str(tmp_path / "whole")]) == 0

    def kill_at_the_nth_write():
        left = [write]
        flush = os.fsync

        def fsync(number):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            flush(number)

        os.fsync = fsync

    assert ended(in_a_process([*words, "--seeds", "1", "--out", str(out)], kill_at_the_nth_write)) == -signal.SIGKILL
    assert list(out.rglob("*.part"))
    assert main([*words, "--seeds", "1", "--out", str(out)]) == 0
    assert files(out) == files(tmp_path / "whole")
    assert not list(out.rglob("*.part"))
    assert not list(out.rglob("checkpoint*"))
