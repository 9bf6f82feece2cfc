from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tmkd_plugin import losses
from tmkd_plugin.baselines.kd import KD, kd_loss
from tmkd_plugin.errors import InputError


def test_hands_the_loss_on():
    assert kd_loss is losses.kd_loss


def test_terms(student, teacher, batch):
    images, labels = batch
    out = KD(student, teacher, temperature=2.0, ce_weight=0.3, kd_weight=0.6).eval()(images, labels)
    torch.testing.assert_close(out["logit_kl"], 0.6 * kd_loss(student(images), teacher(images), 2.0))
    torch.testing.assert_close(out["cross_entropy"], 0.3 * F.cross_entropy(student(images), labels))
    torch.testing.assert_close(out["loss"], out["logit_kl"] + out["cross_entropy"])
    torch.testing.assert_close(out["output"], student(images))


def test_gradcheck(draw):
    student = draw(4, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kd_loss(x, draw(4, 5, seed=2), 4.0), student)


@pytest.mark.parametrize("temperature", [0, -1.0, float("inf"), "4"])
def test_temperature_is_checked_when_it_is_built(student, teacher, temperature):
    with pytest.raises(InputError, match="temperature must be a number above 0"):
        KD(student, teacher, temperature=temperature)
