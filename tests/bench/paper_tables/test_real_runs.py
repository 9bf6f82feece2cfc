"""A table over the real bench: tiny networks, a few digits, one epoch."""

from __future__ import annotations

import contextlib
import json

import pytest
import torch
from torch import nn

from tmkd_plugin.batch_memory import MEMORY
from tmkd_plugin.bench.command import run_comparison
from tmkd_plugin.bench.paper_tables import command, measuring
from tmkd_plugin.bench.paper_tables.definitions import load_scales
from tmkd_plugin.bench.paper_tables.execution import finished_results
from tmkd_plugin.bench.paper_tables.measuring import measure
from tmkd_plugin.bench.paper_tables.planning import Request, plan_table
from tmkd_plugin.bench.paper_tables.schema import TableSpec
from tmkd_plugin.errors import InputError

TABLE = {
    "table": 3,
    "title": "Tiny",
    "source": "nowhere",
    "row_headers": ["Dataset"],
    "column_headers": ["Method"],
    "groups": [{"name": "digits", "dataset": "digits", "teacher": "resnet8", "student": "resnet8"}],
    "variants": {"rgb": {"views": ["rgb"]}},
    "rows": [{"id": "digits", "labels": ["digits"], "group": "digits", "paper": [None, None, 50.0, None]}],
    "columns": [
        {"id": "teacher", "labels": ["Teacher"], "arm": "teacher"},
        {"id": "student", "labels": ["Student"], "arm": "student"},
        {"id": "kd", "labels": ["KD"], "arm": "kd"},
        {"id": "ours", "labels": ["Ours"], "arm": "kd+tmkd@rgb", "against": "kd"},
    ],
}


@pytest.fixture
def tiny(monkeypatch):
    """Puts the tiny table in the place of every table, at a scale with digits themselves."""
    spec = TableSpec.model_validate(TABLE)
    monkeypatch.setattr(command, "load_table", lambda number: spec)
    scales = load_scales()
    smoke = scales.scales["smoke"].model_copy(
        update={"settings": scales.scales["smoke"].substituted, "substitute": None}
    )
    monkeypatch.setattr(command, "load_scales", lambda: scales.model_copy(update={"scales": {"smoke": smoke}}))
    return spec


def test_a_table_from_nothing_to_its_files(tiny, options, capsys):
    given = options(3, threads=torch.get_num_threads(), flags={"seeds": "1-1"})
    assert command.make_table(given) == 0
    printed = capsys.readouterr().out
    assert "4 runs, 0 done, 4 missing: about" in printed
    assert "(measured on the data set)" in printed
    data = json.loads((given.out / "table3" / "table3.json").read_text())
    by_column = {cell["column"]: cell for cell in data["cells"]}
    assert all(0 <= cell["mean"] <= 100 for cell in data["cells"])
    assert by_column["ours"]["pairs"] == 1
    # The figures are those of the runs' own records.
    (run,) = (given.out / "runs").glob("*/kd+tmkd@rgb/seed1")
    record = json.loads((run / "run.json").read_text())
    assert by_column["ours"]["values"]["1"] == record["best"]["top1"]
    before = {path: path.read_bytes() for path in (given.out / "table3").glob("table3.*")}
    records = sorted((path, path.stat().st_mtime_ns) for path in (given.out / "runs").rglob("run.json"))
    assert len(records) == 4
    # A comparison whose results are gone is put together from its runs.
    for results in given.out.rglob("results.json"):
        results.unlink()
    assert command.make_table(given) == 0
    assert {path: path.read_bytes() for path in before} == before
    assert records == sorted((path, path.stat().st_mtime_ns) for path in (given.out / "runs").rglob("run.json"))


def test_measured_bytes_are_those_on_disk(tiny, options, tmp_path):
    scales = command.load_scales()
    request = Request("smoke", tmp_path / "out", {"seeds": [0]}, {}, lambda dataset, settings: None)
    (planned,) = plan_table(tiny, scales, scales.scales["smoke"], request)
    found = measure(planned.comparisons[0].configuration, planned.arms, None, tmp_path / "cache")
    assert set(found.run_seconds) == {"student", "kd", "kd+tmkd", "kd+tmkd@rgb"}
    assert all(seconds > 0 for seconds in found.run_seconds.values())
    assert found.teacher_seconds > 0
    assert finished_results(planned.comparisons[0]) is None
    run_comparison(planned.comparisons[0].configuration, planned.comparisons[0].out, runs=planned.runs, quiet=True)
    assert finished_results(planned.comparisons[0]) is not None
    for arm in planned.arms:
        folder = planned.runs / arm.folder / "seed0"
        written = sum(path.stat().st_size for path in folder.iterdir())
        assert written == pytest.approx(found.run_bytes[arm.name], rel=0.1)


@pytest.fixture
def measured_teachers(tiny, tmp_path, monkeypatch):
    """Measures the tiny table with settings of one's own; calls a function with the teachers of its arms as they train."""

    def run(look, **assignments):
        @contextlib.contextmanager
        def training(distillers):
            with shared_teachers(distillers) as forget:
                teachers = [distiller.teacher for distiller in distillers if hasattr(distiller, "teacher")]
                if teachers:
                    look(teachers)
                yield forget

        shared_teachers = measuring.shared_teachers
        with monkeypatch.context() as patch:
            patch.setattr(measuring, "shared_teachers", training)
            scales = command.load_scales()
            request = Request("smoke", tmp_path / "out", {"seeds": [0]}, assignments, lambda dataset, settings: None)
            (planned,) = plan_table(tiny, scales, scales.scales["smoke"], request)
            return measure(planned.comparisons[0].configuration, planned.arms, None, tmp_path / "cache")

    return run


def test_arms_are_measured_with_a_shared_teacher_where_the_device_holds_copies(measured_teachers, monkeypatch):
    on_the_device = {}

    def move(module, device):
        def moved(tensor):
            there = tensor if tensor.data_ptr() in on_the_device else tensor.clone()
            return on_the_device.setdefault(there.data_ptr(), there)

        return module._apply(moved)

    monkeypatch.setattr(nn.Module, "to", move)
    shared = []
    measured_teachers(lambda teachers: shared.extend(MEMORY in vars(teacher) for teacher in teachers))
    assert shared == [True] * 3


def test_arms_are_measured_in_the_precision_and_the_parts_in_which_they_train(measured_teachers):
    seen = set()

    def look(teachers):
        for teacher in teachers:
            teacher.conv1.register_forward_hook(lambda module, args, output: seen.add((len(output), output.dtype)))

    measured_teachers(look, teacher_batch=3, precision="bf16")
    assert seen == {(3, torch.bfloat16), (2, torch.bfloat16)}  # of 20
    with pytest.raises(InputError, match="precision=fp16 needs a GPU"):
        measured_teachers(look, precision="fp16")


def test_without_the_data_sets_the_official_sizes_are_taken(tiny, options, tmp_path):
    scales = load_scales()
    request = Request("smoke", tmp_path / "out", {"seeds": [0]}, {}, lambda dataset, settings: None)
    table = tiny.model_copy(update={"groups": (tiny.groups[0].model_copy(update={"dataset": "dtd"}),)})
    (planned,) = plan_table(table, scales, scales.scales["smoke"].model_copy(update={"substitute": None}), request)
    found = measure(planned.comparisons[0].configuration, planned.arms[:1], scales.datasets["dtd"], tmp_path / "cache")
    assert found.on == "random images: The data set 'dtd' is not there"
    # Two files of weights of about 80,000 numbers, and the predictions of the 1,880 test images.
    assert found.run_bytes["student"] > 1880 * (16 + 2 * 47)
