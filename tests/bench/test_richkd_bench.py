"""RichKD in comparisons: beside TMKD, around it, with CLIP asked once or every batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tmkd_plugin.bench.configuration import configure
from tmkd_plugin.bench.distillers import build_distiller
from tmkd_plugin.bench.preparation import Preparation, prepare
from tmkd_plugin.cli import main
from tmkd_plugin.enhancer import TMKDEnhancer
from tmkd_plugin.errors import InputError
from tmkd_plugin.richkd import RichKDEnhancer
from tmkd_plugin.zoo import build_network


def prepared(image_folder, cache, baseline="kd", enhancer="richkd", **values) -> Preparation:
    flags = {"dataset": str(image_folder), "text": "small_clip", "baseline": baseline, "enhancer": enhancer}
    flags |= {"teacher": "resnet8", "student": "resnet8", "controls": True}
    return prepare(configure(flags, {"image_size": 16, **values}), Path(cache))


@pytest.fixture
def richkd_bench(tiny_bench) -> list[str]:
    """The words of a comparison of KD, TMKD and RichKD, guided by a small CLIP of the images themselves."""
    words = list(tiny_bench)
    words[words.index("--text") + 1] = "small_clip"
    return [*words, "--set", "small_clip.epochs=1"]


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_side_by_side_and_around_each_other(richkd_bench, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*richkd_bench, "--enhancer", "tmkd,richkd,tmkd+richkd", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "KD + TMKD + RichKD" in printed
    results = read(out / "results.json")
    assert [arm["name"] for arm in results["arms"]] == ["kd", "kd+tmkd", "kd+richkd", "kd+tmkd+richkd"]
    pairs = {(pair["baseline"], pair["enhanced"]) for pair in results["comparisons"]}
    assert {("kd", "kd+richkd"), ("kd+tmkd", "kd+richkd")} <= pairs
    terms = {
        arm["name"]: json.loads((out / arm["name"] / "seed0" / "history.jsonl").read_text().splitlines()[0])["losses"]
        for arm in results["arms"]
    }
    assert "feature_contrast" in terms["kd+richkd"]
    assert "feature_kl" not in terms["kd+richkd"]
    assert {"feature_contrast", "feature_kl", "text_contrast"} <= terms["kd+tmkd+richkd"].keys()

    identities = {name: read(out / name / "seed0" / "run.json")["identity"] for name in terms}
    assert identities["kd+richkd"]["clip_sha256"] == identities["kd+tmkd+richkd"]["clip_sha256"]
    assert identities["kd+richkd"]["text_sha256"] is None
    assert "clip_sha256" not in identities["kd+tmkd"]
    assert identities["kd+tmkd"]["text_sha256"] == identities["kd+tmkd+richkd"]["text_sha256"]
    assert identities["kd+richkd"]["settings"]["richkd"]["alpha"] == 0.7


def test_clip_on_every_batch_gives_another_run(richkd_bench, tmp_path, capsys):
    once, every = tmp_path / "once", tmp_path / "every"
    words = [*richkd_bench, "--enhancer", "richkd", "--seeds", "1", "--set", "richkd.clip_logit_scale=100"]
    assert main([*words, "--out", str(once)]) == 0
    assert "asked about every training image once" in capsys.readouterr().out
    assert main([*words, "--set", "richkd.clip_images=augmented", "--out", str(every)]) == 0
    assert "asked about every batch as the teacher sees it" in capsys.readouterr().out
    assert (once / "kd" / "seed0" / "run.json").read_bytes() == (every / "kd" / "seed0" / "run.json").read_bytes()
    records = [read(folder / "kd+richkd" / "seed0" / "run.json") for folder in (once, every)]
    assert records[0]["identity"]["clip_sha256"] != records[1]["identity"]["clip_sha256"]
    assert records[0]["files_sha256"] != records[1]["files_sha256"]


def test_another_answer_of_clip_is_another_run(richkd_bench, tmp_path, capsys):
    out = tmp_path / "out"
    words = [*richkd_bench, "--enhancer", "richkd", "--seeds", "1", "--out", str(out)]
    assert main(words) == 0
    (out / "results.json").unlink()
    assert main([*words, "--set", "small_clip.seed=1"]) == 2
    assert "small_clip.seed" in capsys.readouterr().err
    config = read(out / "config.json")
    config["config"]["small_clip"]["seed"]["value"] = 1
    (out / "config.json").write_text(json.dumps(config))
    assert main([*words, "--set", "small_clip.seed=1"]) == 2
    assert "clip_sha256" in capsys.readouterr().err, "the run knows, whatever the folder says"


def test_the_outermost_enhancer_comes_first_in_the_name(image_folder, cache):
    preparation = prepared(image_folder, cache, enhancer="tmkd+richkd,richkd+tmkd")
    text = guidance(preparation)
    teacher = build_network("resnet8", 3).eval()
    arms = {arm.name: arm for arm in preparation.plan.arms}
    outer = build_distiller(preparation, arms["kd+tmkd+richkd"], teacher, text, 0)
    assert (type(outer), type(outer.distiller)) == (TMKDEnhancer, RichKDEnhancer)
    other = build_distiller(preparation, arms["kd+richkd+tmkd"], teacher, text, 0)
    assert (type(other), type(other.distiller)) == (RichKDEnhancer, TMKDEnhancer)


def guidance(preparation):
    from tmkd_plugin.clip_guidance import with_stand_in
    from tmkd_plugin.text_teacher import TextEmbeddings
    from tmkd_plugin.views import VIEW_NAMES

    text = TextEmbeddings(torch.ones(3, 3, 4), "per view", "stand-in", views=VIEW_NAMES)
    return with_stand_in(text, preparation.dataset.train.ids, preparation.dataset.class_names)


@pytest.mark.parametrize(
    ("enhancer", "values", "expected"),
    [
        ("richkd", {}, (3.0, 3.0)),
        ("richkd", {"richkd": {"logit_weight": 0.5, "temperature": 2}}, (0.5, 2.0)),
        ("richkd", {"richkd": {"variant": "F"}}, None),
        ("richkd,tmkd", {}, (3.0, 3.0)),
        ("tmkd,richkd", {}, (1.0, 4.0)),
        ("tmkd+richkd", {}, (3.0, 3.0)),
    ],
)
def test_the_control_has_the_logit_kl_of_the_first_enhancer(image_folder, cache, enhancer, values, expected):
    preparation = prepared(image_folder, cache, "sp", enhancer, **values)
    found = [arm for arm in preparation.plan.arms if arm.control == "logit_kl"]
    if expected is None:
        assert not found
        return
    control = build_distiller(preparation, found[0], build_network("resnet8", 3).eval(), guidance(preparation), 0)
    assert (control.weight, control.temperature) == expected


def test_what_cannot_guide_richkd_is_refused_before_training(
    image_folder, text_file, cache, tiny_bench, tmp_path, capsys
):
    assert main([*tiny_bench, "--enhancer", "richkd", "--out", str(tmp_path / "out")]) == 2
    assert "image encoder" in capsys.readouterr().err
    with pytest.raises(InputError, match="Did you mean 'richkd'"):
        prepared(image_folder, cache, enhancer="ritchkd")
    with pytest.raises(InputError, match="around itself"):
        prepared(image_folder, cache, enhancer="tmkd+tmkd")
    with pytest.raises(InputError, match="clip_images"):
        prepared(image_folder, cache, richkd={"clip_images": "onse"})
    with pytest.raises(InputError, match="alpha"):
        prepared(image_folder, cache, richkd={"alpha": 1.5})
