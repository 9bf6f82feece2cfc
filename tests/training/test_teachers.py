from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import threading
import urllib.error
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tmkd_plugin.data.batches import evaluation_batches, training_batches
from tmkd_plugin.errors import InputError, TmkdNotice
from tmkd_plugin.randomness import forked_random_state
from tmkd_plugin.training import teachers
from tmkd_plugin.training.arm import Arm
from tmkd_plugin.training.lockstep import train_arms
from tmkd_plugin.training.metrics import evaluate
from tmkd_plugin.training.recipes import recipe_by_name
from tmkd_plugin.training.settings import TrainingSettings
from tmkd_plugin.training.teacher_check import verify_teacher
from tmkd_plugin.training.teacher_store import (
    find_teachers,
    pretrained_weights,
    stored_teacher,
    stored_teachers,
    teacher_identity,
    training_folder,
)
from tmkd_plugin.training.teachers import trained_teacher
from tmkd_plugin.training.view_training import top1_by_view, view_of, with_random_views
from tmkd_plugin.views import VIEW_NAMES, ViewSettings, make_views
from tmkd_plugin.zoo import build_network

NAME = "resnet8x4"
SHORT = TrainingSettings(epochs=2, batch_size=32, learning_rate=0.05, warmup_epochs=0, decay_epochs=())


@pytest.fixture
def never_trained(monkeypatch):
    monkeypatch.setattr(teachers, "train_arms", lambda *_, **__: pytest.fail("the teacher was trained again"))


def test_a_teacher_is_trained_once_measured_and_kept(dataset, tmp_path, monkeypatch):
    first = trained_teacher(NAME, dataset, SHORT, views="rgb", cache_dir=tmp_path)
    assert not first.from_cache
    assert first.folder.parent == tmp_path
    assert {path.name for path in first.folder.iterdir()} == {"teacher.safetensors", "teacher.json", "history.jsonl"}
    assert not first.network.training
    assert not any(parameter.requires_grad for parameter in first.network.parameters())
    scores, _ = evaluate(first.network, dataset.test, dataset.mean, dataset.std, 32)
    assert first.top1 == first.per_view_top1["rgb"] == scores.top1
    validation, _ = evaluate(first.network, dataset.validation, dataset.mean, dataset.std, 32)
    assert first.val_top1 == validation.top1
    history = [json.loads(line) for line in (first.folder / "history.jsonl").read_text().splitlines()]
    assert first.val_top1 == max(record["val_top1"] for record in history)

    monkeypatch.setattr(teachers, "train_arms", lambda *_, **__: pytest.fail("the teacher was trained again"))
    second = trained_teacher(NAME, dataset, SHORT, views="rgb", cache_dir=tmp_path)
    assert second.from_cache
    fields = ("folder", "val_top1", "top1", "per_view_top1", "source", "weights_sha256")
    assert [getattr(first, field) for field in fields] == [getattr(second, field) for field in fields]
    weights = first.network.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in second.network.state_dict().items())


