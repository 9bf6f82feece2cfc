"""A teacher that sees a few images at a time says what it says of the whole batch."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_networks import FeaturePairNet, FunctionalPoolNet, LogitsAndFeaturesNet, TinyConvNet
from torch import Tensor, nn

from tmkd_plugin.baselines.kd import KD
from tmkd_plugin.baselines.sp import SP
from tmkd_plugin.enhancer import TMKDEnhancer
from tmkd_plugin.errors import InputError
from tmkd_plugin.model_output import OutputReader
from tmkd_plugin.nested import leaves
from tmkd_plugin.training.shared_teacher import shared_teachers
from tmkd_plugin.training.teacher_parts import run_in_parts

IMAGES = torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 2])
NAMES = ["cat", "dog", "owl", "yak"]
TEXT = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))
NETWORKS = pytest.mark.parametrize("network", [TinyConvNet, FeaturePairNet, LogitsAndFeaturesNet, FunctionalPoolNet])


def sizes_seen(network: torch.nn.Module) -> list[int]:
    seen: list[int] = []
    network.conv.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    return seen


@NETWORKS
@pytest.mark.parametrize("at_once", [1, 3, 7, 100])
def test_what_it_returns_and_what_is_read_from_it_is_that_of_the_batch(network, at_once: int) -> None:
    whole = network(seed=1).eval()
    parts = copy.deepcopy(whole)
    expected, reader = OutputReader(whole)(IMAGES), OutputReader(parts)
    run_in_parts(parts, at_once)
    parts(IMAGES)  # where all parts are of one size, the first call looks at another
    seen = sizes_seen(parts)
    found = reader(IMAGES)
    assert seen == [len(part) for part in IMAGES.split(at_once)]
    for name in ("logits", "pooled_features", "feature_map"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    with reader.recording():
        returned = parts(IMAGES)
        assert any(leaf is reader.recorded(returned).logits for leaf in leaves(returned))
    torch.testing.assert_close(leaves(parts(IMAGES)), leaves(whole(IMAGES)))


@NETWORKS
def test_an_enhanced_step_is_the_same(network) -> None:
    student, teacher = TinyConvNet(seed=0), network(seed=1).eval()
    plain = TMKDEnhancer(KD(copy.deepcopy(student), copy.deepcopy(teacher)), NAMES, text=TEXT, input_size=8)
    capped = TMKDEnhancer(KD(student, teacher), NAMES, text=TEXT, input_size=8)
    run_in_parts(capped.teacher, 3)
    seen = sizes_seen(capped.teacher)
    expected, found = plain(IMAGES, LABELS), capped(IMAGES, LABELS)
    assert seen == [3, 3, 1] * 3
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


class Seeing(nn.Module):
    """Notes how many images a layer sees."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.seen = layer, []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        return self.layer(images)


def test_arms_in_lockstep_share_the_parts() -> None:
    teacher = TinyConvNet(seed=1).eval()
    teacher.conv = Seeing(teacher.conv)
    run_in_parts(teacher, 4)
    distillers = [KD(TinyConvNet(), teacher), SP(TinyConvNet(), teacher)]
    distillers.append(TMKDEnhancer(KD(TinyConvNet(), teacher), NAMES, text=TEXT, input_size=8))
    alone = [distiller(IMAGES, LABELS)["loss"] for distiller in distillers]
    teacher.conv.seen.clear()
    with shared_teachers(distillers):
        together = [distiller(IMAGES, LABELS)["loss"] for distiller in distillers]
    assert teacher.conv.seen == [4, 3] * 3
    assert [loss.item() for loss in together[:2]] == [loss.item() for loss in alone[:2]]


def test_a_network_in_training_sees_whole_batches() -> None:
    network = TinyConvNet(seed=1).train()
    run_in_parts(network, 2)
    seen = sizes_seen(network)
    network(IMAGES)
    network.eval()(IMAGES)
    assert seen == [7, 2, 2, 2, 1]


def test_a_second_number_replaces_the_first_and_a_copy_keeps_to_itself() -> None:
    network = TinyConvNet(seed=1).eval()
    run_in_parts(network, 2)
    run_in_parts(network, 5)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        twin.conv.weight.zero_()
    seen = sizes_seen(network)
    network(IMAGES)
    assert seen == [5, 2]
    assert not torch.equal(twin(IMAGES), network(IMAGES))


class Answering(torch.nn.Module):
    """Returns logits and what a function makes of them and of the network."""

    def __init__(self, more) -> None:
        super().__init__()
        self.network, self.more = TinyConvNet(seed=1), more
        self.register_buffer("prototypes", torch.randn(2, 7))

    def forward(self, images):
        logits = self.network(images)
        return logits, self.more(self, logits)


@pytest.mark.parametrize("images", [6, 7])
@pytest.mark.parametrize("at_once", [2, 3])
@pytest.mark.parametrize(
    "more", [lambda network, _: network.prototypes, lambda network, _: network.prototypes[0] * 2], ids=["2", "7"]
)
def test_what_does_not_depend_on_the_images_stays_as_it_is(more, at_once: int, images: int) -> None:
    network = Answering(more).eval()
    expected = network(IMAGES[:images])
    run_in_parts(network, at_once)
    for _ in range(2):
        torch.testing.assert_close(network(IMAGES[:images]), expected)


@pytest.mark.parametrize("images", [6, 7])
@pytest.mark.parametrize("at_once", [1, 2, 3])
@pytest.mark.parametrize(
    "more", [lambda _, logits: logits @ logits.T, lambda _, logits: logits.mean(0)], ids=["relations", "mean"]
)
def test_what_parts_of_a_batch_can_not_give_is_refused(more, at_once: int, images: int) -> None:
    network = Answering(more).eval()
    run_in_parts(network, at_once)
    for _ in range(2):
        with pytest.raises(InputError, match=r"in parts \(--teacher-batch\): .* Leave --teacher-batch out"):
            network(IMAGES[:images])


def test_as_many_rows_as_a_part_has_images_are_taken_for_no_rows_of_images() -> None:
    network = Answering(lambda network, _: network.prototypes * 2).eval()
    run_in_parts(network, 2)
    for images in (6, 7):
        with pytest.raises(InputError, match="another number of images will do"):
            network(IMAGES[:images])
    run_in_parts(network, 3)
    assert network(IMAGES)[1].shape == (2, 7)


def test_features_are_asked_for_in_parts_too() -> None:
    network = TinyConvNet(seed=1).eval()
    expected = network.forward_features(IMAGES)
    run_in_parts(network, 3)
    seen = sizes_seen(network)
    torch.testing.assert_close(network.forward_features(IMAGES), expected)
    assert seen == [3, 3, 1]


def test_the_look_at_a_part_of_another_size_changes_no_draw() -> None:
    noisy = Answering(lambda _, logits: torch.rand(len(logits))).eval()
    run_in_parts(noisy, 3)
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        drawn.append((noisy(IMAGES[:6])[1], torch.rand(1)))
    torch.testing.assert_close(drawn[0], drawn[1])


@pytest.mark.parametrize("at_once", [0, 1.5])
def test_unusable_numbers_are_refused(at_once) -> None:
    with pytest.raises(InputError, match="images_at_once"):
        run_in_parts(TinyConvNet(), at_once)
