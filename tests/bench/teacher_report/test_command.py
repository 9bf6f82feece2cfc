"""``tmkd teacher-report`` on a finished comparison: what is written, from which logits, and what can be wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from finished_runs import call, copied

from tmkd_plugin.bench.figures.finished_run import load_images, read_run
from tmkd_plugin.bench.fused_teachers import label_gathered, teachers_of
from tmkd_plugin.bench.lock import folder_lock
from tmkd_plugin.bench.teacher_report import command
from tmkd_plugin.bench.teacher_report.data_file import read_teacher_report
from tmkd_plugin.bench.teacher_report.document import grids, lines, markdown
from tmkd_plugin.bench.teacher_report.measures import MeasureSettings, plain_figures
from tmkd_plugin.calibration import answers_of, ece, nll
from tmkd_plugin.calibration_temperature import fit_temperature
from tmkd_plugin.commands import teacher_report
from tmkd_plugin.data import evaluation_batches
from tmkd_plugin.errors import InputError


@pytest.fixture(autouse=True)
def own_cache(cache, monkeypatch):
    monkeypatch.setenv("TMKD_CACHE", str(cache))


@pytest.fixture(scope="module")
def written(finished, cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMKD_CACHE", str(cache))
        assert call(teacher_report, str(finished), "--out", str(out), "--bins", "5", "--confidence", "0.4") == 0
    return out


@pytest.fixture(scope="module")
def report(written):
    return json.loads((written / "teacher-report.json").read_text())


def logits_of(network, split, dataset, *, gathered=False):
    """One image at a time: nothing of how batches are made can be in it."""
    found = []
    for batch in evaluation_batches(split, dataset.mean, dataset.std, batch_size=1):
        found.append(network(batch.images, batch.labels) if gathered else network(batch.images))
    return torch.cat(found).numpy()


def test_teachers_are_measured_as_their_networks_answer(finished, cache, report):
    run = read_run(finished)
    dataset = load_images(run)
    labels = dataset.test.labels.numpy()
    settings = MeasureSettings(5, 0.4)
    assert [(entry["name"], entry["uses_labels"]) for entry in report["teachers"]] == [
        ("single", False),
        ("average", False),
        ("tmkd", False),
        ("tmkd", True),
    ]
    rows = {
        (entry["name"], entry["uses_labels"], row["seed"]): row["figures"]
        for entry in report["teachers"]
        for row in entry["seeds"]
    }
    for teacher in teachers_of(run, cache, dataset=dataset):
        answers = answers_of(logits_of(teacher.network, dataset.test, dataset), labels)
        expected = plain_figures(answers, settings)
        validation = answers_of(
            logits_of(teacher.network, dataset.validation, dataset), dataset.validation.labels.numpy()
        )
        found = rows[teacher.name, False, teacher.seed]
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, abs=1e-3), name
        assert found["nll_scaled"] == pytest.approx(nll(answers.at(fit_temperature(validation).temperature)), abs=1e-3)
    for gathered in label_gathered(run, cache, dataset=dataset):
        answers = answers_of(logits_of(gathered.network, dataset.test, dataset, gathered=True), labels)
        assert rows["tmkd", True, gathered.seed]["nll"] == pytest.approx(nll(answers), abs=1e-4)


def test_students_are_scaled_by_their_validation_images(finished, report):
    run = read_run(finished)
    dataset = load_images(run)
    by_arm = {entry["arm"]: entry for entry in report["students"]}
    assert list(by_arm) == ["kd", "kd+tmkd"]
    differences = []
    for seed in (0, 1):
        found = {}
        for name in by_arm:
            arm = run.arm(name)
            predictions = run.predictions(arm, seed)
            answers = answers_of(predictions.logits, predictions.labels)
            student = run.student(arm, seed)
            with torch.no_grad():
                validation = answers_of(
                    logits_of(student, dataset.validation, dataset), dataset.validation.labels.numpy()
                )
            figures = by_arm[name]["seeds"][seed]["figures"]
            temperature = fit_temperature(validation).temperature
            assert figures["temperature"] == pytest.approx(temperature, rel=1e-3)
            assert figures["ece"] == pytest.approx(100 * ece(answers, 5), abs=1e-5)
            assert figures["ece_scaled"] == pytest.approx(100 * ece(answers.at(figures["temperature"]), 5), abs=0.01)
            found[name] = figures["nll"]
        differences.append(found["kd+tmkd"] - found["kd"])
    entry = by_arm["kd+tmkd"]["difference"]["nll"]
    assert entry["delta"] == pytest.approx(np.mean(differences), abs=2e-6)
    half = 12.706205 * np.std(differences, ddof=1) / 2**0.5
    assert entry["ci95"] == pytest.approx([np.mean(differences) - half, np.mean(differences) + half], abs=1e-4)
    assert by_arm["kd"]["difference"] is None


def test_is_the_same_each_time(finished, written, tmp_path, capsys):
    assert call(teacher_report, str(finished), "--out", str(tmp_path), "--bins", "5", "--confidence", "0.4") == 0
    for name in ("teacher-report.json", "teacher-report.md"):
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()
    out = capsys.readouterr().out
    for part in ("USES THE ANSWER", "confident and wrong", "Students", "adaptive ECE", "symmetry", "95 % interval"):
        assert part in out, part


def test_says_what_uses_the_answer(report):
    head = grids(report)[0].head
    assert [cell.endswith("USES THE ANSWER") for cell in head] == [False, False, False, False, True]
    assert any("no accuracy of a classifier" in line for line in lines(report))
    assert any("no independent evidence" in line for line in lines(report))


def test_markdown_is_a_table_whatever_names_hold(report):
    changed = json.loads(json.dumps(report))
    changed["students"][1]["title"] = "a | b <script> *c*\\"
    changed["teachers"][0]["seeds"][0]["note"] = "[x](y)"
    text = markdown(changed)
    for block in text.split("\n\n"):
        if block.startswith("|"):
            widths = {len(line.replace("\\|", "").split("|")) for line in block.splitlines()}
            assert len(widths) == 1
    assert "<script>" not in text
    assert "[x](y)" not in text


def test_other_choices(finished, tmp_path):
    options = ["--split", "validation", "--no-students", "--arms", "kd+tmkd", "--no-richkd"]
    assert call(teacher_report, str(finished), "--out", str(tmp_path), *options) == 0
    found = json.loads((tmp_path / "teacher-report.json").read_text())
    assert (found["split"], found["images"], found["students"]) == ("validation", 7, [])
    assert any("too good" in notice for notice in found["notices"])
    for entry in found["teachers"]:
        for row in entry["seeds"]:
            assert row["figures"]["nll_scaled"] <= row["figures"]["nll"] + 1e-6


def test_without_a_text_teacher(finished, tmp_path):
    def change(results):
        del results["config"]["text"]
        results["arms"] = results["arms"][:1]
        results["config"]["enhancer"]["value"] = ["none"]

    run = copied(finished, tmp_path / "run", change)
    assert call(teacher_report, str(run)) == 0
    found = read_teacher_report(read_run(run))
    assert [entry["name"] for entry in found["teachers"]] == ["single", "average"]
    assert found["teachers"][1]["mean"]["semantic_agreement"] is None
    assert any("--similarity" in notice for notice in found["notices"])


def test_another_source_of_similarity(finished, tmp_path):
    source = tmp_path / "words.npz"
    rows = np.array([[1.0, 0, 0], [0.9, 0.1, 0], [0, 0, 1]], dtype=np.float32)
    np.savez(source, emb=rows, names=np.array(["blue", "green", "red"]))
    assert (
        call(teacher_report, str(finished), "--out", str(tmp_path / "o"), "--no-students", "--similarity", str(source))
        == 0
    )
    found = json.loads((tmp_path / "o" / "teacher-report.json").read_text())
    assert found["similarity_source"] == str(source)
    assert not any("no independent evidence" in notice for notice in found["notices"])
    with pytest.raises(InputError, match="nothing"):
        call(teacher_report, str(finished), "--similarity", str(tmp_path / "nothing.npz"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--confidence", "0"], "above 0 and at most 1"),
        (["--bins", "0"], "at least 1"),
        (["--split", "train"], "invalid choice"),
        (["--arms", ","], "expected names with commas"),
    ],
)
def test_refuses_options(words, message, finished, capsys):
    with pytest.raises(SystemExit) as end:
        call(teacher_report, str(finished), *words)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_clip_for_a_teacher_that_is_left_out_is_refused(finished):
    with pytest.raises(InputError, match=r"--clip names the CLIP .* which --no-richkd leaves out"):
        call(teacher_report, str(finished), "--no-richkd", "--clip", "small_clip")


def test_writes_nothing_where_the_teacher_is_gone(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("TMKD_CACHE", str(tmp_path / "empty"))
    with pytest.raises(InputError, match="Set TMKD_CACHE"):
        call(teacher_report, str(finished), "--out", str(tmp_path / "out"))
    assert not list((tmp_path / "out").glob("teacher-report*"))


def test_the_results_file_names_the_run_too(finished, tmp_path):
    run = copied(finished, tmp_path / "run")
    assert call(teacher_report, str(run / "results.json"), "--no-students") == 0
    assert read_teacher_report(read_run(run)) is not None


def test_a_folder_that_can_t_be_written_is_refused_before_measuring(finished, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("measured")

    monkeypatch.setattr(command, "load_images", never)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written to"):
        call(teacher_report, str(finished), "--out", str(tmp_path / "file"))
    with folder_lock(tmp_path / "out"), pytest.raises(InputError, match="Another process is writing to"):
        call(teacher_report, str(finished), "--out", str(tmp_path / "out"))


def test_an_old_report_is_not_believed(finished, tmp_path):
    run = copied(finished, tmp_path / "run")
    assert read_teacher_report(read_run(run)) is None
    assert call(teacher_report, str(run), "--no-students") == 0
    path = run / "teacher-report" / "teacher-report.json"
    whole = json.loads(path.read_text())
    assert read_teacher_report(read_run(run)) == whole
    for change, message in (
        ({"results_sha256": "0"}, "another state"),
        ({"schema_version": 99}, "schema_version 99"),
    ):
        path.write_text(json.dumps({**whole, **change}))
        with pytest.raises(InputError, match=message):
            read_teacher_report(read_run(run))
    path.write_text(json.dumps({"schema_version": 1}))
    with pytest.raises(InputError, match="has no dataset"):
        read_teacher_report(read_run(run))