def test_the_same_recipe_gives_the_same_bytes(dataset, tmp_path):
    folders = [
        trained_teacher(NAME, dataset, SHORT, views="all", cache_dir=tmp_path / name).folder for name in ("a", "b")
    ]
    assert folders[0].name == folders[1].name
    for name in ("teacher.safetensors", "teacher.json", "history.jsonl"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_the_best_epochs_weights_are_kept_though_the_last_ones_are_worse(dataset, tmp_path, monkeypatch):
    def train_and_spoil(arms, *arguments, **keywords):
        seconds = train_arms(arms, *arguments, **keywords)
        arms[0].student.fc.bias.data += torch.tensor([1e3, 0.0, 0.0])
        return seconds

    monkeypatch.setattr(teachers, "train_arms", train_and_spoil)
    teacher = trained_teacher(NAME, dataset, SHORT, views="rgb", cache_dir=tmp_path)
    assert teacher.network.fc.bias.abs().max() < 100


def test_whatever_decides_the_weights_decides_the_folder(dataset):
    base = {"name": NAME, "dataset": dataset, "settings": SHORT, "views": "rgb", "seed": 0}
    base |= {"view_settings": ViewSettings(), "pretrained": False}
    changes = [
        {},
        {"name": "resnet20"},
        {"dataset": replace(dataset, fingerprint="other")},
        {"dataset": replace(dataset, augmentation=replace(dataset.augmentation, flip=False))},
        {"settings": replace(SHORT, learning_rate=0.01)},
        {"views": "all"},
        {"seed": 1},
        {"view_settings": ViewSettings(canny_low=50)},
        {"pretrained": True},
    ]
    identities = [json.dumps(teacher_identity(**{**base, **change})) for change in changes]
    assert len(set(identities)) == len(changes)


def test_an_attempt_without_a_checkpoint_is_started_again(dataset, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(teachers, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            trained_teacher(NAME, dataset, SHORT, views="rgb", cache_dir=tmp_path)
    assert stored_teachers(tmp_path) == []
    teacher = trained_teacher(NAME, dataset, SHORT, views="rgb", cache_dir=tmp_path)
    assert [stored.folder for stored in stored_teachers(tmp_path)] == [teacher.folder]
    assert len((teacher.folder / "history.jsonl").read_text().splitlines()) == SHORT.epochs


def test_an_interrupted_training_goes_on_to_the_same_teacher(dataset, tmp_path, monkeypatch):
    arguments = {"views": "all", "checkpoint_seconds": 0.0}
    whole = trained_teacher(NAME, dataset, SHORT, cache_dir=tmp_path / "whole", **arguments)
    steps = []

    def counted(arm, *batch):
        if len(steps) == 3:
            raise KeyboardInterrupt
        steps.append(arm.epoch)
        return real_step(arm, *batch)

    real_step = Arm.step
    with monkeypatch.context() as patch:
        patch.setattr(Arm, "step", counted)
        with pytest.raises(KeyboardInterrupt):
            trained_teacher(NAME, dataset, SHORT, cache_dir=tmp_path / "parts", **arguments)
    assert steps == [1, 1, 2]  # two steps an epoch: it was stopped in the middle of the second one
    monkeypatch.setattr(Arm, "step", lambda arm, *batch: (steps.append(arm.epoch), real_step(arm, *batch)))
    resumed = trained_teacher(NAME, dataset, SHORT, cache_dir=tmp_path / "parts", **arguments)
    assert steps == [1, 1, 2, 2]
    assert resumed.folder.name == whole.folder.name
    assert {path.name for path in resumed.folder.iterdir()} == {"teacher.safetensors", "teacher.json", "history.jsonl"}
    for name in ("teacher.safetensors", "teacher.json", "history.jsonl"):
        assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import tmkd_plugin.training.teacher_store as store

    with store.training_folder(Path(sys.argv[1])) as unfinished:
        (unfinished / store.WEIGHTS).write_bytes(b"half")
        (unfinished / store.RECORD).write_text("{}")
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_no_teacher_and_no_lock(tmp_path):
    folder = tmp_path / "resnet8-0123456789abcdef"
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), folder], timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not folder.exists()
    assert stored_teachers(tmp_path) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no waiting for a dead process
        with training_folder(folder) as unfinished:
            assert (unfinished / "teacher.json").exists()  # for its checkpoint


def test_of_two_that_train_the_same_teacher_one_waits_and_takes_the_others(dataset, tmp_path):
    """Locks belong to open files, so two threads meet as two processes do."""
    begun, may_end, taken = threading.Event(), threading.Event(), []
    finished = trained_teacher(NAME, dataset, SHORT, views="rgb", cache_dir=tmp_path / "elsewhere")
    folder = tmp_path / "store" / finished.folder.name

    def first():
        with training_folder(folder) as unfinished:
            begun.set()
            may_end.wait(60)
            for path in finished.folder.iterdir():
                (unfinished / path.name).write_bytes(path.read_bytes())

    def second():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            taken.append(trained_teacher(NAME, dataset, SHORT, views="rgb", cache_dir=tmp_path / "store"))
            taken.extend(str(warning.message) for warning in caught if warning.category is TmkdNotice)

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    threads[1].join(0.5)
    assert not taken
    may_end.set()
    for thread in threads:
        thread.join(60)
    teacher, notice = taken
    assert teacher.from_cache
    assert notice == f"Another process trains {folder.name}: waiting for it."
    assert [stored.folder for stored in stored_teachers(tmp_path / "store")] == [folder]


def test_a_folder_without_a_record_is_no_teacher_and_gives_way(dataset, tmp_path):
    kept = trained_teacher(NAME, dataset, SHORT, views="rgb", cache_dir=tmp_path)
    (kept.folder / "teacher.json").unlink()
    assert stored_teachers(tmp_path) == []
    assert not trained_teacher(NAME, dataset, SHORT, views="rgb", cache_dir=tmp_path).from_cache
    assert len(stored_teachers(tmp_path)) == 1


def test_a_store_that_can_not_be_written_is_named(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"The folder of teachers .*file/teachers can't be written to.*TMKD_CACHE"):
        trained_teacher(NAME, dataset, SHORT, views="rgb", cache_dir=tmp_path / "file" / "teachers")


def test_the_record_says_what_the_teacher_is_and_how_to_measure_it_again(dataset, tmp_path):
    loading = {"name_or_path": "colours", "image_size": 8}
    recipe = recipe_by_name("smoke")
    teacher = trained_teacher(NAME, dataset, recipe, views="rgb", cache_dir=tmp_path, seed=3, loading=loading)
    record = json.loads((teacher.folder / "teacher.json").read_text())
    assert record["recipe_name"] == "smoke"
    assert record["dataset"] == {"name": "colours", "loading": loading}
    assert record["identity"]["seed"] == 3
    assert record["identity"]["pretrained"] is None
    assert record["identity"]["data_fingerprint"] == dataset.fingerprint
    assert record["trained_with"]["torch"] == torch.__version__
    for split, name in ((dataset.validation, "val_top1"), (dataset.test, "test_top1")):
        assert record[name] == top1_by_view(teacher.network, split, dataset.mean, dataset.std, 32)
    # How the images were loaded decides nothing beside the images: another caller finds the same teacher.
    assert trained_teacher(NAME, dataset, recipe, views="rgb", cache_dir=tmp_path, seed=3).from_cache


@pytest.fixture
def kept(dataset, tmp_path):
    return trained_teacher(NAME, dataset, SHORT, views="rgb", cache_dir=tmp_path).folder


def again(dataset, folder):
    return trained_teacher(NAME, dataset, SHORT, views="rgb", cache_dir=folder.parent)


def test_a_changed_weight_is_noticed(dataset, kept, never_trained):
    path = kept / "teacher.safetensors"
    weights = load_file(path)
    weights["fc.bias"] += 1e-6
    save_file(weights, path)
    with pytest.raises(InputError, match=r"teacher\.safetensors' are missing or not those.*Delete the folder"):
        again(dataset, kept)
    path.unlink()
    with pytest.raises(InputError, match="missing"):
        again(dataset, kept)


def change_record(folder, **changes):
    record = json.loads((folder / "teacher.json").read_text())
    (folder / "teacher.json").write_text(json.dumps({**record, **changes}))
    return record


def test_a_record_of_another_accuracy_is_noticed(dataset, kept, never_trained):
    recorded, one_image = change_record(kept)["val_top1"], 100 / len(dataset.validation)
    change_record(kept, val_top1={**recorded, "rgb": recorded["rgb"] + one_image})
    again(dataset, kept)  # another machine may decide one image differently
    change_record(kept, val_top1={**recorded, "rgb": recorded["rgb"] + 2 * one_image})
    with pytest.raises(InputError, match=r"on the validation split, but its record says.*Delete the folder"):
        again(dataset, kept)


def test_verification_measures_every_view_of_both_splits(dataset, kept):
    assert verify_teacher(stored_teacher(kept), dataset) == []
    record = change_record(kept)
    for name, split in (("val_top1", "val"), ("test_top1", "test")):
        for view, top1 in record[name].items():
            change_record(kept, **{name: {**record[name], view: top1 + 7}})
            (problem,) = verify_teacher(stored_teacher(kept), dataset)
            assert problem == f"{split} top-1, {view}: {top1:.2f} %, the record says {top1 + 7:.2f} %"
        change_record(kept, **{name: record[name]})
    (problem,) = verify_teacher(stored_teacher(kept), replace(dataset, fingerprint="other"))
    assert "the images of 'colours' are not those that it was measured on" in problem
    (kept / "teacher.safetensors").write_bytes(b"")
    (problem,) = verify_teacher(stored_teacher(kept), dataset)
    assert "missing or not those that its record names" in problem


def test_teachers_are_found_by_network_and_by_hash(dataset, tmp_path):
    teacher = trained_teacher(NAME, dataset, SHORT, views="rgb", cache_dir=tmp_path)
    other = trained_teacher("resnet8", dataset, SHORT, views="rgb", cache_dir=tmp_path)
    digits = teacher.folder.name.rpartition("-")[2]
    for name in (NAME, teacher.folder.name, digits, digits[:8], teacher.weights_sha256[:6]):
        assert [found.folder for found in find_teachers(tmp_path, [name])] == [teacher.folder]
    assert [found.title for found in find_teachers(tmp_path, [NAME])] == [f"{NAME} {digits[:8]}"]
    both = [other.folder, teacher.folder]
    assert sorted(found.folder for found in find_teachers(tmp_path, ["all", NAME])) == sorted(both)
    with pytest.raises(InputError, match=r"Unknown teacher in .* 'resnet8x5'\. Did you mean 'resnet8x4'"):
        find_teachers(tmp_path, ["resnet8x5"])
    with pytest.raises(InputError, match="Unknown teacher"):
        find_teachers(tmp_path, [digits[:3]])
    assert find_teachers(tmp_path / "nowhere", ["all"]) == []


def test_a_teacher_of_an_older_version_is_never_used(dataset, tmp_path):
    """A record as version 1 wrote it, in the folder that version 1 gave it."""
    folder = tmp_path / f"{NAME}-fedcba9876543210"
    folder.mkdir()
    recipe = {"schema_version": 1, "network": NAME, "seed": 0}
    (folder / "teacher.json").write_text(json.dumps({"recipe": recipe, "val_top1": 50.0}))
    (stored,) = stored_teachers(tmp_path)
    assert "is of version 1, this one reads 2: it is never used. Delete the folder" in stored.problem
    assert verify_teacher(stored, dataset) == [stored.problem]
    assert not trained_teacher(NAME, dataset, SHORT, views="rgb", cache_dir=tmp_path).from_cache


@pytest.mark.parametrize("text", ["{half", "[]", "{}"])
def test_a_broken_record_is_named(dataset, kept, never_trained, text):
    (kept / "teacher.json").write_text(text)
    with pytest.raises(InputError, match=r"record '.*teacher\.json' can't be read.*Delete the folder"):
        again(dataset, kept)


def test_a_record_of_another_teacher_is_noticed(dataset, kept, never_trained):
    change_record(kept, identity={**change_record(kept)["identity"], "seed": 5})
    with pytest.raises(InputError, match="of another teacher than its folder's name"):
        again(dataset, kept)


def test_a_users_checkpoint_is_measured_and_not_trained(dataset, tmp_path, never_trained):
    network = build_network(NAME, 3, seed=4)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "mine.pt")
    teacher = trained_teacher(
        NAME, dataset, SHORT, views="rgb", cache_dir=tmp_path / "cache", checkpoint=tmp_path / "mine.pt"
    )
    assert (teacher.folder, teacher.source) == (tmp_path, "resnet8x4, checkpoint mine.pt")
    assert not (tmp_path / "cache").exists()
    scores, _ = evaluate(network, dataset.test, dataset.mean, dataset.std, 32)
    assert teacher.top1 == scores.top1
    assert torch.equal(teacher.network.fc.weight, network.fc.weight)


