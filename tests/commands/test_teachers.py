"""``tmkd teachers``: the store on the command line, and that a comparison takes its teachers from there."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from tmkd_plugin.bench import teacher_command
from tmkd_plugin.bench.configuration import configure
from tmkd_plugin.cli import main
from tmkd_plugin.training import teachers
from tmkd_plugin.training.recipes import recipe_names, recipe_values
from tmkd_plugin.training.teacher_store import stored_teachers

CLASS_NAMES = ["blue", "green", "red"]


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Noise in which the channel of the class is brighter: 8 training and 4 test images of each of 3 classes, 16 px."""
    root = tmp_path_factory.mktemp("images") / "colours"
    draw = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for channel, name in ((2, "blue"), (1, "green"), (0, "red")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 160, (16, 16, 3))
                pixels[..., channel] += 60
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def trained(images, tmp_path_factory):
    """A cache in which ``tmkd teachers train`` has put one teacher."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMKD_CACHE", str(cache))
        assert main(words_of("train", images)) == 0
    return cache


@pytest.fixture
def cache(trained, tmp_path, monkeypatch):
    """A copy of it, to be changed at will."""
    shutil.copytree(trained, tmp_path / "cache")
    monkeypatch.setenv("TMKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def never_trained(monkeypatch):
    monkeypatch.setattr(teachers, "train_arms", lambda *_, **__: pytest.fail("a teacher was trained"))


def words_of(action, images, *more):
    words = ["teachers", action, "--network", "resnet8", "--dataset", str(images), "--recipe", "smoke"]
    return [*words, "--image-size", "16", "--threads", "1", "--quiet", *more]


def the_teacher(cache):
    (stored,) = stored_teachers(cache / "teachers")
    return stored


def test_training_prints_the_hash_and_the_accuracies_and_keeps_the_teacher(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TMKD_CACHE", str(tmp_path))
    words = [word for word in words_of("train", images, "--views", "rgb", "--seed", "3") if word != "--quiet"]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "teacher resnet8, seed 3: epoch 1/1" in captured.err
    assert "trained on RGB, seed 3; recipe smoke, 1 epochs; CPU threads: 1" in captured.out
    stored = the_teacher(tmp_path)
    record = stored.record
    accuracies = ", ".join(
        f"{view} {record['test_top1'][view]:.2f}" for view in ("rgb", "edge", "high_frequency", "average")
    )
    expected = f"top-1 in %: validation {record['val_top1']['rgb']:.2f}; test {accuracies}"
    assert f"resnet8, trained on colours (RGB, seed 3): {expected}" in captured.out
    assert f"sha256 {record['weights_sha256']}; in {stored.folder}" in captured.out
    assert "there already" not in captured.out
    assert (record["recipe_name"], record["identity"]["views"]) == ("smoke", "rgb")
    assert record["dataset"]["loading"] == {"name_or_path": str(images.resolve()), "image_size": 16}

    assert main(words) == 0
    captured = capsys.readouterr()
    assert "This teacher is there already" in captured.out
    assert expected in captured.out
    assert captured.err == ""


def test_a_comparison_takes_the_teacher_that_was_trained_here(
    images, cache, tmp_path, monkeypatch, never_trained, capsys
):
    """The smallest preset that says the same; the recipe by name stands where a preset's section would."""
    embeddings = np.random.default_rng(1).normal(size=(3, 3, 12)).astype(np.float32)
    np.savez(tmp_path / "text.npz", emb=embeddings, names=np.array(CLASS_NAMES))
    values = {f"teacher_training.{key}": value for key, value in recipe_values("smoke").items()}
    values |= {"image_size": 16, "training.epochs": 1, "training.batch_size": 12}
    words = ["bench", "--dataset", str(images), "--text", str(tmp_path / "text.npz"), "--teacher", "resnet8", "--quiet"]
    words += ["--student", "resnet8", "--threads", "1", "--seeds", "1", "--out", str(tmp_path / "out")]
    for key, value in values.items():
        words += ["--set", f"{key}={list(value) if isinstance(value, tuple) else value}"]
    assert main(words) == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["teachers"][0]["weights_sha256"] == the_teacher(cache).record["weights_sha256"]


