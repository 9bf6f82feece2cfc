"""A small finished comparison, and a call of the command on it."""

from __future__ import annotations

import json

import pytest
from finished_runs import call, make_run

from tmkd_plugin.commands import robustness


@pytest.fixture(scope="session")
def finished(tmp_path_factory, image_folder, text_file, cache):
    return make_run(tmp_path_factory.mktemp("robustness") / "finished", image_folder, text_file, cache)


@pytest.fixture
def measure(finished, cache, monkeypatch, tmp_path):
    """Measures the comparison with the options given; returns the data of its ``robustness.json``."""
    monkeypatch.setenv("TMKD_CACHE", str(cache))

    def run(*words, folder=finished, out=tmp_path / "out"):
        assert call(robustness, str(folder), "--out", str(out), *words) == 0
        return json.loads((out / "robustness.json").read_text())

    return run