def test_a_checkpoint_for_another_number_of_classes_is_refused(dataset, tmp_path):
    torch.save(build_network(NAME, 7).state_dict(), tmp_path / "mine.pt")
    with pytest.raises(InputError, match="for 7 classes, the network for 3"):
        trained_teacher(NAME, dataset, SHORT, views="rgb", cache_dir=tmp_path, checkpoint=tmp_path / "mine.pt")


def test_unknown_teacher_views_are_refused(dataset, tmp_path):
    with pytest.raises(InputError, match=r"Unknown teacher views 'al'\. Did you mean 'all'"):
        trained_teacher(NAME, dataset, SHORT, views="al", cache_dir=tmp_path)


def one_epoch(dataset, epoch=1, batch_size=16):
    return training_batches(
        dataset.train, dataset.augmentation, dataset.mean, dataset.std, batch_size=batch_size, seed=0, epoch=epoch
    )


def shown(dataset, epoch=1, batch_size=16, seed=0):
    plain = one_epoch(dataset, epoch, batch_size)
    batches = with_random_views(plain, dataset.mean, dataset.std, images=61, seed=seed, epoch=epoch)
    return {int(i): image for batch in batches for i, image in zip(batch.ids, batch.images, strict=True)}


def drawn_views(dataset, epoch=1, **arguments):
    """Which view each image is shown in, found by comparing with all three."""
    plain = {
        int(i): image for batch in one_epoch(dataset, epoch) for i, image in zip(batch.ids, batch.images, strict=True)
    }
    found = {}
    for i, image in shown(dataset, epoch, **arguments).items():
        views = [view_of(plain[i][None], name, dataset.mean, dataset.std)[0] for name in VIEW_NAMES]
        (found[i],) = [name for name, view in zip(VIEW_NAMES, views, strict=True) if torch.equal(view, image)]
    return found