def test_what_bench_would_train_by_default_is_what_is_trained_here_by_default(monkeypatch, tmp_path):
    """Digits with nothing given: settings, views and seed are those of the preset, whichever command asks."""
    asked = []
    monkeypatch.setenv("TMKD_CACHE", str(tmp_path))
    monkeypatch.setattr(teacher_command, "_print_outcome", lambda teacher: None)
    monkeypatch.setattr(teacher_command, "trained_teacher", lambda *words, **more: asked.append((words, more)))
    assert main(["teachers", "train", "--network", "resnet14", "--dataset", "digits", "--quiet"]) == 0
    ((network, dataset, settings), more) = asked.pop()
    configuration = configure({}, {})
    assert (network, dataset.name) == (configuration.experiment.teacher, "digits")
    assert settings == configuration.recipe("teacher_training")
    assert (more["views"], more["seed"]) == ("all", configuration.experiment.teacher_seed)
    assert more["cache_dir"] == tmp_path / "teachers"


@pytest.mark.parametrize(
    "change",
    [
        ["--views", "rgb"],
        ["--seed", "1"],
        ["--recipe", "digits"],
        ["--set", "epochs=2"],
        ["--set", "teacher_training.learning_rate=0.01"],
        ["--set", "canny_low=50"],
        ["--set", "train_limit=12"],
        ["--pretrained", "--network", "resnet18"],
    ],
)
def test_every_option_that_matters_is_another_teacher(change, images, cache, monkeypatch):
    asked = []

    def stop(network, dataset, settings, **more):
        asked.append(
            (
                network,
                len(dataset.train),
                settings,
                more["views"],
                more["seed"],
                more["view_settings"],
                more["pretrained"],
            )
        )
        raise KeyboardInterrupt

    monkeypatch.setattr(teacher_command, "trained_teacher", stop)
    assert main(words_of("train", images)) == 130
    assert main(words_of("train", images, *change)) == 130
    assert asked[0] != asked[1]
    assert sum(a != b for a, b in zip(*asked, strict=True)) == len([word for word in change if word.startswith("--")])


def test_a_shorter_recipe_keeps_its_shape(images, cache, monkeypatch):
    asked = []
    monkeypatch.setattr(teacher_command, "_print_outcome", lambda teacher: None)
    monkeypatch.setattr(teacher_command, "trained_teacher", lambda *words, **_: asked.append(words[2]))
    assert main(words_of("train", images, "--recipe", "cifar_240", "--set", "epochs=24")) == 0
    assert (asked[0].epochs, asked[0].decay_epochs, asked[0].learning_rate) == (24, (15, 18, 21), 0.05)


