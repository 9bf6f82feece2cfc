"""The teachers of a finished comparison, built again: the numbers are those of the run, and no label enters a classifier."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from finished_runs import copied, make_run

from tmkd_plugin.baselines import build_baseline
from tmkd_plugin.bench.figures.finished_run import load_images, read_run
from tmkd_plugin.bench.fused_teachers import TeacherChoice, label_gathered, teachers_of
from tmkd_plugin.bench.view_fusion import FusedViews, LabelGathered
from tmkd_plugin.cli import main
from tmkd_plugin.data import evaluation_batches
from tmkd_plugin.enhancer import TMKDEnhancer
from tmkd_plugin.errors import InputError
from tmkd_plugin.training.metrics import evaluate, scores_of
from tmkd_plugin.zoo import build_network


@pytest.fixture(scope="module")
def finished(tmp_path_factory, image_folder, text_file, cache):
    return make_run(tmp_path_factory.mktemp("run") / "finished", image_folder, text_file, cache)


@pytest.fixture(scope="module")
def with_clip(tmp_path_factory, image_folder):
    """KD with TMKD, RichKD and RichKD around TMKD, a small CLIP, and the cache that belongs to them."""
    root = tmp_path_factory.mktemp("clip")
    options = [
        "bench",
        "--dataset",
        str(image_folder),
        "--teacher",
        "resnet8",
        "--student",
        "resnet8",
        "--threads",
        "1",
    ]
    options += [
        "--enhancer",
        "tmkd,richkd,richkd+tmkd",
        "--text",
        "small_clip",
        "--seeds",
        "1",
        "--quiet",
        "--out",
        str(root / "run"),
    ]
    for value in ("image_size=32", "training.epochs=1", "teacher_training.epochs=1", "training.batch_size=12"):
        options += ["--set", value]
    options += ["--set", "small_clip.epochs=1", "--set", "richkd.alpha=0.6", "--set", "richkd.clip_logit_scale=50"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMKD_CACHE", str(root / "cache"))
        assert main(options) == 0
    return root


@pytest.fixture
def batch(finished):
    dataset = load_images(read_run(finished))
    return next(iter(evaluation_batches(dataset.test, dataset.mean, dataset.std, batch_size=12)))


def scores(network, dataset):
    return evaluate(network, dataset.test, dataset.mean, dataset.std, 5)[0].top1


def test_single_and_average_score_what_the_run_says(finished, cache):
    run = read_run(finished)
    dataset = load_images(run)
    found = teachers_of(run, cache)
    assert [(each.name, each.seed, each.arm) for each in found] == [
        ("single", None, None),
        ("average", None, None),
        ("tmkd", 0, "kd+tmkd"),
        ("tmkd", 1, "kd+tmkd"),
    ]
    recorded = run.results["teachers"][0]["test_top1"]
    assert scores(found[0].network, dataset) == pytest.approx(recorded["rgb"])
    assert scores(found[1].network, dataset) == pytest.approx(recorded["average"])
    for each in found:
        assert not any(module.training for module in each.network.modules())
        assert not any(parameter.requires_grad for parameter in each.network.parameters())


def test_weights_are_those_of_the_best_epoch(finished, cache):
    run = read_run(finished)
    arm = run.arm("kd+tmkd")
    for teacher in teachers_of(run, cache)[2:]:
        best = next(cell["best"] for cell in arm["seeds"] if cell["seed"] == teacher.seed)
        recorded = run.history(arm, teacher.seed)[best["epoch"] - 1]["fusion_weights"]
        for view, weight in zip(teacher.network.views, teacher.network.weights.tolist(), strict=True):
            assert weight == pytest.approx(recorded[view], abs=1e-6)
            assert f"{view} {weight:.3f}" in teacher.note


def test_label_gathered_is_what_training_saw(finished, cache, text_file, batch):
    """The fused logits of the enhancer itself, with the heads of the run."""
    from safetensors.torch import load_file

    run = read_run(finished)
    dataset = load_images(run)
    for gathered in label_gathered(run, cache, dataset=dataset):
        teacher = gathered.network.teacher
        distiller = build_baseline("kd", build_network("resnet8", 3, image_size=16), teacher)
        enhancer = TMKDEnhancer(
            distiller, dataset.class_names, text=str(text_file), mean=dataset.mean, std=dataset.std, seed=9
        ).eval()
        heads = load_file(run.cell(run.arm("kd+tmkd"), gathered.seed) / "heads.safetensors")
        enhancer.load_state_dict(heads, strict=False)
        with torch.no_grad():
            expected = enhancer.fuse(enhancer.views_forward(batch.images), batch.labels)
        torch.testing.assert_close(gathered.network(batch.images, batch.labels), expected, rtol=0, atol=1e-6)
        with pytest.raises(InputError, match="give the labels"):
            gathered.network(batch.images)


class PerChannel(torch.nn.Module):
    """The mean of each channel as logits: what a view does to an image can be seen."""

    def forward(self, images):
        return images.mean(dim=(2, 3)), "features"


def test_fusion_is_the_sum_written_out(batch):
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    views, weights = ("rgb", "high_frequency", "edge"), torch.tensor([0.2, 0.5, 0.3])
    network = FusedViews(PerChannel(), weights, views, mean, std)
    each = [FusedViews(PerChannel(), torch.ones(1), (view,), mean, std)(batch.images).double() for view in views]
    assert not torch.allclose(each[0], each[2], atol=1e-3)
    expected = 0.2 * each[0] + 0.5 * each[1] + 0.3 * each[2]
    torch.testing.assert_close(network(batch.images).double(), expected, rtol=0, atol=1e-6)
    table = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    gathered = LabelGathered(PerChannel(), table, views, mean, std)(batch.images, batch.labels)
    for row, label in enumerate(batch.labels.tolist()):
        torch.testing.assert_close(gathered[row].double(), each[label][row], rtol=0, atol=1e-6)


def test_richkd_is_the_fusion_written_out(with_clip):
    from tmkd_plugin.clip_teacher import load_clip_teacher
    from tmkd_plugin.pixels import to_pixels

    run, cache = read_run(with_clip / "run"), with_clip / "cache"
    dataset = load_images(run)
    batch = next(iter(evaluation_batches(dataset.test, dataset.mean, dataset.std, batch_size=12)))
    found = {each.name: each for each in teachers_of(run, cache, dataset=dataset)}
    (folder,) = cache.glob("small-clip-*")
    cosines = load_clip_teacher(folder, dataset.class_names)(to_pixels(batch.images, dataset.mean, dataset.std)).cosines
    expected = 0.6 * found["single"].network(batch.images) + 0.4 * 50 * cosines
    torch.testing.assert_close(found["richkd"].network(batch.images), expected, rtol=0, atol=1e-5)
    assert "small_clip" in found["richkd"].note
    assert str(with_clip) not in found["richkd"].note
    without = teachers_of(run, cache, dataset=dataset, choice=TeacherChoice(richkd=False))
    assert "richkd" not in [each.name for each in without]


def test_tmkd_inside_another_enhancer(with_clip):
    from safetensors.torch import load_file

    run, cache = read_run(with_clip / "run"), with_clip / "cache"
    usual = teachers_of(run, cache)
    assert [each.arm for each in usual] == [None, None, "kd+tmkd", "kd+richkd"]
    inside = teachers_of(run, cache, choice=TeacherChoice(arms=["kd+richkd+tmkd"], richkd=False))[-1]
    assert inside.arm == "kd+richkd+tmkd"
    assert "CLIP's image encoder is left out" in inside.note
    heads = load_file(run.cell(run.arm(inside.arm), 0) / "heads.safetensors")
    assert any(name.startswith("distiller.heads.weight_net") for name in heads)
    assert not torch.equal(inside.network.weights, usual[2].network.weights)


def test_the_small_clip_is_trained_again_where_it_is_gone(with_clip, tmp_path):
    run = read_run(with_clip / "run")
    shutil.copytree(with_clip / "cache" / "teachers", tmp_path / "teachers")
    said = []
    found = teachers_of(run, tmp_path, say=said.append)
    assert any("small CLIP, epoch 1/1" in line for line in said)
    assert found[-1].name == "richkd"


def test_variants_and_plain_averages(finished, cache, tmp_path):
    def change(results):
        results["config"]["tmkd"]["fusion"] = {"value": "average", "source": "ours"}

    run = read_run(copied(finished, tmp_path / "run", change))
    for each in teachers_of(run, cache)[2:]:
        np.testing.assert_allclose(each.network.weights, [1 / 3] * 3, rtol=1e-6)


def test_logits_of_the_rgb_view_alone(finished, cache, tmp_path):
    def change(results):
        results["config"]["tmkd"]["logit_source"] = {"value": "rgb", "source": "ours"}

    run = read_run(copied(finished, tmp_path / "run", change))
    assert teachers_of(run, cache)[2].network.weights.tolist() == [1, 0, 0]


def test_says_what_is_missing(finished, cache, tmp_path, with_clip):
    run = read_run(finished)
    with pytest.raises(InputError, match=r"is not in .*teachers. Set TMKD_CACHE"):
        teachers_of(run, tmp_path)
    with pytest.raises(InputError, match="no finished TMKD arm"):
        teachers_of(run, cache, choice=TeacherChoice(arms=["kd"]))
    with pytest.raises(InputError, match="Did you mean 'kd\\+tmkd'"):
        teachers_of(run, cache, choice=TeacherChoice(arms=["kd+tmdk"]))
    with pytest.raises(InputError, match="needs CLIP's image encoder"):
        teachers_of(run, cache, choice=TeacherChoice(richkd=True))


def test_refuses_another_text_teacher(finished, cache, tmp_path):
    other = tmp_path / "text.npz"
    draw = np.random.default_rng(5)
    np.savez(other, emb=draw.normal(size=(3, 3, 12)).astype(np.float32), names=np.array(["blue", "green", "red"]))

    def change(results):
        results["config"]["text"]["value"] = str(other)

    with pytest.raises(InputError, match=r"can't be made again.*is not what it was"):
        teachers_of(read_run(copied(finished, tmp_path / "run", change)), cache)
    np.savez(other, emb=draw.normal(size=(3, 3, 7)).astype(np.float32), names=np.array(["blue", "green", "red"]))
    with pytest.raises(InputError, match="does not fit the text embeddings"):
        teachers_of(read_run(tmp_path / "run"), cache)


def test_refuses_damaged_heads(finished, cache, tmp_path):
    folder = copied(finished, tmp_path / "run")
    (folder / "kd+tmkd" / "seed1" / "heads.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match=r"heads.*can't be read"):
        teachers_of(read_run(folder), cache)


def test_a_checkpoint_must_be_what_it_was(finished, cache, tmp_path):
    run = read_run(finished)
    (weights,) = [
        path
        for path in cache.rglob("teacher.safetensors")
        if json.loads((path.parent / "teacher.json").read_text())["weights_sha256"]
        == run.results["teachers"][0]["weights_sha256"]
    ]
    file = tmp_path / "teacher.safetensors"
    shutil.copy(weights, file)

    def change(results):
        results["config"]["teacher_checkpoint"] = {"value": str(file), "source": "command line"}

    changed = read_run(copied(finished, tmp_path / "run", change))
    dataset = load_images(changed)
    found = teachers_of(changed, cache, dataset=dataset)
    labels = dataset.test.labels
    logits = evaluate(found[0].network, dataset.test, dataset.mean, dataset.std, 12)[1]
    assert scores_of(logits, labels).top1 == pytest.approx(run.results["teachers"][0]["test_top1"]["rgb"])
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(InputError, match="missing or not what it was"):
        teachers_of(changed, cache, dataset=dataset)