def test_every_image_is_shown_in_one_view_by_its_own_draw(dataset):
    views = drawn_views(dataset)
    assert set(views.values()) == set(VIEW_NAMES)
    assert all(8 <= list(views.values()).count(name) <= 35 for name in VIEW_NAMES)
    assert drawn_views(dataset, batch_size=61) == views  # the batch size changes no draw
    assert drawn_views(dataset, epoch=2) != views
    assert drawn_views(dataset, seed=1) != views


def test_a_view_is_made_from_the_pixels_and_normalised_again(dataset):
    (batch,) = evaluation_batches(dataset.test, dataset.mean, dataset.std, batch_size=50)
    shift = torch.tensor(dataset.mean).view(3, 1, 1)
    scale = torch.tensor(dataset.std).view(3, 1, 1)
    for name in VIEW_NAMES:
        (pixels,) = make_views(dataset.test.images, [name])
        expected = (pixels / 255 - shift) / scale
        torch.testing.assert_close(view_of(batch.images, name, dataset.mean, dataset.std), expected, rtol=0, atol=1e-5)
    assert view_of(batch.images, "rgb", dataset.mean, dataset.std) is batch.images


def test_accuracy_by_view_equals_a_plain_loop(dataset):
    # A linear map of the pixels answers differently to each view.
    with forked_random_state(0, "linear network"):
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    measured = top1_by_view(network, dataset.test, dataset.mean, dataset.std, 16)
    (batch,) = evaluation_batches(dataset.test, dataset.mean, dataset.std, batch_size=50)
    with torch.no_grad():
        logits = {name: network(view_of(batch.images, name, dataset.mean, dataset.std)) for name in VIEW_NAMES}
    logits["average"] = sum(logits.values()) / 3
    for name, answer in logits.items():
        assert measured[name] == pytest.approx(100 * float((answer.argmax(1) == dataset.test.labels).float().mean()))
    assert measured.keys() == logits.keys()
    assert len(set(measured.values())) > 2


