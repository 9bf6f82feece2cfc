"""Values and gradients equal the official implementations' on every recording."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tmkd_plugin.baselines.catkd import binarize, cat_loss, class_activation_maps, select_classes
from tmkd_plugin.baselines.kd import kd_loss
from tmkd_plugin.baselines.rkd import rkd_loss
from tmkd_plugin.baselines.sp import sp_loss
from tmkd_plugin.baselines.tekap import tekap_loss

NAMES = sorted(path.stem for path in (Path(__file__).parents[1] / "recordings").glob("*.npz"))


def named(prefix, distiller=False):
    found = [name for name in NAMES if name.startswith(prefix) and ("_distiller_" in name) == distiller]
    assert found
    return found


def leaf(recording, key):
    return recording[key].requires_grad_()


def test_every_recording_is_compared():
    compared = [n for p in ("kd_", "rkd_", "sp_", "catkd_b", "tekap_") for n in named(p)]
    compared += [n for p in ("rkd_", "sp_", "catkd_") for n in named(p, distiller=True)]
    compared += named("catkd_conversion")
    assert sorted(compared) == NAMES


@pytest.mark.parametrize("name", named("kd_"))
def test_kd(recording, name):
    recorded = recording(name)
    student = leaf(recorded, "logits_student")
    loss = kd_loss(student, recorded["logits_teacher"], recorded.scalar("temperature"))
    recorded.assert_value(loss)
    recorded.assert_value(loss, "loss_repdistiller")
    (gradient,) = torch.autograd.grad(loss, student, retain_graph=True)
    recorded.assert_gradient(gradient, "grad_logits_student")
    recorded.assert_gradient(gradient, "grad_repdistiller")

    step = recorded.scalar("ce_weight") * F.cross_entropy(student, recorded["target"])
    step = step + recorded.scalar("kd_weight") * loss
    recorded.assert_value(step, "dist_total")
    recorded.assert_gradient(torch.autograd.grad(step, student)[0], "dist_grad_logits_student")


@pytest.mark.parametrize("name", named("rkd_"))
@pytest.mark.parametrize("part", ["", "_distance", "_angle"])
def test_rkd(recording, name, part):
    recorded = recording(name)
    student = leaf(recorded, "feat_student")
    weights = {
        "": (recorded.scalar("distance_weight"), recorded.scalar("angle_weight")),
        "_distance": (1, 0),
        "_angle": (0, 1),
    }
    loss = rkd_loss(
        student, recorded["feat_teacher"], *weights[part], recorded.scalar("squared"), recorded.scalar("eps")
    )
    recorded.assert_value(loss, f"loss{part}")
    loss.backward()
    recorded.assert_gradient(student.grad, f"grad{part}" if part else "grad_feat_student")
    if f"loss{part}_lenscloth" in recorded:
        recorded.assert_value(loss, f"loss{part}_lenscloth")
        recorded.assert_gradient(student.grad, f"grad{part}_lenscloth")
    if not part:
        recorded.assert_value(loss, "loss_repdistiller")
        recorded.assert_gradient(student.grad, "grad_repdistiller")


@pytest.mark.parametrize("name", named("rkd_", distiller=True))
def test_rkd_step(recording, name):
    recorded = recording(name)
    pooled, logits = leaf(recorded, "pooled_student"), leaf(recorded, "logits_student")
    relations = rkd_loss(
        pooled, recorded["pooled_teacher"], recorded.scalar("distance_weight"), recorded.scalar("angle_weight")
    )
    term = recorded.scalar("feat_weight") * relations
    recorded.assert_value(term, "dist_loss_kd")
    step = recorded.scalar("ce_weight") * F.cross_entropy(logits, recorded["target"]) + term
    recorded.assert_value(step, "dist_total")
    step.backward()
    recorded.assert_gradient(pooled.grad, "grad_pooled_student")
    recorded.assert_gradient(logits.grad, "grad_logits_student")


@pytest.mark.parametrize("name", named("sp_"))
def test_sp(recording, name):
    recorded = recording(name)
    layers = range(recorded.scalar("n_layers"))
    students = [leaf(recorded, f"feat_student_{i}") for i in layers]
    teachers = [recorded[f"feat_teacher_{i}"] for i in layers]
    loss = sp_loss(students, teachers)
    recorded.assert_value(loss)
    loss.backward()
    for i, student in enumerate(students):
        zero_sample = (2,) if name == "sp_b6_zero_sample" else None
        recorded.assert_gradient(student.grad, f"grad_feat_student_{i}", but=zero_sample)
        expected = recorded["loss_per_layer_repdistiller"][i]
        torch.testing.assert_close(sp_loss(students[i], teachers[i]).detach(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", named("sp_", distiller=True))
def test_sp_step(recording, name):
    recorded = recording(name)
    student, logits = leaf(recorded, "last_feat_student"), leaf(recorded, "logits_student")
    term = recorded.scalar("feat_weight") * sp_loss(student, recorded["last_feat_teacher"])
    recorded.assert_value(term, "dist_loss_kd")
    step = recorded.scalar("ce_weight") * F.cross_entropy(logits, recorded["target"]) + term
    recorded.assert_value(step, "dist_total")
    step.backward()
    recorded.assert_gradient(student.grad, "grad_last_feat_student")
    recorded.assert_gradient(logits.grad, "grad_logits_student")


@pytest.mark.parametrize("name", named("catkd_b"))
def test_catkd(recording, name):
    recorded = recording(name)
    student = leaf(recorded, "cam_student")
    loss = cat_loss(student, recorded["cam_teacher"], recorded.scalar("cam_resolution"), recorded.scalar("normalize"))
    recorded.assert_value(loss)
    loss.backward()
    zero_plane = (1, 3) if name == "catkd_b6_zero_plane_norm" else None
    recorded.assert_gradient(student.grad, "grad_cam_student", but=zero_plane)


@pytest.mark.parametrize("name", named("catkd_", distiller=True))
def test_catkd_step(recording, name):
    recorded = recording(name)
    student, teacher = leaf(recorded, "cam_student"), recorded["cam_teacher"]
    classes = None
    if recorded.scalar("partial"):
        classes = select_classes(recorded["logits_teacher"], recorded.scalar("cams_nums"), recorded.scalar("strategy"))
    if recorded.scalar("binarize"):
        teacher = binarize(teacher)
    term = recorded.scalar("cat_weight") * cat_loss(
        student, teacher, recorded.scalar("cam_resolution"), recorded.scalar("normalize"), classes
    )
    recorded.assert_value(term, "dist_loss_CAT")
    step = term
    if not recorded.scalar("only_cat"):
        # The official converted networks' logits are the spatial mean of their maps.
        cross_entropy = F.cross_entropy(student.mean(dim=(2, 3)), recorded["target"])
        step = step + recorded.scalar("ce_weight") * cross_entropy
    recorded.assert_value(step, "dist_total")
    step.backward()
    recorded.assert_gradient(student.grad, "grad_cam_student")


@pytest.mark.parametrize("name", named("catkd_conversion"))
def test_class_activation_maps(recording, name):
    recorded = recording(name)
    cams = class_activation_maps(recorded["feature_map"], recorded["fc_weight"])
    torch.testing.assert_close(cams, recorded["cam"], rtol=1e-9, atol=1e-12)
    mean = cams.mean(dim=(2, 3))
    torch.testing.assert_close(mean, recorded["logits_converted"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(mean + recorded["fc_bias"], recorded["logits_original"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", named("tekap_"))
def test_tekap(recording, name):
    recorded = recording(name)
    student = leaf(recorded, "logits_student")
    loss = tekap_loss(
        student,
        recorded["logits_teacher"],
        recorded.scalar("temperature"),
        recorded["noise"],
        recorded.scalar("n_augmented"),
        recorded.scalar("noise_mix"),
        recorded.scalar("aug_weight"),
    )
    recorded.assert_value(loss)
    loss.backward()
    recorded.assert_gradient(student.grad, "grad_logits_student")
