"""What holds for every baseline, and how baselines are found by name."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tmkd_plugin.baselines import BASELINES, baseline_class, build_baseline
from tmkd_plugin.distiller import Distiller
from tmkd_plugin.errors import InputError

TERMS = {"kd": "logit_kl", "rkd": "rkd", "sp": "sp", "catkd": "cat", "tekap": "tekap"}
every_baseline = pytest.mark.parametrize("name", sorted(BASELINES))


def test_the_names():
    assert set(BASELINES) == set(TERMS)


@every_baseline
def test_settings_are_the_arguments_with_their_defaults(name):
    found = baseline_class(name)
    parameters = inspect.signature(found).parameters
    hyper_parameters = {
        key: p.default for key, p in parameters.items() if key not in ("student", "teacher", "input_size")
    }
    assert hyper_parameters == {key: setting.value for key, setting in found.SETTINGS.items()}
    assert all(setting.source and setting.meaning for setting in found.SETTINGS.values())
    assert all(p.kind is p.KEYWORD_ONLY for key, p in parameters.items() if key not in ("student", "teacher"))


@every_baseline
def test_logit_kl_is_declared(name):
    found = baseline_class(name)
    assert found.has_logit_kl == (name in ("kd", "tekap"))
    assert (found.LOGIT_KL_WEIGHT is not None) == found.has_logit_kl


@pytest.mark.parametrize(("name", "weight"), [("kd", "kd_weight"), ("tekap", "tekap_weight")])
def test_a_logit_kl_of_weight_0_is_none_and_not_computed(name, weight, student, teacher, batch):
    assert build_baseline(name, student, teacher).has_logit_kl
    without = build_baseline(name, student, teacher, **{weight: 0})
    assert not without.has_logit_kl
    assert set(without(*batch)) == {"loss", "output", "cross_entropy"}


@every_baseline
def test_one_step(name, student, teacher, batch):
    distiller = build_baseline(name, student, teacher)
    assert isinstance(distiller, Distiller)
    statistics = teacher.norm.running_mean.clone()
    calls = []
    student.register_forward_hook(lambda *_: calls.append("student"))
    teacher.register_forward_hook(lambda *_: calls.append("teacher"))
    out = distiller.train()(*batch)
    assert sorted(calls) == ["student", "teacher"]
    assert set(out) == {"loss", "output", "cross_entropy", TERMS[name]}
    assert out["loss"].shape == ()
    assert out["output"].shape == (8, 5)
    torch.testing.assert_close(out["loss"], out["cross_entropy"] + out[TERMS[name]])
    out["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert not teacher.training
    assert torch.equal(teacher.norm.running_mean, statistics)
    assert not any(key.startswith("teacher") for key in distiller.state_dict())


@every_baseline
def test_probabilities_as_labels(name, student, teacher, batch):
    images, labels = batch
    distiller = build_baseline(name, student, teacher).eval()
    plain = distiller(images, labels)
    one_hot = distiller(images, F.one_hot(labels, 5).double())
    torch.testing.assert_close(plain["loss"], one_hot["loss"])
    mixed = distiller(images, torch.full((8, 5), 0.2))["cross_entropy"]
    assert mixed.item() != pytest.approx(plain["cross_entropy"].item())


@every_baseline
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_float32_under_autocast(name, student, teacher, batch, dtype):
    distiller = build_baseline(name, student, teacher)
    with torch.autocast("cpu", dtype=dtype):
        out = distiller(*batch)
        out["loss"].backward()
    assert all(out[key].dtype == torch.float32 for key in ("loss", "cross_entropy", TERMS[name]))
    assert out["loss"].isfinite()
    assert all(p.grad.isfinite().all() for p in student.parameters())


@every_baseline
def test_a_last_batch_of_one_does_not_end_training(name, student, teacher, batch):
    images, labels = batch
    distiller = build_baseline(name, student, teacher).eval()
    out = distiller(images[:1], labels[:1])
    out["loss"].backward()
    assert out["loss"].isfinite()
    assert all(p.grad.isfinite().all() for p in student.parameters())


@every_baseline
@pytest.mark.parametrize("dtype", [torch.float64])
def test_float64_networks(name, student, teacher, batch, dtype):
    out = build_baseline(name, student.to(dtype), teacher.to(dtype))(batch[0].to(dtype), batch[1])
    assert out["loss"].dtype == dtype


@every_baseline
def test_weights_are_checked_when_it_is_built(name, student, teacher):
    with pytest.raises(InputError, match="ce_weight must be a number at least 0, but is -1"):
        build_baseline(name, student, teacher, ce_weight=-1)


def test_rkd_needs_pooled_features(student):
    without_linear_layer = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match="has no pooled features"):
        build_baseline("rkd", student, without_linear_layer)


class TestNames:
    def test_unknown_name(self, student, teacher):
        with pytest.raises(InputError, match=r"Unknown baseline 'cat-kd'. Did you mean 'catkd'.*package.module:Class"):
            build_baseline("cat-kd", student, teacher)

    def test_unknown_setting(self, student, teacher):
        with pytest.raises(InputError, match=r"Unknown setting of .*'kd' 'temprature'. Did you mean 'temperature'"):
            build_baseline("kd", student, teacher, temprature=3)

    def test_settings_reach_the_class(self, student, teacher):
        assert build_baseline("KD", student, teacher, temperature=3.0).temperature == 3.0


MINE = """
from torch import nn

