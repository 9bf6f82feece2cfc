"""A disk that fills up or turns read-only in the middle of a comparison loses nothing that was finished."""

from __future__ import annotations

import errno
import os

import pytest

from tmkd_plugin.cli import main

TIMES = {"log.jsonl", "timing.json", ".lock"}


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in TIMES
    }


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("write", [2, 9, 14, 20])
def test_storage_that_fails_at_the_nth_write(tiny_bench, tmp_path, monkeypatch, capsys, number, write):
    words = [*tiny_bench, "--seeds", "1", "--checkpoint-seconds", "0"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    out, left, flush = tmp_path / "out", [write], os.fsync
    capsys.readouterr()

    def failing(descriptor):
        left[0] -= 1
        if left[0] <= 0:
            raise OSError(number, os.strerror(number), str(out / "somewhere"))
        flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        assert main([*words, "--out", str(out)]) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert os.strerror(number) in error
    assert "give the same command again" in error
    finished = {name: content for name, content in files(out).items() if "checkpoint" not in name}
    records = [name for name in finished if name.endswith("run.json")]
    for record in records:  # what has a record is whole
        folder = record.removesuffix("run.json")
        whole = files(tmp_path / "whole")
        assert {name: content for name, content in finished.items() if name.startswith(folder)} == {
            name: content for name, content in whole.items() if name.startswith(folder)
        }
    assert not list(out.rglob("*.part"))
    assert main([*words, "--out", str(out)]) == 0
    assert files(out) == files(tmp_path / "whole")


def test_finished_results_stay_when_more_can_not_be_written(tiny_bench, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert main([*tiny_bench, "--seeds", "1", "--out", str(out)]) == 0
    before = {name: content for name, content in files(out).items() if "/" in name}

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main([*tiny_bench, "--seeds", "2", "--out", str(out)]) == 3
    assert {name: content for name, content in files(out).items() if "/" in name} == before
    assert main([*tiny_bench, "--seeds", "2", "--out", str(out)]) == 0
