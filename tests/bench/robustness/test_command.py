"""``tmkd robustness`` on a small comparison: its figures against naive counts, its files, and what can be wrong."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from finished_runs import call, copied

from tmkd_plugin.bench.figures.finished_run import load_images, read_run
from tmkd_plugin.bench.fused_teachers import teachers_of
from tmkd_plugin.bench.robustness import measuring
from tmkd_plugin.commands import robustness
from tmkd_plugin.corruptions import CORRUPTIONS, corrupt
from tmkd_plugin.data.batches import normalize
from tmkd_plugin.errors import InputError, RunError

SOME = ("--corruptions", "fog,contrast", "--severities", "1,5")


def accuracy(network, images, dataset):
    """In percent, one image at a time."""
    right = 0
    for image, label in zip(images, dataset.test.labels, strict=True):
        logits = network(normalize(image[None], dataset.mean, dataset.std))
        right += int(logits[0].argmax()) == int(label)
    return 100 * right / len(images)


def test_figures_are_those_of_naive_counts(finished, measure):
    results = measure(*SOME, "--seed", "3")
    run = read_run(finished)
    dataset = load_images(run)
    test = dataset.test
    for arm in results["arms"]:
        for entry in arm["seeds"]:
            student = run.student(run.arm(arm["name"]), entry["seed"])
            assert entry["clean"] == pytest.approx(accuracy(student, test.images, dataset), abs=1e-5)
            means = []
            for name in ("fog", "contrast"):
                found = [
                    accuracy(student, corrupt(test.images, name, severity, seed=3, ids=test.ids), dataset)
                    for severity in (1, 5)
                ]
                assert list(entry["corruptions"][name].values()) == pytest.approx(found, abs=1e-5)
                means.append(sum(found) / 2)
            assert entry["corrupted"] == pytest.approx(sum(means) / 2, abs=1e-5)
            assert entry["lost"] == pytest.approx(entry["clean"] - entry["corrupted"], abs=1e-5)


def test_clean_accuracy_is_the_run_s_own(finished, measure):
    results = measure("--corruptions", "fog", "--severities", "1", "--no-teachers")
    for arm, said in zip(results["arms"], read_run(finished).results["arms"], strict=True):
        for entry, of_run in zip(arm["seeds"], said["seeds"], strict=True):
            assert entry["clean"] == pytest.approx(of_run["best"]["top1"], abs=1e-3)
    assert results["notes"] == []


def test_arms_are_compared_seed_by_seed(measure):
    results = measure(*SOME, "--no-teachers")
    baseline, enhanced = results["arms"]
    assert (baseline["name"], enhanced["name"]) == ("kd", "kd+tmkd")
    assert [entry["mce"] for entry in baseline["seeds"]] == [100.0, 100.0]
    by_metric = {entry["metric"]: entry for entry in results["comparisons"]}
    differences = [
        late["corrupted"] - early["corrupted"] for early, late in zip(baseline["seeds"], enhanced["seeds"], strict=True)
    ]
    assert by_metric["corrupted"]["delta"] == pytest.approx(sum(differences) / 2, abs=1e-5)
    assert by_metric["mce"]["delta"] == pytest.approx(enhanced["summary"]["mce"]["mean"] - 100, abs=1e-5)
    assert by_metric["corruption:fog"]["n"] == 2


def test_mce_of_two_enhanced_arms_is_against_their_baseline(finished, measure, tmp_path):
    """A third arm that has the baseline's students: its mCE is 100, whatever it is compared with."""

    def change(results):
        results["arms"].append({**results["arms"][0], "name": "kd+other", "enhancer": "other"})
        pair = {"baseline": "kd+tmkd", "enhanced": "kd+other"}
        results["comparisons"].append({**results["comparisons"][0], **pair})

    results = measure(*SOME, "--no-teachers", folder=copied(finished, tmp_path / "run", change))
    mce = results["arms"][1]["summary"]["mce"]["mean"]
    assert abs(mce - 100) > 0.1
    (entry,) = (each for each in results["comparisons"] if (each["enhanced"], each["metric"]) == ("kd+other", "mce"))
    assert entry["delta"] == pytest.approx(100 - mce, abs=1e-5)


def test_teachers_are_measured_as_they_answer(finished, measure, cache, capsys):
    results = measure("--corruptions", "fog", "--severities", "2")
    run = read_run(finished)
    dataset = load_images(run)
    foggy = corrupt(dataset.test.images, "fog", 2, seed=0, ids=dataset.test.ids)
    teachers = teachers_of(run, cache, dataset=dataset)
    assert [teacher["name"] for teacher in results["teachers"]] == ["single", "average", "tmkd"]
    measured = {
        (teacher["name"], entry["seed"]): entry["corruptions"]["fog"]["2"]
        for teacher in results["teachers"]
        for entry in teacher["seeds"]
    }
    assert len(measured) == len(teachers) == 4
    for teacher in teachers:
        expected = accuracy(teacher.network, foggy, dataset)
        assert measured[teacher.name, teacher.seed] == pytest.approx(expected, abs=1e-5)
    assert results["teachers"][0]["seeds"][0]["mce"] == 100.0
    printed = capsys.readouterr().out
    assert "teacher, average of the views" in printed