def test_training_on_all_views_differs_from_training_on_rgb(dataset, tmp_path):
    by_views = [trained_teacher(NAME, dataset, SHORT, views=views, cache_dir=tmp_path) for views in ("rgb", "all")]
    assert by_views[0].folder != by_views[1].folder
    assert by_views[0].weights_sha256 != by_views[1].weights_sha256
    assert by_views[1].source == "resnet8x4, trained on colours (all views, seed 0)"


def test_views_are_made_with_the_given_settings(dataset, tmp_path):
    (batch,) = evaluation_batches(dataset.test, dataset.mean, dataset.std, batch_size=len(dataset.test))
    plain, strong = (
        view_of(batch.images, "edge", dataset.mean, dataset.std, ViewSettings(edge_alpha=alpha)) for alpha in (0.0, 1.0)
    )
    torch.testing.assert_close(plain, batch.images, rtol=0, atol=1e-5)
    assert not torch.allclose(strong, batch.images)


def test_a_pretrained_start_is_asked_for_once_and_not_for_a_stored_teacher(dataset, tmp_path, monkeypatch):
    asked = []

    def build(*arguments, pretrained=False, **others):
        asked.append(pretrained)
        return build_network(*arguments, **others)

    monkeypatch.setattr(teachers, "build_network", build)
    first = trained_teacher("resnet18", dataset, SHORT, views="rgb", cache_dir=tmp_path, pretrained=True)
    second = trained_teacher("resnet18", dataset, SHORT, views="rgb", cache_dir=tmp_path, pretrained=True)
    assert asked == [True, False]
    assert "pretrained" in first.source
    assert second.from_cache
    assert stored_teacher(first.folder).record["identity"]["pretrained"] == "torchvision resnet18 IMAGENET1K_V1"


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet50", "torchvision resnet50 IMAGENET1K_V1"),
        ("torchvision/resnet50", "torchvision resnet50 IMAGENET1K_V2"),
        ("torchvision/resnet50.IMAGENET1K_V1", "torchvision resnet50 IMAGENET1K_V1"),
        ("timm/resnet50", "timm resnet50 a1_in1k"),
        ("timm/resnet50.tv_in1k", "timm resnet50 tv_in1k"),
    ],
)
def test_the_weights_of_a_pretrained_start_are_named_in_full(name, weights):
    assert pretrained_weights(name) == weights


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18"])
def test_a_pretrained_start_without_network_is_a_clean_error(name, dataset, tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", no_network)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", no_network)
    with pytest.raises(InputError, match=r"pretrained weights of .* could not be loaded .*no route"):
        trained_teacher(name, dataset, SHORT, views="rgb", cache_dir=tmp_path / "store", pretrained=True)
    assert not (tmp_path / "store").exists()


def test_a_network_without_pretrained_weights_is_refused(dataset, tmp_path):
    with pytest.raises(InputError, match="There are no pretrained weights for 'resnet8x4'"):
        trained_teacher(NAME, dataset, SHORT, views="rgb", cache_dir=tmp_path / "store", pretrained=True)
