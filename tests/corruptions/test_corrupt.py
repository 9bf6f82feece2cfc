"""What holds for every corruption: type, range, draws that depend on the image alone, strength that grows, errors."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tmkd_plugin.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from tmkd_plugin.corruptions.severities import SIDES, STRENGTHS, nearest_side, strength_of
from tmkd_plugin.errors import InputError

RANDOM = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "glass_blur",
    "motion_blur",
    "snow",
    "frost",
    "fog",
    "elastic_transform",
)
# The published tables make glass, frost and elastic more of one kind and less of another as they go up.
NOT_MONOTONE = ("glass_blur", "frost", "elastic_transform", "snow")


def distance(images, corrupted):
    return (corrupted.float() - images.float()).abs().mean().item()


def test_the_registry_and_the_tables_name_the_same_15():
    assert list(CORRUPTIONS) == list(STRENGTHS)
    assert len(CORRUPTIONS) == 15
    for tables in STRENGTHS.values():
        assert tuple(tables) == SIDES
        for table in tables.values():
            assert len(table) == len(SEVERITIES)
            assert len({len(strength) for strength in table}) == 1


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("side", [8, 33, 64])
def test_shape_type_and_input_stay(name, side, make_images):
    images = make_images(2, side)
    before = images.clone()
    for severity in (1, 5):
        corrupted = corrupt(images, name, severity, seed=0, ids=[4, 7])
        assert corrupted.shape == images.shape
        assert corrupted.dtype == torch.uint8
        assert corrupted.is_contiguous()
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_does_not_depend_on_its_batch(name, images):
    ids = torch.tensor([9, 3, 3, 100, 0, 5])
    together = corrupt(images, name, 3, seed=1, ids=ids)
    alone = torch.cat([corrupt(images[k : k + 1], name, 3, seed=1, ids=ids[k : k + 1]) for k in range(6)])
    turned = corrupt(images.flip(0), name, 3, seed=1, ids=ids.flip(0)).flip(0)
    assert torch.equal(together, alone)
    assert torch.equal(together, turned)


def test_large_batches_are_cut_without_a_trace(make_images):
    images = make_images(200, 32)  # more than are corrupted in one go
    ids = torch.arange(200)
    for name in ("gaussian_noise", "zoom_blur", "fog"):
        whole = corrupt(images, name, 2, seed=0, ids=ids)
        last = corrupt(images[150:], name, 2, seed=0, ids=ids[150:])
        assert torch.equal(whole[150:], last)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_draws_follow_seed_id_and_severity(name, images):
    images, ids = images[:1].expand(4, -1, -1, -1), [0, 1, 0, 2]
    first = corrupt(images, name, 5, seed=0, ids=ids)
    assert torch.equal(first, corrupt(images, name, 5, seed=0, ids=ids))
    assert torch.equal(first[0], first[2])
    is_random = name in RANDOM
    assert torch.equal(first[0], first[1]) != is_random
    assert torch.equal(first, corrupt(images, name, 5, seed=1, ids=ids)) != is_random


def test_severities_have_draws_of_their_own():
    """The same noise at every severity would tie the severities' errors together."""
    grey = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
    weak, strong = (corrupt(grey, "gaussian_noise", severity, seed=0, ids=[0]).double() - 128 for severity in (1, 5))
    correlation = torch.corrcoef(torch.stack([weak.flatten(), strong.flatten()]))[0, 1]
    assert correlation.abs() < 0.1


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name not in NOT_MONOTONE])
@pytest.mark.parametrize("side", [32, 64])
def test_distance_grows_with_severity(name, side, make_images):
    images = make_images(24, side, seed=5)
    ids = torch.arange(24)
    found = [distance(images, corrupt(images, name, severity, seed=0, ids=ids)) for severity in SEVERITIES]
    # Motion blur of 32 px is published with a longer line of the same width at severity 4.
    slack = 0.05 * found[0] if name == "motion_blur" else 0
    assert all(late > early - slack for early, late in itertools.pairwise(found)), found
    assert found[4] > found[0] > 0


@pytest.mark.parametrize("name", NOT_MONOTONE)
def test_every_severity_changes_every_image(name, make_images):
    images = make_images(4, 32)
    for severity in SEVERITIES:
        corrupted = corrupt(images, name, severity, seed=0, ids=range(4))
        assert all(not torch.equal(*pair) for pair in zip(images, corrupted, strict=True))


@given(side=st.integers(8, 400))
@settings(max_examples=60, deadline=None)
def test_other_sides_take_the_nearest_table(side):
    nearest = nearest_side(side)
    assert all(abs(nearest - side) <= abs(other - side) for other in SIDES)
    assert strength_of("fog", 3, side) == STRENGTHS["fog"][nearest][2]


@pytest.mark.parametrize(
    ("side", "nearest"), [(16, 32), (48, 32), (49, 64), (96, 64), (144, 64), (145, 224), (384, 224)]
)
def test_ties_go_to_the_smaller_side(side, nearest):
    assert nearest_side(side) == nearest


def test_no_images_are_no_problem():
    assert corrupt(torch.empty(0, 3, 32, 32, dtype=torch.uint8), "fog", 1, seed=0, ids=[]).shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "gausian_noise"}, "Unknown corruption 'gausian_noise'. Did you mean 'gaussian_noise'"),
        ({"severity": 0}, "severity=0: expected a whole number from 1"),
        ({"severity": True}, "severity=True"),
        ({"ids": [1]}, "1 ids for 2 images"),
        ({"images": torch.zeros(2, 3, 32, 31, dtype=torch.uint8)}, "square with S of at least 8"),
        ({"images": torch.zeros(2, 3, 7, 7, dtype=torch.uint8)}, "square with S of at least 8"),
        ({"images": torch.zeros(2, 1, 32, 32, dtype=torch.uint8)}, "expected uint8"),
        ({"images": torch.zeros(2, 3, 32, 32)}, "dtype torch.float32: expected uint8"),
        ({"images": torch.zeros(3, 32, 32, dtype=torch.uint8)}, "expected uint8"),
    ],
)
def test_what_can_t_be_used(change, message):
    given = {
        "images": torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
        "name": "fog",
        "severity": 1,
        "ids": [0, 1],
        **change,
    }
    with pytest.raises(InputError, match=message):
        corrupt(given["images"], given["name"], given["severity"], seed=0, ids=given["ids"])