def test_without_its_teacher_the_students_are_measured(measure, monkeypatch, tmp_path):
    monkeypatch.setenv("TMKD_CACHE", str(tmp_path / "empty"))
    results = measure(*SOME)
    assert results["teachers"] == []
    assert len(results["arms"]) == 2
    assert any(note.startswith("The teachers are not measured: The teacher of") for note in results["notes"])


def test_all_15_at_5_severities_by_default(measure, capsys):
    results = measure("--arms", "kd", "--no-teachers")
    entry = results["arms"][0]["seeds"][0]
    assert list(entry["corruptions"]) == sorted(CORRUPTIONS)
    assert all(list(each) == ["1", "2", "3", "4", "5"] for each in entry["corruptions"].values())
    assert results["comparisons"] == []
    output = capsys.readouterr()
    assert (
        "12 test images of 16 px, 15 corruptions x 5 severities (published for 32 px): 900 corrupted images"
        in output.out
    )
    assert "robustness: 76/76" in output.err


def test_the_same_again_is_the_same_bytes_and_measures_nothing(measure, monkeypatch, tmp_path):
    measure(*SOME, out=tmp_path / "a")
    measure(*SOME, out=tmp_path / "b")
    files = {name: [(tmp_path / k / name).read_bytes() for k in "ab"] for name in ("robustness.json", "robustness.md")}
    assert all(first == second for first, second in files.values())

    def never(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr(measuring, "corrupt", never)
    measure(*SOME, out=tmp_path / "a")
    assert (tmp_path / "a" / "robustness.json").read_bytes() == files["robustness.json"][0]
    with pytest.raises(AssertionError, match="measured again"):
        measure(*SOME, "--seed", "1", out=tmp_path / "a")


def test_an_interrupted_measurement_goes_on(measure, monkeypatch, tmp_path):
    whole = measure(*SOME, "--no-teachers", out=tmp_path / "whole")
    calls, was_cut = [], []

    def interrupted(images, name, severity, **rest):
        calls.append((name, severity))
        if len(calls) == 3 and not was_cut:
            was_cut.append(True)
            raise KeyboardInterrupt
        return corrupt(images, name, severity, **rest)

    monkeypatch.setattr(measuring, "corrupt", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(*SOME, "--no-teachers", out=tmp_path / "cut")
    assert not (tmp_path / "cut" / "robustness.json").exists()
    calls.clear()
    again = measure(*SOME, "--no-teachers", out=tmp_path / "cut")
    assert calls == [("contrast", 1), ("contrast", 5)]
    assert again == whole


def test_other_weights_are_measured_again(finished, measure, tmp_path):
    run = copied(finished, tmp_path / "run")
    first = measure(*SOME, "--no-teachers", folder=run)
    shutil.copy(run / "kd" / "seed0" / "student.safetensors", run / "kd+tmkd" / "seed0" / "student.safetensors")
    second = measure(*SOME, "--no-teachers", folder=run)
    assert second["arms"][0]["seeds"] == first["arms"][0]["seeds"]
    kd, tmkd = (arm["seeds"][0] for arm in second["arms"])
    assert kd["corruptions"] == tmkd["corruptions"]


def test_damaged_counts_are_measured_again(measure, tmp_path):
    first = measure(*SOME, "--no-teachers")
    (tmp_path / "out" / "counts.json").write_text('{"schema_version": 1, "correct": [')
    assert measure(*SOME, "--no-teachers") == first


def test_other_images_of_the_same_classes(image_folder, measure, tmp_path, capsys):
    """The test images as a folder of their own are as hard as the test split; capitals and order don't matter."""
    shutil.copytree(image_folder / "test", tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "red").rename(tmp_path / "elsewhere" / "Red")
    shutil.copytree(image_folder / "test", tmp_path / "two" / "elsewhere", ignore=shutil.ignore_patterns("blue"))
    words = ("--shift", str(tmp_path / "elsewhere"), "--shift", str(tmp_path / "two" / "elsewhere"))
    results = measure("--corruptions", "fog", "--severities", "1", *words, "--no-teachers")
    shifts = results["measurement"]["shifts"]
    assert [(shift["name"], shift["classes"], shift["images"]) for shift in shifts] == [
        ("elsewhere", 3, 12),
        ("elsewhere (2)", 2, 8),
    ]
    for arm in results["arms"]:
        for entry in arm["seeds"]:
            assert entry["shifts"]["elsewhere"] == entry["clean"]
    assert {"shift:elsewhere", "shift:elsewhere (2)"} <= {entry["metric"] for entry in results["comparisons"]}
    assert "on the images of elsewhere" in capsys.readouterr().out


def test_folders_of_one_name_stay_apart_whatever_it_is(image_folder, measure, tmp_path):
    words = []
    for folder in ("a/night", "b/night (2)", "c/night", "d/night (2)"):
        shutil.copytree(image_folder / "test", tmp_path / folder)
        words += ["--shift", str(tmp_path / folder)]
    results = measure("--corruptions", "fog", "--severities", "1", *words, "--no-teachers", "--arms", "kd")
    names = ["night", "night (2)", "night (3)", "night (2) (2)"]
    assert [shift["name"] for shift in results["measurement"]["shifts"]] == names
    assert sorted(results["arms"][0]["seeds"][0]["shifts"]) == sorted(names)


def test_the_test_split_of_a_folder_is_taken(image_folder, measure):
    results = measure("--corruptions", "fog", "--severities", "1", "--shift", str(image_folder), "--no-teachers")
    assert results["measurement"]["shifts"][0]["images"] == 12


def test_other_classes_are_refused(image_folder, measure, tmp_path):
    shutil.copytree(image_folder / "test", tmp_path / "other")
    (tmp_path / "other" / "green").rename(tmp_path / "other" / "greens")
    with pytest.raises(InputError, match=r"the comparison has no class 'greens'. Did you mean 'green'"):
        measure(*SOME, "--shift", str(tmp_path / "other"))
    with pytest.raises(InputError, match="nowhere"):
        measure(*SOME, "--shift", str(tmp_path / "nowhere"))


def test_fewer_images(measure, tmp_path):
    results = measure(*SOME, "--images", "6", "--no-teachers")
    assert results["measurement"]["images"] == 6
    assert all(
        entry["clean"] * 6 / 100 == pytest.approx(round(entry["clean"] * 6 / 100), abs=1e-5)
        for entry in results["arms"][0]["seeds"]
    )


def test_json_goes_to_standard_output_alone(measure, tmp_path, capsys):
    results = measure(*SOME, "--json", "--no-teachers")
    assert json.loads(capsys.readouterr().out) == results
    assert results["schema_version"] == 1
    assert results["config"]["student"]["value"] == "resnet8"


def test_the_document_has_every_part(measure, tmp_path):
    measure(*SOME)
    text = (tmp_path / "out" / "robustness.md").read_text()
    for part in (
        "## Students",
        "## Teachers",
        "## By corruption",
        "### KD + TMKD minus KD",
        "## By severity",
        "frost: procedural",
    ):
        assert part in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_networks_that_have_diverged(finished, measure, tmp_path, monkeypatch):
    from tmkd_plugin.bench.figures.finished_run import FinishedRun

    class Broken(torch.nn.Module):
        def forward(self, images):
            return torch.full((len(images), 3), float("nan"))

    monkeypatch.setattr(FinishedRun, "student", lambda *_: Broken())
    with pytest.raises(RunError, match="NaN or infinite"):
        measure(*SOME, "--no-teachers")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--corruptions", "fogg"), "Unknown corruption 'fogg'. Did you mean 'fog'"),
        (("--severities", "6"), "--severities 6: expected whole numbers from 1"),
        (("--arms", "kd,kd+tmdk"), r"Did you mean 'kd\+tmkd'"),
        (("--device", "cuda:77"), "--device cuda:77 can't be used"),
        (("--device", "gpu"), "--device gpu can't be used"),
        (("--frost-dir", "nowhere"), "no folder nowhere with pictures of frost"),
    ],
)
def test_what_can_t_be_measured(finished, tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        call(robustness, str(finished), "--out", str(tmp_path / "out"), *words)
    assert not (tmp_path / "out" / "robustness.json").exists()


def test_runs_that_can_t_be_measured(finished, tmp_path):
    unfinished = copied(finished, tmp_path / "unfinished")
    (unfinished / "results.json").unlink()
    with pytest.raises(InputError, match="is not finished"):
        call(robustness, str(unfinished))
    gone = copied(finished, tmp_path / "gone")
    (gone / "kd" / "seed1" / "student.safetensors").unlink()
    with pytest.raises(InputError, match=r"student\.safetensors is missing: the same `tmkd bench` command makes"):
        call(robustness, str(gone), *SOME)


@pytest.mark.parametrize(
    "words",
    [("--severities", "x"), ("--corruptions", "fog,,snow"), ("--arms", ","), ("--images", "0"), ("--seed", "-1")],
)
def test_wrong_words(finished, words, capsys):
    with pytest.raises(SystemExit):
        call(robustness, str(finished), *words)
    assert "expected" in capsys.readouterr().err
