"""The arms that are measured do what they are said to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tmkd_plugin.bench.perf.child import Work, run_work
from tmkd_plugin.bench.perf.lockstep import one_after_another, side_by_side
from tmkd_plugin.bench.perf.memory import memory_figures
from tmkd_plugin.bench.perf.naive import make_naive
from tmkd_plugin.bench.perf.photographs import photographs
from tmkd_plugin.bench.perf.scope import BASELINES, QUICK, Conditions, Pair, TextTower
from tmkd_plugin.bench.perf.startup import STARTS, start_process, startup_figures, write_warm_text
from tmkd_plugin.bench.perf.view_rate import MADE, BareLoop
from tmkd_plugin.bench.perf.workload import Workload
from tmkd_plugin.errors import RunError
from tmkd_plugin.text_teacher import text_embeddings
from tmkd_plugin.views import ViewSettings, make_views

PAIR = Pair("resnet14", "resnet8", 16, 4, rounds=1)
CPU = torch.device("cpu")


@pytest.fixture
def workload() -> Workload:
    return Workload(PAIR, 3, CPU)


def passes_of(workload: Workload, run) -> int:
    """Counts how often the teacher's first layer runs, whichever copy of the teacher that is in."""
    counted = []
    first = next(module for module in workload.teacher.modules() if isinstance(module, torch.nn.Conv2d))
    forward = torch.nn.Conv2d.forward

    def noted(layer: torch.nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
        if layer.weight is first.weight:
            counted.append(len(images))
        return forward(layer, images)

    # On the class: a layer whose forward was replaced on the object answers for itself alone.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Conv2d, "forward", noted)
        run()
    return len(counted)


def test_ten_arms_take_twenty_passes_of_the_teacher_alone_and_three_in_lockstep(workload: Workload) -> None:
    arms = workload.arms(BASELINES)
    assert [arm.name for arm in arms[:2]] == ["kd", "kd+tmkd"]
    assert passes_of(workload, lambda: one_after_another(workload, arms)) == 20
    assert passes_of(workload, lambda: side_by_side(workload, arms)) == 3
    assert passes_of(workload, workload.run_teacher) == 1
    assert passes_of(workload, lambda: workload.step(workload.student_alone())) == 0


def test_lockstep_and_one_after_another_train_to_the_same_bits(workload: Workload) -> None:
    alone, together = workload.arms(("kd", "sp")), workload.arms(("kd", "sp"))
    for _ in range(2):
        one_after_another(workload, alone)
        side_by_side(workload, together)
    for one, other in zip(alone, together, strict=True):
        mine, its = one.student.state_dict(), other.student.state_dict()
        assert all(torch.equal(mine[name], its[name]) for name in mine)


def test_the_naive_way_trains_to_the_same_weights(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = workload.arm("kd", enhanced=True)
    naive, kd = (workload.arm("kd", enhanced=enhanced) for enhanced in (True, False))
    encoded, looped, loop = [], [], BareLoop.__call__
    monkeypatch.setattr(BareLoop, "__call__", lambda self, images: looped.append(1) or loop(self, images))
    for arm in (naive, kd):
        make_naive(arm, lambda: encoded.append(1) or workload.text.tensor)
    for _ in range(2):
        for arm in (ours, naive, kd):
            workload.step(arm)
    assert len(encoded) == 2, "once a step, and only where there is a text side"
    assert len(looped) == 2, "once a step, and only where there are views"
    for name, value in ours.student.state_dict().items():
        torch.testing.assert_close(naive.student.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_the_networks_start_in_a_range_in_which_a_trained_teacher_is(workload: Workload) -> None:
    deep = Workload(Pair("resnet50_cifar", "resnet8", 16, 2, rounds=1), 3, CPU)
    for each in (workload, deep):
        logits = each.run_teacher()
        assert logits.isfinite().all()
        assert logits.abs().max() < 100
        assert not each.teacher.training


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [32, 80])
def test_the_bare_loop_makes_the_same_views(size: int, threads: int) -> None:
    import cv2

    images, before = photographs(5, size), cv2.getNumThreads()
    bare = BareLoop(threads, ViewSettings())
    try:
        found = bare(images)
    finally:
        bare.close()
    for mine, its in zip(make_views(images, MADE), found, strict=True):
        torch.testing.assert_close(torch.from_numpy(its), mine, rtol=0, atol=1e-3)
    assert cv2.getNumThreads() == before


def test_photographs_have_edges_and_are_the_same_every_time() -> None:
    images = photographs(4, 64)
    assert (images.dtype, images.shape) == (torch.uint8, (4, 3, 64, 64))
    assert torch.equal(images, photographs(4, 64))
    assert not torch.equal(images[0], images[2])
    from tmkd_plugin.views import canny

    assert 0.01 < canny(images).float().mean() < 0.5
    assert photographs(2, 500).shape == (2, 3, 500, 500)


def test_memory_is_measured_once_for_each_way() -> None:
    asked: list[Work] = []

    def measure(work: Work) -> dict[str, float]:
        asked.append(work)
        return {"before": 500.0, "peak": 812.0}

    figures = memory_figures(Conditions(QUICK, CPU), measure)
    assert [work.kind for work in asked] == ["baseline", "enhanced", "naive", "lockstep"]
    assert {work.threads for work in asked} == {torch.get_num_threads()}
    assert figures[0].value.median == 812
    assert figures[0].note == "312 MiB above the process with everything imported"


@pytest.mark.parametrize(("kind", "names"), [("baseline", ["kd"]), ("enhanced", ["kd+tmkd"]), ("lockstep", [])])
def test_the_work_of_a_memory_measurement(kind: str, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[list[str]] = []

    def side_by_side_too(workload, arms) -> None:
        batches.append([arm.name for arm in arms])
        side_by_side(workload, arms)

    monkeypatch.setattr("tmkd_plugin.bench.perf.child.side_by_side", side_by_side_too)
    found = run_work(Work(kind, PAIR, TextTower(64, 1, 1), 3, torch.get_num_threads(), "cpu"))
    assert found["peak"] >= found["before"] > 10
    assert len(batches) == 2, "the optimiser's state is there from the second step on"
    assert batches[0] == (names or [name for each in BASELINES for name in (each, f"{each}+tmkd")])


def test_a_warm_text_teacher_finds_what_was_put_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_warm_text(tmp_path)
    monkeypatch.setattr("tmkd_plugin.text_teacher.encode_prompts", lambda *_: pytest.fail("nothing was cached"))
    text = text_embeddings([f"class {number}" for number in range(100)], cache_dir=tmp_path)
    assert text.tensor.shape == (3, 100, 512)


def test_the_start_is_measured_with_the_processes_that_it_names() -> None:
    started: list[tuple[str, ...]] = []

    def start(words: tuple[str, ...]) -> str:
        started.append(words)
        return "[0.02, false]"

    figures = startup_figures(Conditions(QUICK, CPU, repeats=2), start)
    assert all(started.count(words) == 3 for words in STARTS.values()), "once before, then in two rounds"
    text = next(figure for figure in figures if figure.name.startswith("a warm text teacher"))
    assert (text.value.median, text.value.n, text.passes) == (20.0, 2, True)


def test_a_process_that_fails_is_an_error_with_its_last_line() -> None:
    assert start_process(("-c", "print('here')")) == "here\n"
    with pytest.raises(RunError, match="no such thing"):
        start_process(("-c", "raise SystemExit('no such thing')"))
