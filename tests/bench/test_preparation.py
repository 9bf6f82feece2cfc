"""What is checked and built before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tmkd_plugin.bench.configuration import configure
from tmkd_plugin.bench.distillers import build_distiller
from tmkd_plugin.bench.preparation import Preparation, prepare
from tmkd_plugin.errors import InputError
from tmkd_plugin.zoo import build_network


def prepared(image_folder, text_file, cache, baseline="kd", **values) -> Preparation:
    flags = {"dataset": str(image_folder), "text": str(text_file), "baseline": baseline, "controls": True}
    flags |= {"teacher": "resnet8", "student": "resnet8"}
    return prepare(configure(flags, {"image_size": 16, **values}), Path(cache))


def test_all_arms_of_a_seed_start_alike_and_leave_the_teacher_alone(image_folder, text_file, cache):
    preparation = prepared(image_folder, text_file, cache, "rkd,catkd")
    teacher = build_network("resnet8", 3, seed=9).eval()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    built = [build_distiller(preparation, arm, teacher, preparation.text, 5) for arm in preparation.plan.arms]
    assert len(built) == 8
    start = built[0].student.state_dict()
    for distiller in built[1:]:
        assert all(torch.equal(start[name], value) for name, value in distiller.student.state_dict().items())
        assert distiller.teacher is not teacher
    other = build_distiller(preparation, preparation.plan.arms[0], teacher, preparation.text, 6).student.state_dict()
    assert not torch.equal(start["fc.weight"], other["fc.weight"])
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_heads_depend_on_the_seed(image_folder, text_file, cache):
    preparation = prepared(image_folder, text_file, cache)
    arm, teacher = preparation.plan.arms[1], build_network("resnet8", 3).eval()
    heads = [build_distiller(preparation, arm, teacher, preparation.text, seed).fusion_table() for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_the_control_takes_weight_and_temperature_from_the_enhancer(image_folder, text_file, cache):
    preparation = prepared(image_folder, text_file, cache, "sp", tmkd={"logit_weight": 0.5, "temperature": 2})
    (arm,) = [arm for arm in preparation.plan.arms if arm.control == "logit_kl"]
    control = build_distiller(preparation, arm, build_network("resnet8", 3).eval(), preparation.text, 0)
    assert (control.weight, control.temperature) == (0.5, 2.0)


def test_a_baseline_whose_logit_kl_has_no_weight_gets_one_and_the_control(image_folder, text_file, cache):
    preparation = prepared(image_folder, text_file, cache, "kd", kd={"kd_weight": 0})
    assert "logit_kl" in [arm.control for arm in preparation.plan.arms]


@pytest.mark.parametrize(
    ("given", "baseline", "without_effect"),
    [
        ({"rkd": {"distance_weight": 2.0, "eps": 1e-9}}, "kd", ["rkd.distance_weight", "rkd.eps"]),
        ({"rkd": {"distance_weight": 2.0}}, "kd,rkd", []),
        ({"richkd": {"alpha": 0.5}, "tmkd": {"feature_weight": 0.5}}, "kd", ["richkd.alpha"]),
        ({"small_clip": {"epochs": 2}, "temperature": 2.0}, "kd", ["small_clip.epochs"]),
        ({"enhancer": "none"}, "kd", []),
    ],
)
def test_what_is_set_for_nothing_is_known(image_folder, text_file, given, baseline, without_effect):
    flags = {"dataset": str(image_folder), "text": str(text_file), "baseline": baseline}
    assert configure(flags, given).without_effect == without_effect


def test_no_logit_kl_no_control(image_folder, text_file, cache):
    preparation = prepared(image_folder, text_file, cache, "sp", tmkd={"logit_weight": 0})
    assert [arm.name for arm in preparation.plan.arms] == ["sp", "sp+tmkd", "sp@rgb_teacher"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tmkd": {"feature_weight": -1}}, r"KD \+ TMKD: feature_weight"),
        ({"student": "timm/vit_tiny_patch16_224", "baseline": "catkd", "image_size": 16}, "CAT-KD: .*feature map"),
        ({"device": "cuad"}, "device='cuad' can't be used"),
    ],
)
def test_refused_before_any_training(image_folder, text_file, cache, values, message):
    with pytest.raises(InputError, match=message):
        prepared(image_folder, text_file, cache, **values)


def test_text_of_other_classes(image_folder, tmp_path, cache):
    import numpy as np

    path = tmp_path / "other.npz"
    np.savez(path, emb=np.ones((3, 4), np.float32), names=np.array(["blue", "green", "orange"]))
    with pytest.raises(InputError, match="orange"):
        prepared(image_folder, path, cache)
