"""Copies of a teacher that answer once for each batch, and what makes one answer for itself."""

from __future__ import annotations

import copy
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from arm_cases import batch, distiller, sharing_copy, step, two_arms
from torch import nn

from tmkd_plugin.baselines import build_baseline
from tmkd_plugin.errors import RunError
from tmkd_plugin.training.shared_teacher import shared_teachers
from tmkd_plugin.zoo import build_network


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return build_network("resnet14", 3, seed=9).eval()


def test_copies_that_differ_share_nothing(dataset, teacher):
    other = copy.deepcopy(teacher)
    distillers = [distiller("kd", teacher), distiller("kd", other)]
    images = torch.rand(4, 3, 16, 16)
    with shared_teachers(distillers), torch.no_grad():
        other.fc.bias += 1
        assert not torch.equal(teacher(images), other(images))


def test_nothing_of_a_batch_stays_when_it_is_over(teacher):
    first, second = (distiller("kd+tmkd", sharing_copy(teacher)) for _ in range(2))
    images, labels = batch()
    alive = weakref.ref(images)
    with shared_teachers([first, second]) as forget:
        step(first, images, labels)
        step(second, images, labels)
        del images
        gc.collect()
        assert alive() is not None, "a batch is remembered while it lasts"
        forget()
        gc.collect()
        assert alive() is None


def test_arms_that_read_other_maps_of_the_teacher_get_their_own():
    wide = build_network("wrn_16_1", 3, seed=9).eval()

    def arm(sp_map: str, teacher: nn.Module) -> nn.Module:
        return build_baseline("sp", build_network("wrn_16_1", 3, seed=3), teacher, sp_map=sp_map)

    images, labels = batch()
    maps = ("mdistiller", "pre_pool", "mdistiller")
    alone = [step(arm(sp_map, copy.deepcopy(wide)), images, labels) for sp_map in maps]
    assert alone[0] != alone[1]
    together = [arm(sp_map, sharing_copy(wide)) for sp_map in maps]
    with shared_teachers(together) as forget:
        for _ in range(2):
            assert [step(each, images, labels) for each in together] == alone
            forget()


def test_somebody_who_listens_inside_the_teacher_hears_every_pass(teacher):
    first, second = (distiller("kd", sharing_copy(teacher)) for _ in range(2))
    heard = []
    second.teacher.fc.register_forward_hook(lambda *_: heard.append(1))
    images, labels = batch()
    with shared_teachers([first, second]) as forget:
        step(first, images, labels)
        expected = step(second, images, labels)
        assert len(heard) == 1
        forget()
    assert torch.equal(step(second, images, labels), expected)


def test_what_a_distiller_writes_into_an_answer_no_other_sees(teacher):
    first, second = (sharing_copy(teacher) for _ in range(2))
    images, _ = batch()
    arms = [nn.Module(), nn.Module()]
    arms[0].teacher, arms[1].teacher = first, second
    with torch.no_grad(), shared_teachers(arms):
        assert not first(images).requires_grad, "no_grad holds, although nobody has frozen this teacher"
        expected = first(images).clone()
        first(images).zero_()
        assert torch.equal(second(images), expected)