def test_images_that_stay_in_their_files(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TMKD_CACHE", str(tmp_path))
    assert main(words_of("train", images, "--set", "augmentation=resized_crop")) == 0
    assert the_teacher(tmp_path).record["dataset"]["loading"]["augmentation"] == "resized_crop"
    assert main(["teachers", "verify"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("ok ")


def test_the_list_shows_every_teacher_and_what_can_not_be_used(cache, capsys):
    stored = the_teacher(cache)
    shutil.copytree(stored.folder, stored.folder.with_name("resnet8-broken"))
    (cache / "teachers" / ".resnet8-half.part").mkdir()
    assert main(["teachers", "list"]) == 0
    text = capsys.readouterr().out
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {stored.short_hash} ")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    test = [f"{stored.record['test_top1'][view]:.2f}" for view in ("rgb", "edge", "high_frequency", "average")]
    assert cells[1:6] == ["resnet8", "colours", "all", "smoke", f"{stored.record['val_top1']['rgb']:.2f}"]
    assert cells[6:10] == test
    assert cells[10] == "0.3"
    (other,) = [line for line in text.splitlines() if line.startswith("resnet8 broken can't be used: ")]
    assert "of another teacher than its folder's name" in other
    assert "half" not in text


def test_an_empty_store(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TMKD_CACHE", str(tmp_path))
    assert main(["teachers", "list"]) == main(["teachers", "verify"]) == 0
    assert capsys.readouterr().out.count(f"No teachers in {tmp_path / 'teachers'}.") == 2


def test_the_recipes_are_listed_with_every_value(capsys):
    assert main(["teachers", "list", "--recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[::2]] == recipe_names()
    values = "epochs=240 batch_size=64 learning_rate=0.05 momentum=0.9 weight_decay=0.0005 warmup_epochs=0"
    assert f"    {values} decay_epochs=[150,180,210] decay_rate=0.1" in lines


def test_verification_says_ok_and_downloads_nothing(cache, capsys, never_trained):
    stored = the_teacher(cache)
    for name in ([], ["all"], ["resnet8"], [stored.short_hash]):
        assert main(["teachers", "verify", *name]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"ok         {stored.title} on colours: top-1 in %: validation ")
    assert main(["teachers", "verify", "resnet9"]) == 2
    assert "Did you mean 'resnet8'?" in capsys.readouterr().err


def test_verification_finds_what_is_not_as_recorded(cache, capsys):
    stored = the_teacher(cache)
    path = stored.folder / "teacher.json"
    edge = stored.record["test_top1"]["edge"]
    path.write_text(json.dumps({**stored.record, "test_top1": {**stored.record["test_top1"], "edge": edge + 20}}))
    assert main(["teachers", "verify"]) == 1
    assert f"test top-1, edge: {edge:.2f} %, the record says {edge + 20:.2f} %" in capsys.readouterr().out
    path.write_text(json.dumps(stored.record))
    weights = load_file(stored.folder / "teacher.safetensors")
    save_file({**weights, "fc.bias": weights["fc.bias"] + 1e-6}, stored.folder / "teacher.safetensors")
    assert main(["teachers", "verify"]) == 1
    assert "missing or not those that its record names" in capsys.readouterr().out
    path.write_text("{")
    assert main(["teachers", "verify"]) == 1
    assert "FAILED     resnet8" in capsys.readouterr().out


def test_what_can_not_be_measured_here_is_no_failure_and_no_success(cache, capsys):
    stored = the_teacher(cache)
    for loading, reason in (
        (None, "its record does not say how its data set was loaded"),
        ({"name_or_path": "./gone"}, "There is no folder"),
    ):
        record = {**stored.record, "dataset": {"name": "colours", "loading": loading}}
        (stored.folder / "teacher.json").write_text(json.dumps(record))
        assert main(["teachers", "verify"]) == 2
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"can't say  {stored.title}: ")
        assert reason in line
    # A data set of another name is loaded from where it is now.
    (stored.folder / "teacher.json").write_text(
        json.dumps(
            {**stored.record, "dataset": {"name": "dtd", "loading": {"name_or_path": "dtd", "data_dir": "/gone"}}}
        )
    )
    assert main(["teachers", "verify", "--data-dir", str(cache / "here")]) == 2
    assert str(cache / "here" / "dtd") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--network", "resnt8"], "Did you mean 'resnet8'?"),
        (["--recipe", "smok"], "Unknown recipe 'smok'. Did you mean 'smoke'?"),
        (["--views", "al"], "teacher_views: expected one of 'rgb', 'all', got 'al'. Did you mean 'all'?"),
        (["--set", "epoch=3"], "Unknown setting of a teacher 'epoch'. Did you mean 'epochs'?"),
        (["--set", "training.epochs=3"], "Unknown setting of a teacher 'training'"),
        (["--set", "epochs=many"], "teacher_training.epochs: expected a whole number, got 'many'"),
        (["--set", "epochs=0"], "epochs=0 can't be used"),
        (["--set", "canny_low=high"], "tmkd.canny_low: expected a number"),
        (["--seed", "one"], "teacher_seed: expected a whole number"),
        (["--device", "cuad"], "device='cuad' can't be used"),
        (["--dataset", "digitz"], "Did you mean 'digits'?"),
        (["--pretrained"], "There are no pretrained weights for 'resnet8'"),
    ],
)
def test_what_can_not_be_used_stops_before_any_training(words, message, images, cache, never_trained, capsys):
    before = len(stored_teachers(cache / "teachers"))
    assert main(words_of("train", images, *words)) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert len(stored_teachers(cache / "teachers")) == before


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["list", "--help"], ["verify", "--help"]])
def test_help(words, capsys):
    assert main(["teachers", *words]) == 0
    assert "usage: tmkd teachers" in capsys.readouterr().out
