"""The report's section on calibration: its numbers, its words, damaged teacher reports, and a browser."""

from __future__ import annotations

import html
import json
import re

import browser
import numpy as np
import pytest
import torch
from finished_runs import call, copied, make_run

from tmkd_plugin.bench.figures.drawing import inline_svg
from tmkd_plugin.bench.figures.finished_run import read_run
from tmkd_plugin.bench.report import calibration
from tmkd_plugin.bench.report.calibration import calibration_content
from tmkd_plugin.bench.report.reliability_chart import Panel, reliability_chart
from tmkd_plugin.bench.teacher_report.students import student_answers
from tmkd_plugin.calibration import answers_of, ece, nll
from tmkd_plugin.commands import report, teacher_report
from tmkd_plugin.training.files import save_predictions

HOSTILE = "<script>window.hacked = 1</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, image_folder, text_file, cache):
    return make_run(tmp_path_factory.mktemp("run") / "finished", image_folder, text_file, cache)


@pytest.fixture(scope="module")
def measured(finished, cache, tmp_path_factory):
    """A run with its teacher report."""
    run = copied(finished, tmp_path_factory.mktemp("measured") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMKD_CACHE", str(cache))
        assert call(teacher_report, str(run)) == 0
    return run


def words_of(page):
    text = page.read_text(encoding="utf-8")
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", text)))


def change_report(run, change):
    path = run / "teacher-report" / "teacher-report.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_students_come_from_their_predictions(finished):
    run = read_run(finished)
    content = calibration_content(run, run.pairs())
    (line,) = content.missing
    assert "`tmkd teacher-report` does both" in line
    assert content.teachers is None
    cells = {row[0]: row for row in content.table.rows}
    for arm in run.pairs()[0].both:
        answers = [answers_of(each.logits, each.labels) for each in (run.predictions(arm, seed) for seed in (0, 1))]
        mean = sum(100 * ece(each) for each in answers) / 2
        assert cells[arm["title"]][2].startswith(f"{mean:.2f} +- ")
        assert cells[arm["title"]][3].startswith(f"{sum(map(nll, answers)) / 2:.4f} +- ")
        assert f"{arm['title']}: ECE {mean:.2f} ±" in content.students[0].alternative
    assert content.table.head == ["", "top-1, %", "ECE, %", "NLL", "n"]


def test_top1_counts_the_classes_from_before_the_rounding_to_float16(finished, tmp_path):
    run = read_run(copied(finished, tmp_path / "run"))
    arm = run.pairs()[0].baseline
    old = run.predictions(arm, 0)
    logits = torch.full((len(old.labels), old.logits.shape[1]), 1.0)
    logits[:, -1] += 1e-5
    save_predictions(run.cell(arm, 0) / "predictions.npz", torch.tensor(old.index), torch.tensor(old.labels), logits)
    answers = student_answers(run, arm, 0)
    assert len(set(answers.logits[0])) == 1
    assert answers.correct.tolist() == (old.labels == logits.shape[1] - 1).tolist()
    assert answers.at(3.0).correct.tolist() == answers.correct.tolist()


def test_predictions_of_an_earlier_release_are_read(finished, tmp_path):
    run = read_run(copied(finished, tmp_path / "run"))
    arm = run.pairs()[0].baseline
    new = run.predictions(arm, 0)
    path = run.cell(arm, 0) / "predictions.npz"
    np.savez(path, index=new.index, label=new.labels, logits=new.logits.astype(np.float16))
    assert run.predictions(arm, 0).predicted.tolist() == new.logits.argmax(1).tolist()


def test_teachers_come_from_the_teacher_report(measured):
    run = read_run(measured)
    content = calibration_content(run, run.pairs())
    assert content.missing == []
    assert content.table is None  # the teacher report has the students, and scaled
    assert [grid.title for grid in content.tables][-1] == "Students"
    for title in ("RGB view", "average of the views", "TMKD of KD + TMKD"):
        assert f"{title}: ECE" in content.teachers.alternative
    assert "true class" not in content.teachers.alternative


def test_page_says_it(measured, finished, tmp_path):
    assert call(report, str(measured), "--out", str(tmp_path / "r.html"), "--images", "2") == 0
    words = words_of(tmp_path / "r.html")
    for part in ("Calibration", "Reliability of the teachers", "USES THE ANSWER", "Teachers after temperature scaling"):
        assert part in words, part
    assert call(report, str(finished), "--out", str(tmp_path / "s.html"), "--images", "2") == 0
    words = words_of(tmp_path / "s.html")
    assert "Calibration of the students" in words
    assert "USES THE ANSWER" not in words


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(results_sha256="0"), "another state"),
        (lambda content: content.update(schema_version=2), "schema_version 2"),
        (lambda content: content.pop("teachers"), "has no teachers"),
        (lambda content: content["teachers"][0].pop("mean"), "damaged"),
        (lambda content: content["teachers"][0].update(reliability={"count": "many"}), "damaged"),
        (lambda content: content["students"][1].update(difference=3), "damaged"),
        (lambda content: content.update(teachers=None), "damaged"),
    ],
)
def test_a_bad_teacher_report_is_said_and_left_out(change, message, measured, tmp_path):
    run = copied(measured, tmp_path / "run")
    change_report(run, change)
    content = calibration_content(read_run(run), read_run(run).pairs())
    assert message in content.missing[0]
    assert content.tables == []
    assert content.students
    assert content.table is not None
    (run / "teacher-report" / "teacher-report.json").write_text("{")
    assert "is not JSON" in calibration_content(read_run(run), []).missing[0]


