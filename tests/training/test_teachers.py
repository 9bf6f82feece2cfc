from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tmkd_plugin.data.batches import evaluation_batches, training_batches
from tmkd_plugin.errors import InputError
from tmkd_plugin.randomness import forked_random_state
from tmkd_plugin.training import teachers
from tmkd_plugin.training.metrics import evaluate
from tmkd_plugin.training.settings import TrainingSettings
from tmkd_plugin.training.teachers import trained_teacher
from tmkd_plugin.training.trainer import train_arms
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
    recipes = [json.dumps(teachers._recipe(**{**base, **change})) for change in changes]
    assert len(set(recipes)) == len(changes)


def test_an_interrupted_attempt_is_started_again(dataset, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(teachers, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            trained_teacher(NAME, dataset, SHORT, views="rgb", cache_dir=tmp_path)
    (folder,) = tmp_path.iterdir()
    assert not (folder / "teacher.json").exists()
    teacher = trained_teacher(NAME, dataset, SHORT, views="rgb", cache_dir=tmp_path)
    assert teacher.folder == folder
    assert len((folder / "history.jsonl").read_text().splitlines()) == SHORT.epochs


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


def test_a_record_of_another_accuracy_is_noticed(dataset, kept, never_trained):
    path = kept / "teacher.json"
    record = json.loads(path.read_text())
    one_image = 100 / len(dataset.validation)
    path.write_text(json.dumps({**record, "val_top1": record["val_top1"] + one_image}))
    again(dataset, kept)  # another machine may decide one image differently
    path.write_text(json.dumps({**record, "val_top1": record["val_top1"] + 2 * one_image}))
    with pytest.raises(InputError, match=r"on the validation split, but its record says.*Delete the folder"):
        again(dataset, kept)


@pytest.mark.parametrize("text", ["{half", "[]", "{}"])
def test_a_broken_record_is_named(dataset, kept, never_trained, text):
    (kept / "teacher.json").write_text(text)
    with pytest.raises(InputError, match=r"record '.*teacher\.json' can't be read.*Delete the folder"):
        again(dataset, kept)


def test_a_record_of_another_recipe_is_noticed(dataset, kept, never_trained):
    record = json.loads((kept / "teacher.json").read_text())
    record["recipe"]["seed"] = 5
    (kept / "teacher.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="of another recipe"):
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


def test_a_pretrained_start_is_asked_for_once_and_not_for_a_cached_teacher(dataset, tmp_path, monkeypatch):
    asked = []

    def build(*arguments, pretrained=False, **others):
        asked.append(pretrained)
        return build_network(*arguments, **others)

    monkeypatch.setattr(teachers, "build_network", build)
    first = trained_teacher("resnet8", dataset, SHORT, views="rgb", cache_dir=tmp_path, pretrained=True)
    second = trained_teacher("resnet8", dataset, SHORT, views="rgb", cache_dir=tmp_path, pretrained=True)
    assert asked == [True, False]
    assert "pretrained" in first.source
    assert second.from_cache