class Switched(nn.Module):
    """A network whose answer depends on an attribute."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.doubled = network, False

    def forward(self, images):
        logits = self.network(images)
        return 2 * logits if self.doubled else logits


def test_a_teacher_that_is_switched_in_the_middle_of_a_batch_answers_for_itself(teacher):
    arms, (images, _) = two_arms(Switched(teacher).eval()), batch()
    with torch.no_grad(), shared_teachers(arms):
        once = arms[0].teacher(images)
        assert arms[1].teacher(images).data_ptr() == once.data_ptr(), "until then it is shared"
        arms[1].teacher.doubled = True
        assert torch.equal(arms[1].teacher(images), 2 * once)
        arms[1].teacher.doubled = False
        assert torch.equal(arms[1].teacher(images), once)


def test_teachers_with_other_switches_inside_share_nothing(teacher):
    arms, (images, _) = two_arms(Switched(Switched(teacher)).eval()), batch()
    arms[1].teacher.network.doubled = True
    with torch.no_grad(), shared_teachers(arms):
        assert torch.equal(arms[1].teacher(images), 2 * arms[0].teacher(images))
        assert torch.equal(arms[1].teacher(images), 2 * arms[0].teacher(images))


def test_images_that_are_written_to_are_other_images(teacher):
    arms = [nn.Module(), nn.Module()]
    for arm in arms:
        arm.teacher = sharing_copy(teacher)
    images, _ = batch()
    with torch.no_grad(), shared_teachers(arms):
        before = arms[0].teacher(images)
        images.mul_(0.5)
        assert not torch.equal(arms[1].teacher(images), before)
        assert torch.equal(arms[1].teacher(images), teacher(images))


def test_a_teacher_in_training_mode_answers_for_itself(teacher):
    arms = [nn.Module(), nn.Module()]
    for arm in arms:
        arm.teacher = sharing_copy(teacher)
    images, _ = batch()
    with torch.no_grad(), shared_teachers(arms):
        before = arms[0].teacher(images)
        arms[1].teacher.layer1.train() if hasattr(arms[1].teacher, "layer1") else arms[1].teacher.train()
        assert not torch.equal(arms[1].teacher(images), before)


def test_a_distiller_that_changes_the_shared_teacher_is_told(teacher):
    mine = copy.deepcopy(teacher)
    arms = [nn.Module(), nn.Module()]
    for arm in arms:
        arm.teacher = sharing_copy(mine)
    images, _ = batch()
    with torch.no_grad(), shared_teachers(arms):
        arms[0].teacher(images)
        mine.fc.bias += 1
        with pytest.raises(RunError, match="--arms-at-once 1"):
            arms[1].teacher(images)


class Noisy(nn.Module):
    """A network that draws noise in eval mode too."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images) + torch.randn(len(images), 3)


class Wrapped(nn.Module):
    """A network that returns an object of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images):
        return SimpleNamespace(logits=self.network(images))


@pytest.mark.parametrize("kind", [Noisy, Wrapped])
def test_answers_that_are_no_function_of_the_images_or_no_nest_are_not_shared(kind, teacher):
    arms, (images, _) = two_arms(kind(teacher).eval()), batch()
    calls = []
    with torch.no_grad(), shared_teachers(arms):
        torch.manual_seed(0)
        calls.append(arms[0].teacher(images))
        calls.append(arms[1].teacher(images))
    assert calls[0] is not calls[1]
    if kind is Noisy:
        torch.manual_seed(0)
        assert torch.equal(calls[0], arms[0].teacher(images))
        assert torch.equal(calls[1], arms[1].teacher(images)), "the second one draws its own noise"
    else:
        calls[0].logits.zero_()
        assert calls[1].logits.any()


def test_a_hook_on_all_modules_hears_every_pass(teacher):
    arms, (images, _) = two_arms(teacher), batch()
    heard = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: heard.append(type(module).__name__))
    try:
        with torch.no_grad(), shared_teachers(arms):
            for arm in arms:
                arm.teacher(images)
    finally:
        handle.remove()
    assert heard.count("Linear") == 2


@pytest.mark.parametrize("change", ["mapping", "tensor", "forward"])
def test_copies_with_other_attributes_share_nothing(change, teacher):
    mine = copy.deepcopy(teacher)
    mine.options, mine.scale = {"scale": [1.0]}, torch.tensor(1.0)
    arms, (images, _) = two_arms(mine), batch()
    changed = arms[1].teacher
    if change == "mapping":
        changed.options["scale"][0] = 2.0
    elif change == "tensor":
        changed.scale = torch.tensor(2.0)
    else:
        arms[0].teacher.fc.forward = lambda x: torch.ones(len(x), 3)
        changed.fc.forward = lambda x: torch.zeros(len(x), 3)
    with torch.no_grad(), shared_teachers(arms):
        assert arms[0].teacher(images).data_ptr() != changed(images).data_ptr()
        assert changed(images).any() == (change != "forward")


def test_a_teacher_that_was_built_in_inference_mode():
    with torch.inference_mode():
        arms, (images, _) = two_arms(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3)).eval()), batch()
    with torch.no_grad(), shared_teachers(arms):
        assert arms[0].teacher(images).data_ptr() == arms[1].teacher(images).data_ptr()