def test_a_bin_is_faint_by_its_images_not_by_how_many_seeds_count_them():
    """Three images in each of four seeds are twelve predictions, of three images."""

    def strengths(**more):
        panel = Panel("x", [12, 40], [0.3, 0.8], [0.2, 0.9], 10.0, 1.0, **more)
        axes = reliability_chart("c", "Reliability", [panel]).figure.axes[0]
        return [bar.get_alpha() for bar in axes.patches]

    assert strengths() == [0.8, 0.8]
    assert strengths(seeds=4) == [0.3, 0.8]


def test_the_diagrams_know_how_many_seeds_they_pool(measured, monkeypatch):
    seen = []
    monkeypatch.setattr(calibration, "reliability_chart", lambda name, title, panels: seen.extend(panels))
    calibration.calibration_content(read_run(measured), read_run(measured).pairs())
    assert {panel.title: panel.seeds for panel in seen} == {
        "RGB view": 1,
        "average of the views": 1,
        "TMKD of KD + TMKD": 2,
        "KD": 2,
        "KD + TMKD": 2,
    }


def test_missing_predictions_are_said(finished, tmp_path):
    run = copied(finished, tmp_path / "run")
    (run / "kd" / "seed0" / "predictions.npz").unlink()
    content = calibration_content(read_run(run), read_run(run).pairs())
    assert "No calibration of the students" in content.missing[-1]
    assert content.students == []


def test_chart_says_where_a_network_is_too_sure():
    sure = Panel("sure", [0, 0, 10], [None, None, 0.9], [None, None, 0.5], 40.0, None)
    shy = Panel("shy", [0, 10, 0], [None, 0.5, None], [None, 0.8, None], 30.0, 1.25)
    drawing = reliability_chart("x", "Reliability", [sure, shy])
    assert "sure: ECE 40.00 %; on average 40.00 points more sure than right." in drawing.alternative
    assert "shy: ECE 30.00 ± 1.25 %; on average 30.00 points less sure than right." in drawing.alternative
    heights = [bar.get_height() for axes in drawing.figure.axes for bar in axes.patches]
    assert heights.count(0.5) == 1
    assert heights.count(0.8) == 1
    assert 100 in heights


def test_chart_of_many_and_of_hostile_names():
    panel = Panel(HOSTILE, [1, 2], [0.4, 0.9], [0.0, 1.0], 20.0, 0.1)
    svg = inline_svg(reliability_chart("x", HOSTILE, [panel] * 5))
    assert "<script" not in svg
    assert "<img" not in svg
    assert svg.count("confidence</text>") == 5


@pytest.fixture(scope="module")
def chromium():
    if reason := browser.missing():
        pytest.skip(reason)
    with browser.Browser() as started:
        yield started


def test_in_a_browser(chromium, measured, tmp_path):
    """With names that are markup in every place of the teacher report."""
    run = copied(measured, tmp_path / "run")

    def spoil(content):
        content["notices"] = [HOSTILE]
        content["similarity_source"] = HOSTILE * 3
        for entry in [*content["teachers"], *content["students"]]:
            entry["title"] = HOSTILE
            for row in entry["seeds"]:
                row["note"] = HOSTILE

    change_report(run, spoil)
    assert call(report, str(run), "--images", "2") == 0
    for width in (360, 1280):
        for dark in (False, True):
            chromium.look(width=width, dark=dark)
            chromium.open(run / "report.html")
            assert chromium.messages() == []
            assert chromium.evaluate("typeof window.hacked") == "undefined"
            assert chromium.evaluate("document.documentElement.scrollWidth") <= width
            assert (
                chromium.evaluate("document.querySelectorAll('section[aria-labelledby=calibration] svg').length") == 2
            )
            assert (
                chromium.evaluate("document.querySelectorAll('section[aria-labelledby=calibration] table').length") == 5
            )
