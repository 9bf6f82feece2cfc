"""The control with a logit KL: the baseline's own terms untouched, one more, from the RGB view alone."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import TinyConvNet
from torch import nn

from tmkd_plugin.baselines import build_baseline
from tmkd_plugin.bench.controls import WithLogitKL
from tmkd_plugin.errors import InputError
from tmkd_plugin.randomness import generator_for

IMAGES = torch.randn(5, 3, 8, 8, generator=generator_for(0, "images of a test"))
LABELS = torch.tensor([0, 1, 2, 3, 0])


def test_adds_the_kl_of_the_teachers_own_logits():
    student, teacher = TinyConvNet(seed=1).eval(), TinyConvNet(seed=2).eval()
    baseline = build_baseline("sp", student, teacher)
    own = baseline(IMAGES, LABELS)
    controlled = WithLogitKL(baseline, weight=0.7, temperature=3.0, input_size=8)(IMAGES, LABELS)
    p, q = (torch.softmax(network(IMAGES).detach().double() / 3, dim=1) for network in (teacher, student))
    kl = sum(float(p[b, k] * (p[b, k] / q[b, k]).log()) for b in range(5) for k in range(4))
    expected = 0.7 * 9 * kl / 5
    assert controlled["logit_kl"].item() == pytest.approx(expected, rel=1e-4)
    assert controlled["loss"].item() == pytest.approx(own["loss"].item() + expected, rel=1e-5)
    assert torch.equal(controlled["sp"], own["sp"])
    terms = [value for name, value in controlled.items() if name not in ("loss", "output")]
    assert torch.stack(terms).sum().item() == pytest.approx(controlled["loss"].item(), rel=1e-6)


def test_trains_the_student_and_not_the_teacher():
    student, teacher = TinyConvNet(seed=1), TinyConvNet(seed=2)
    control = WithLogitKL(build_baseline("rkd", student, teacher), weight=1.0, temperature=4.0, input_size=8)
    trained = {id(parameter) for parameter in control.trainable_parameters()}
    assert trained == {id(parameter) for parameter in student.parameters()}
    control(IMAGES, LABELS)["logit_kl"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student.fc.weight.grad.abs().sum() > 0


def test_needs_the_students_logits():
    class Scalar(nn.Module):
        def __init__(self):
            super().__init__()
            self.student, self.teacher = TinyConvNet(seed=1), TinyConvNet(seed=2)

        def forward(self, images, labels):
            return self.student(images).square().mean()

    with pytest.raises(InputError, match="Scalar returns no student logits"):
        WithLogitKL(Scalar(), weight=1.0, temperature=4.0, input_size=8)(IMAGES, LABELS)
