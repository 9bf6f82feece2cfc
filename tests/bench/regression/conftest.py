"""A reference of 20 seeds, recorded by the command itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from regression_cases import REFERENCE_SEEDS, write_comparison

from tmkd_plugin.bench.regression.command import RegressOptions, regress


@pytest.fixture(scope="session")
def recorded(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    results = write_comparison(folder / "runs", REFERENCE_SEEDS, assignments={"training": {"epochs": 2}})
    path = folder / "reference.json"
    assert regress(RegressOptions(reference=str(path), results=results, update=True), say=lambda line: None) == 0
    return path


@pytest.fixture
def reference(recorded, tmp_path, monkeypatch) -> Path:
    """A copy of it, to change at will; outside GitHub."""
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    path = tmp_path / "reference.json"
    path.write_bytes(recorded.read_bytes())
    return path
