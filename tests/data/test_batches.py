import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tmkd_plugin.data import Augmentation, ImageSplit, batch_bounds, evaluation_batches, training_batches
from tmkd_plugin.data.crop_flip import augment, draw_augmentation
from tmkd_plugin.errors import InputError

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
AUGMENTATION = Augmentation(crop_padding=3, flip=True)


def make_split(count=37, height=12, width=10):
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(1, 256, (count, 3, height, width), generator=generator).to(torch.uint8)
    return ImageSplit(images, torch.arange(count) % 5, torch.arange(count) * 2 + 100)


def epoch_of(split, *, augmentation=AUGMENTATION, batch_size=8, seed=0, epoch=0, **options):
    return list(
        training_batches(split, augmentation, MEAN, STD, batch_size=batch_size, seed=seed, epoch=epoch, **options)
    )


def by_id(batches):
    return {int(index): image for batch in batches for index, image in zip(batch.ids, batch.images, strict=True)}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[index], second[index]) for index in first)


def test_an_epoch_is_a_permutation_with_its_labels():
    split = make_split()
    batches = epoch_of(split)
    ids = torch.cat([batch.ids for batch in batches])
    assert sorted(ids.tolist()) == split.ids.tolist()
    assert ids.tolist() != split.ids.tolist()
    labels = torch.cat([batch.labels for batch in batches])
    assert torch.equal(labels, (ids - 100) // 2 % 5)


def test_batches_are_float_contiguous_and_normalised():
    split = make_split()
    batches = epoch_of(split, augmentation=Augmentation())
    images = by_id(batches)
    for batch in batches:
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous()
        assert batch.labels.dtype == batch.ids.dtype == torch.int64
        assert len(batch) == len(batch.labels)
    for row, index in enumerate(split.ids.tolist()):
        expected = (split.images[row].numpy() / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
        np.testing.assert_allclose(images[index].numpy(), expected, rtol=1e-5, atol=1e-5)


def test_normalised_pixels_can_be_recovered():
    split = make_split()
    (batch,) = evaluation_batches(split, MEAN, STD, batch_size=64)
    scale, shift = torch.tensor(STD).view(3, 1, 1), torch.tensor(MEAN).view(3, 1, 1)
    assert torch.equal(((batch.images * scale + shift) * 255).round().to(torch.uint8), split.images)


def test_draws_do_not_depend_on_the_batch_size():
    split = make_split()
    expected = by_id(epoch_of(split, batch_size=8))
    for batch_size in (1, 2, 5, 12, 36, 37, 100):
        assert same(by_id(epoch_of(split, batch_size=batch_size)), expected)


def test_order_does_not_depend_on_the_batch_size_or_the_augmentation():
    split = make_split()
    orders = [
        torch.cat([batch.ids for batch in epoch_of(split, **options)]).tolist()
        for options in ({}, {"batch_size": 5}, {"augmentation": Augmentation()})
    ]
    assert orders[0] == orders[1] == orders[2]


def test_epochs_and_seeds_differ_and_any_of_them_can_be_repeated():
    split = make_split()
    state = torch.random.get_rng_state()
    runs = {(seed, epoch): epoch_of(split, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1, 2)}
    for first, second in itertools.combinations(runs, 2):
        assert [batch.ids.tolist() for batch in runs[first]] != [batch.ids.tolist() for batch in runs[second]]
        assert not same(by_id(runs[first]), by_id(runs[second]))
    again = epoch_of(split, seed=1, epoch=2)
    for batch, other in zip(again, runs[1, 2], strict=True):
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.ids, other.ids)
    assert torch.equal(torch.random.get_rng_state(), state)


def naive_augment(image, top, left, flip, padding):
    """One image, pixel by pixel: pad with zeros, cut out, mirror."""
    channels, height, width = image.shape
    result = np.zeros_like(image)
    for channel, row, column in itertools.product(range(channels), range(height), range(width)):
        source_row = row + top - padding
        source_column = (width - 1 - column if flip else column) + left - padding
        if 0 <= source_row < height and 0 <= source_column < width:
            result[channel, row, column] = image[channel, source_row, source_column]
    return result


@pytest.mark.parametrize("augmentation", [AUGMENTATION, Augmentation(2, False), Augmentation(0, True), Augmentation()])
def test_augmentation_equals_a_naive_loop(augmentation):
    split = make_split(count=24, height=7, width=6)
    draws = draw_augmentation(24, augmentation, seed=3, epoch=4)
    result = augment(split.images, draws, augmentation.crop_padding)
    assert result.dtype == torch.uint8
    for row, (top, left, flip) in enumerate(draws.tolist()):
        expected = naive_augment(split.images[row].numpy(), top, left, flip, augmentation.crop_padding)
        assert np.array_equal(result[row].numpy(), expected)


def test_batches_are_augmented_by_the_place_of_the_image_in_its_split():
    split = make_split(count=9)
    expected = augment(split.images, draw_augmentation(9, AUGMENTATION, seed=5, epoch=6), 3)
    images = by_id(epoch_of(split, augmentation=AUGMENTATION, seed=5, epoch=6, batch_size=4))
    for row, index in enumerate(split.ids.tolist()):
        pixels = (images[index] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255
        assert torch.equal(pixels.round().to(torch.uint8), expected[row])


def test_draws_are_uniform_and_cover_every_place():
    draws = draw_augmentation(7000, Augmentation(crop_padding=3, flip=True), seed=0, epoch=0)
    for column in (0, 1):
        counts = torch.bincount(draws[:, column], minlength=7)
        assert counts.shape == (7,)
        assert 850 < counts.min() <= counts.max() < 1150
    assert 3300 < int(draws[:, 2].sum()) < 3700
    assert abs(float(torch.corrcoef(draws.T.double())[0, 1])) < 0.05


def test_flips_do_not_change_when_crops_are_turned_off():
    with_crops = draw_augmentation(50, Augmentation(4, True), seed=0, epoch=0)
    without = draw_augmentation(50, Augmentation(0, True), seed=0, epoch=0)
    assert torch.equal(with_crops[:, 2], without[:, 2])
    assert not without[:, :2].any()


def test_padding_is_black_before_normalisation():
    split = ImageSplit(torch.full((64, 3, 8, 8), 255, dtype=torch.uint8), torch.zeros(64).long(), torch.arange(64))
    values = torch.cat([batch.images for batch in epoch_of(split)]).transpose(0, 1).flatten(1)
    for channel in range(3):
        expected = [(0 - MEAN[channel]) / STD[channel], (1 - MEAN[channel]) / STD[channel]]
        assert torch.unique(values[channel]).tolist() == pytest.approx(expected, rel=1e-5)


@given(count=st.integers(1, 60), batch_size=st.integers(1, 70), drop_last=st.booleans())
@settings(max_examples=150, deadline=None)
def test_bounds_cover_every_image_once(count, batch_size, drop_last):
    if drop_last and count < batch_size:
        with pytest.raises(InputError, match="No training batch"):
            batch_bounds(count, batch_size, drop_last)
        return
    bounds = batch_bounds(count, batch_size, drop_last)
    sizes = [end - start for start, end in bounds]
    assert [start for start, _ in bounds] == [0, *(end for _, end in bounds[:-1])]
    if drop_last:
        assert set(sizes) == {batch_size}
        assert count - sum(sizes) < batch_size
    else:
        assert sum(sizes) == count
        assert all(size == batch_size for size in sizes[:-1])
        assert sizes[-1] <= batch_size + 1
        assert 1 not in sizes or batch_size == 1 or count == 1


def test_a_single_last_image_joins_the_batch_before():
    assert [len(batch) for batch in epoch_of(make_split(17))] == [8, 9]
    assert [len(batch) for batch in epoch_of(make_split(18))] == [8, 8, 2]
    assert [len(batch) for batch in epoch_of(make_split(18), drop_last=True)] == [8, 8]
    assert [len(batch) for batch in epoch_of(make_split(3), batch_size=1)] == [1, 1, 1]


def test_evaluation_keeps_order_and_pixels():
    split = make_split(17)
    batches = list(evaluation_batches(split, MEAN, STD, batch_size=8))
    assert [len(batch) for batch in batches] == [8, 8, 1]
    assert torch.equal(torch.cat([batch.ids for batch in batches]), split.ids)
    assert torch.equal(torch.cat([batch.labels for batch in batches]), split.labels)
    (whole,) = evaluation_batches(split, MEAN, STD, batch_size=100)
    assert torch.equal(torch.cat([batch.images for batch in batches]), whole.images)
    assert all(batch.images.is_contiguous() for batch in batches)


def test_the_split_is_left_as_it_was():
    split = make_split()
    before = split.images.clone()
    for batch in epoch_of(split) + list(evaluation_batches(split, MEAN, STD, batch_size=8)):
        batch.images.zero_()
    assert torch.equal(split.images, before)


def test_batches_move_to_a_device():
    batch = epoch_of(make_split())[0].to("meta")
    assert batch.images.device.type == batch.labels.device.type == batch.ids.device.type == "meta"
    assert make_split().to("meta").images.device.type == "meta"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: expected a whole number, 1 or more"),
        ({"batch_size": 2.5}, r"batch_size=2\.5"),
        ({"batch_size": 64, "drop_last": True}, "No training batch: 37 images, batch_size=64"),
        ({"augmentation": Augmentation(crop_padding=-1)}, "crop_padding=-1"),
    ],
)
def test_unusable_arguments_are_refused_before_the_first_batch(options, message):
    arguments = {"augmentation": AUGMENTATION, "batch_size": 8, "seed": 0, "epoch": 0} | options
    with pytest.raises(InputError, match=message):
        training_batches(make_split(), mean=MEAN, std=STD, **arguments)


@pytest.mark.parametrize(("mean", "std"), [((0.5,), STD), (MEAN, (0.1, 0.0, 0.1)), (MEAN, (0.1, float("nan"), 0.1))])
def test_unusable_statistics(mean, std):
    with pytest.raises(InputError, match="expected 3 numbers each, one a channel, std above 0"):
        training_batches(make_split(), AUGMENTATION, mean, std, batch_size=8, seed=0, epoch=0)
    with pytest.raises(InputError, match="std above 0"):
        evaluation_batches(make_split(), mean, std, batch_size=8)
