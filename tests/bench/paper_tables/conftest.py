"""Options of ``tmkd table``, and a bench and a measurement that take no time."""

from __future__ import annotations

import pytest
from fake_bench import FakeBench

from tmkd_plugin.bench.paper_tables.command import TableOptions
from tmkd_plugin.bench.paper_tables.measuring import Measurement
from tmkd_plugin.bench.paper_tables.selection import Selection


@pytest.fixture
def bench() -> FakeBench:
    return FakeBench()


@pytest.fixture
def measured():
    """A measurement of ten seconds and a megabyte a run."""

    def measure(configuration, arms, facts, cache_dir) -> Measurement:
        names = [arm.name for arm in arms]
        return Measurement(60.0, 5_000_000, dict.fromkeys(names, 10.0), dict.fromkeys(names, 1_000_000))

    return measure


@pytest.fixture
def options(tmp_path, monkeypatch):
    """Options of ``tmkd table`` at smoke scale, where no data set is on disk."""
    monkeypatch.setenv("TMKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TMKD_DATA_DIR", raising=False)

    def make(table: int = 2, **changed) -> TableOptions:
        selection = Selection(
            **{key: changed.pop(key) for key in ("pairs", "datasets", "baselines", "controls") if key in changed}
        )
        values = {"scale": "smoke", "flags": {"seeds": "2"}, "assignments": {}, "out": tmp_path / "tables", **changed}
        return TableOptions(table, selection=selection, **values)

    return make