class Mine(nn.Module):
    def __init__(self, student, teacher, sharpness, power=2):
        super().__init__()
        self.student, self.teacher, self.sharpness, self.power = student, teacher, sharpness, power

class Anything(nn.Module):
    def __init__(self, **values):
        super().__init__()
        self.values = values

class Strange(nn.Module):
    def __init__(self, networks):
        super().__init__()

NUMBER = 3
"""


class TestOnesOwn:
    @pytest.fixture(autouse=True)
    def module(self, tmp_path, monkeypatch):
        (tmp_path / "own_methods_of_test.py").write_text(MINE)
        (tmp_path / "broken_methods_of_test.py").write_text("import a_library_that_nobody_has")
        monkeypatch.syspath_prepend(tmp_path)
        yield
        for name in ("own_methods_of_test", "broken_methods_of_test"):
            sys.modules.pop(name, None)

    def test_is_called_with_student_teacher_and_settings(self, student, teacher):
        mine = build_baseline("own_methods_of_test:Mine", student, teacher, sharpness=3)
        assert (mine.student, mine.teacher, mine.sharpness, mine.power) == (student, teacher, 3, 2)
        values = build_baseline("own_methods_of_test:Anything", student, teacher, whatever=1).values
        assert values == {"student": student, "teacher": teacher, "whatever": 1}

    @pytest.mark.parametrize(
        ("name", "settings", "message"),
        [
            ("own_methods_of_test:Mine", {}, "needs a value for sharpness"),
            ("own_methods_of_test:Mine", {"sharpness": 1, "pwoer": 1}, "'pwoer'. Did you mean 'power'"),
            ("own_methods_of_test:Mein", {}, "Unknown class in own_methods_of_test 'Mein'. Did you mean 'Mine'"),
            (
                "own_methods_of_test:Strange",
                {},
                r"called as Strange\(student=..., teacher=..., .*arguments are \(networks\)",
            ),
            ("own_methods_of_test:NUMBER", {}, "must be a class, but is int"),
            (
                "no_such_module_here:Mine",
                {},
                "no module 'no_such_module_here'. Install it or put its folder on PYTHONPATH",
            ),
            ("broken_methods_of_test:Mine", {}, "It imports 'a_library_that_nobody_has', which is not installed"),
            (":Mine", {}, "package.module:Class, but ':Mine' was given"),
        ],
    )
    def test_errors(self, student, teacher, name, settings, message):
        with pytest.raises(InputError, match=message):
            build_baseline(name, student, teacher, **settings)


def test_importing_the_registry_imports_no_heavy_library():
    heavy = ["cv2", "open_clip", "timm", "torchvision", "sklearn", "rich", "scipy", "torchmetrics", "pydantic"]
    modules = [path.partition(":")[0] for path in BASELINES.values()]
    code = f"import sys, {', '.join(modules)}; print([m for m in {heavy} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
