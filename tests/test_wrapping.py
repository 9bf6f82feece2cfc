"""Three lines around every form of distiller that people have."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from distiller_forms import (
    FORMS,
    LABELS,
    Base,
    CallsForwardFeatures,
    LogitsAndTerms,
    OtherNames,
    OurDict,
    check,
    images,
    wrap,
)
from tiny_networks import TinyConvNet, logit_kl
from torch import Tensor, nn

from tmkd_plugin.errors import InputError, TmkdNotice


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_distillers(form: type[Base]) -> None:
    distiller = form()
    check(wrap(distiller), distiller.heard)


@pytest.mark.parametrize("form", [OurDict, LogitsAndTerms])
@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_smoothed_and_mixed_labels(form: type[Base], smoothing: float) -> None:
    distiller = form()
    labels = F.one_hot(LABELS, 4).float() * (1 - smoothing) + smoothing * F.one_hot(LABELS.flip(0), 4)
    check(wrap(distiller), distiller.heard, labels)


@pytest.mark.parametrize("as_names", [True, False])
def test_networks_under_other_names(as_names: bool) -> None:
    distiller = OtherNames()
    small, big = ("nets.small", "nets.big") if as_names else (distiller.nets["small"], distiller.nets["big"])
    enhancer = wrap(distiller, student=small, teacher=big)
    check(enhancer, distiller.heard)
    assert not any("big" in name for name in enhancer.state_dict())


def test_a_function_closed_over_its_networks() -> None:
    student, teacher, heard = TinyConvNet(width=5, seed=1), TinyConvNet(width=7, seed=2), []

    def step(batch: Tensor, labels: Tensor) -> Tensor:
        heard.append(teacher(batch))
        return F.cross_entropy(student(batch), labels) + logit_kl(student(batch), heard[-1])

    enhancer = wrap(step, student=student, teacher=teacher, logit_weight=0.0)
    check(enhancer, heard)
    trained = {id(parameter) for parameter in enhancer.trainable_parameters()}
    assert {id(parameter) for parameter in student.parameters()} < trained


def test_a_distiller_that_calls_forward_features_only() -> None:
    distiller = CallsForwardFeatures()
    check(wrap(distiller), distiller.heard)


def test_a_distiller_that_does_not_say_whether_it_has_a_logit_kl_is_noticed() -> None:
    class Silent(OurDict):
        has_logit_kl = None

    with pytest.warns(TmkdNotice, match="has_logit_kl"):
        assert wrap(Silent()).heads.logit_weight == 0
    assert wrap(Silent(), logit_weight=0.7).heads.logit_weight == 0.7

    class Without(OurDict):
        has_logit_kl = False

    assert wrap(Without()).heads.logit_weight == 1


class Extra(OurDict):
    """Takes more arguments and trains more parameters than its student's."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor, labels: Tensor, index: Tensor, epoch: int = 0) -> dict[str, Tensor]:
        assert index.shape == labels.shape
        assert epoch == 3
        out = super().forward(images, labels)
        return {**out, "loss": out["loss"] * self.scale, "ce": out["ce"] * self.scale, "kl": out["kl"] * self.scale}


def test_further_arguments_and_parameters_are_kept() -> None:
    distiller = Extra()
    enhancer = wrap(distiller)
    enhancer(images(), LABELS, torch.arange(5), epoch=3)["loss"].backward()
    assert any(parameter is distiller.scale for parameter in enhancer.trainable_parameters())


@pytest.mark.parametrize(
    ("distiller", "arguments", "message"),
    [
        (lambda: nn.Linear(2, 2), {}, "has no module 'student'.*student="),
        (lambda: OtherNames(), {"student": "nets.smal", "teacher": "nets.big"}, "no module 'nets.smal'.*nets"),
        (lambda: OtherNames(), {"student": "nets.big", "teacher": "nets.big"}, "same module"),
        (lambda: OtherNames(), {"student": 3, "teacher": "nets.big"}, "student= must be"),
        (lambda: 7, {}, "can't be called"),
    ],
)
def test_what_cannot_be_wrapped_is_refused(distiller: Callable[[], object], arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        wrap(distiller(), **arguments)


def test_the_student_at_test_time_is_the_bare_network() -> None:
    distiller = OurDict()
    bare = copy.deepcopy(distiller.student).eval()
    enhancer = wrap(distiller).eval()
    assert enhancer.student is distiller.student
    assert type(enhancer.student) is TinyConvNet
    assert torch.equal(enhancer.student(images()), bare(images()))
    TinyConvNet(width=5).load_state_dict(enhancer.student.state_dict())


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_losses_with_compiled_networks(form: type[Base]) -> None:
    expected = wrap(form())(images(), LABELS)
    distiller = form()
    # Dynamo's tracing is what could miss a hook or the interception; the code generator behind it is tested below.
    distiller.student = torch.compile(distiller.student, backend="eager")
    distiller.teacher = torch.compile(distiller.teacher, backend="eager")
    out = wrap(distiller)(images(), LABELS)
    for name, value in expected.items():
        torch.testing.assert_close(out[name], value, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_networks_give_the_same_losses(in_place: bool) -> None:
    expected = wrap(OurDict())(images(), LABELS)
    distiller = OurDict()
    if in_place:
        distiller.student.compile()
        distiller.teacher.compile()
    else:
        distiller.student = torch.compile(distiller.student)
        distiller.teacher = torch.compile(distiller.teacher)
    enhancer = wrap(distiller)
    for _ in range(2):
        out = enhancer(images(), LABELS)
        enhancer.set_extra_state(torch.tensor(0))  # the same noise again
        for name, value in expected.items():
            torch.testing.assert_close(out[name], value, msg=lambda text, name=name: f"{name}: {text}")
    out["loss"].backward()
    assert all(parameter.grad is not None for parameter in enhancer.trainable_parameters())


def test_an_error_inside_the_distiller_leaves_the_teacher_untouched() -> None:
    class Fails(Base):
        def forward(self, batch: Tensor, labels: Tensor) -> Tensor:
            self.teacher(batch)
            raise RuntimeError("out of memory, say")

    distiller = Fails()
    enhancer = wrap(distiller)
    with pytest.raises(RuntimeError, match="out of memory"):
        enhancer(images(), LABELS)
    assert "forward" not in vars(distiller.teacher)
    assert not any(module._forward_hooks for module in distiller.modules())


def test_a_bound_methods_own_parameters_are_trained_and_saved() -> None:
    class Trainer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.big = TinyConvNet(width=5, seed=1), TinyConvNet(width=7, seed=2)
            self.adapter = nn.Linear(4, 4)

        def step(self, images: Tensor, labels: Tensor) -> Tensor:
            logits = self.adapter(self.small(images))
            return F.cross_entropy(logits, labels) + logit_kl(logits, self.big(images))

    trainer = Trainer()
    enhancer = wrap(trainer.step, student=trainer.small, teacher=trainer.big, logit_weight=0.0)
    trained = {id(parameter) for parameter in enhancer.trainable_parameters()}
    assert {id(parameter) for parameter in trainer.adapter.parameters()} < trained
    assert not any("big" in name for name in enhancer.state_dict())
    enhancer(images(), LABELS)["loss"].backward()
    assert trainer.adapter.weight.grad is not None


def test_crops_in_a_list_are_refused() -> None:
    with pytest.raises(InputError, match="images are a list"):
        wrap(OurDict())([images(), images()], LABELS)
