import dataclasses
import multiprocessing
import os
import random
import signal
import struct
import sys
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tmkd_plugin.data import (
    Augmentation,
    FileSplit,
    ImageSplit,
    evaluation_batches,
    load_dataset,
    make_streamed_dataset,
    training_batches,
)
from tmkd_plugin.data.decode import decode_images, read_image
from tmkd_plugin.errors import InputError, RunError
from tmkd_plugin.randomness import derive_seed
from tmkd_plugin.training.view_training import with_random_views
from tmkd_plugin.views import VIEW_NAMES, from_pixels, make_views, to_pixels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESIZED = Augmentation(flip=True, resized_crop=(0.3, 1.0))
CROP_FLIP = Augmentation(crop_padding=4, flip=True)
SIZES = [(40, 40), (61, 37), (37, 61), (90, 33)]


@pytest.fixture
def folder(tmp_path, make_image):
    """Thirteen images of several shapes: smooth ones, so that resizing keeps something of them."""
    for index in range(13):
        size = SIZES[index % len(SIZES)]
        make_image((6, 5), seed=index).resize(size, Image.Resampling.BICUBIC).save(tmp_path / f"{index:02d}.png")
    return tmp_path


def split_of(folder, *, workers=0, size=32):
    paths = tuple(sorted(path.name for path in folder.glob("*.png")))
    count = len(paths)
    return FileSplit(folder, paths, torch.arange(count) % 5, torch.arange(count) * 2 + 100, size, workers)


def epoch_of(split, augmentation=RESIZED, *, batch_size=4, seed=3, epoch=2, **options):
    return list(
        training_batches(split, augmentation, MEAN, STD, batch_size=batch_size, seed=seed, epoch=epoch, **options)
    )


def by_id(batches):
    return {int(index): image for batch in batches for index, image in zip(batch.ids, batch.images, strict=True)}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[index], second[index]) for index in first)


def pixels_of(batches):
    return {index: to_pixels(image[None], MEAN, STD)[0] for index, image in by_id(batches).items()}


def reference_crop(path, row, *, size=32, seed=3, epoch=2):
    """One augmented image, by Pillow and torchvision alone."""
    transform = v2.Compose([v2.RandomResizedCrop(size, scale=(0.3, 1.0)), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "augmentation", epoch, row))
        return transform(Image.open(path).convert("RGB"))


def wait_until_gone(pids, seconds=20):
    """Waits for processes to end; returns those that have not, and kills them."""
    end = time.monotonic() + seconds
    while alive := [pid for pid in pids if os.path.exists(f"/proc/{pid}") and not is_zombie(pid)]:
        if time.monotonic() > end:
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
            return alive
        time.sleep(0.05)
    return []


def is_zombie(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


# What a batch holds


def test_order_labels_and_sizes_follow_the_rule_of_splits_in_memory(folder):
    files = split_of(folder)
    memory = ImageSplit(torch.zeros(13, 3, 32, 32, dtype=torch.uint8), files.labels, files.ids)
    for options in ({}, {"batch_size": 6}, {"batch_size": 5, "drop_last": True}, {"batch_size": 1}):
        mine, theirs = epoch_of(files, **options), epoch_of(memory, CROP_FLIP, **options)
        assert [batch.ids.tolist() for batch in mine] == [batch.ids.tolist() for batch in theirs]
        assert [batch.labels.tolist() for batch in mine] == [batch.labels.tolist() for batch in theirs]
    assert [len(batch) for batch in epoch_of(files)] == [4, 4, 5]


def test_training_images_equal_torchvision_seeded_by_place(folder):
    split = split_of(folder)
    pixels = pixels_of(epoch_of(split))
    for row, index in enumerate(split.ids.tolist()):
        assert torch.equal(pixels[index], reference_crop(split.file(row), row))


def test_without_flip_no_image_is_mirrored(folder):
    split = split_of(folder)
    flipped, plain = by_id(epoch_of(split)), by_id(epoch_of(split, Augmentation(resized_crop=(0.3, 1.0))))
    mirrored = [not torch.equal(flipped[index], plain[index]) for index in plain]
    assert 0 < sum(mirrored) < len(mirrored)
    for index in plain:
        assert torch.equal(flipped[index], plain[index]) or torch.equal(flipped[index].flip(-1), plain[index])


@pytest.mark.parametrize("augmentation", [CROP_FLIP, Augmentation(flip=True), Augmentation()])
def test_crop_and_flip_is_bit_identical_with_the_split_in_memory(folder, augmentation):
    split = split_of(folder)
    images = decode_images([split.file(row) for row in range(len(split))], 32, root=folder)
    memory = ImageSplit(images, split.labels, split.ids)
    assert same(by_id(epoch_of(split, augmentation)), by_id(epoch_of(memory, augmentation)))


def test_evaluation_resizes_the_short_side_and_crops_the_centre(folder):
    split = split_of(folder, size=56)
    batches = list(evaluation_batches(split, MEAN, STD, batch_size=6))
    assert [len(batch) for batch in batches] == [6, 6, 1]
    assert torch.equal(torch.cat([batch.ids for batch in batches]), split.ids)
    assert torch.equal(torch.cat([batch.labels for batch in batches]), split.labels)
    for row, pixels in enumerate(pixels_of(batches).values()):
        with Image.open(split.file(row)) as image:
            width, height = image.size
            short = min(width, height)
            whole = image.resize((64 * width // short, 64 * height // short), Image.Resampling.BILINEAR)
        left, top = round((whole.width - 56) / 2), round((whole.height - 56) / 2)
        expected = np.asarray(whole.crop((left, top, left + 56, top + 56)))
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)


def test_files_are_read_upright_and_as_rgb(folder, make_image):
    upright = make_image((50, 40), seed=77)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(folder / "turned.png")), np.asarray(upright))
    upright.convert("L").save(folder / "grey.png")
    grey = read_image(folder / "grey.png")
    assert (grey.mode, grey.size) == ("RGB", (50, 40))


def test_batches_are_float_contiguous_and_normalised(folder):
    for batch in (*epoch_of(split_of(folder)), *evaluation_batches(split_of(folder), MEAN, STD, batch_size=4)):
        assert batch.images.dtype == torch.float32
        assert batch.images.shape == (len(batch), 3, 32, 32)
        assert batch.images.is_contiguous()
        assert batch.labels.dtype == batch.ids.dtype == torch.int64


def test_batches_are_delivered_on_the_device_of_the_split(folder):
    batch = next(training_batches(split_of(folder).to("meta"), RESIZED, MEAN, STD, batch_size=4, seed=0, epoch=0))
    assert {batch.images.device.type, batch.labels.device.type, batch.ids.device.type} == {"meta"}
    batch = next(evaluation_batches(split_of(folder).to("meta"), MEAN, STD, batch_size=4))
    assert {batch.images.device.type, batch.labels.device.type} == {"meta"}


# What the draws depend on


@pytest.mark.parametrize("augmentation", [RESIZED, CROP_FLIP])
def test_no_pixel_depends_on_workers_batch_size_or_other_draws(folder, augmentation):
    split = split_of(folder)
    expected = by_id(epoch_of(split, augmentation))
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    before = torch.random.get_rng_state()
    for workers, batch_size in ((1, 4), (2, 4), (0, 1), (0, 13), (2, 3)):
        assert same(by_id(epoch_of(split_of(folder, workers=workers), augmentation, batch_size=batch_size)), expected)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_workers_do_not_change_the_order_of_batches_or_evaluation(folder):
    for workers in (1, 2):
        pairs = zip(epoch_of(split_of(folder)), epoch_of(split_of(folder, workers=workers)), strict=True)
        assert all(torch.equal(first.images, second.images) for first, second in pairs)
        alone, helped = (
            list(evaluation_batches(split_of(folder, workers=n), MEAN, STD, batch_size=3)) for n in (0, workers)
        )
        assert same(by_id(alone), by_id(helped))


def test_seeds_and_epochs_differ_and_can_be_repeated(folder):
    runs = {
        (seed, epoch): by_id(epoch_of(split_of(folder), seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)
    }
    for first in runs:
        assert [first] == [other for other in runs if same(runs[first], runs[other])]
    assert same(by_id(epoch_of(split_of(folder), seed=1, epoch=0)), runs[1, 0])


def test_all_views_of_an_image_come_from_the_same_crop(folder):
    split = split_of(folder)
    plain = training_batches(split, RESIZED, MEAN, STD, batch_size=5, seed=3, epoch=2)
    shown = by_id(with_random_views(plain, MEAN, STD, images=200, seed=3, epoch=2))
    seen = set()
    for row, index in enumerate(split.ids.tolist()):
        views = make_views(reference_crop(split.file(row), row)[None], list(VIEW_NAMES))
        matching = [
            name
            for name, view in zip(VIEW_NAMES, views, strict=True)
            if torch.allclose(from_pixels(view, MEAN, STD, torch.float32)[0], shown[index], atol=1e-5)
        ]
        assert len(matching) == 1
        seen.update(matching)
    assert seen == set(VIEW_NAMES)


# Files that can't be used


def bomb():
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return start + struct.pack(">I", 1000) + b"IDAT"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda whole: whole[: len(whole) // 2], r"truncated|broken"),
        (lambda whole: b"not an image", "not an image that can be read"),
        (lambda whole: b"", "empty file"),
        (lambda whole: bomb(), "decompression bomb"),
        (None, "missing"),
    ],
)
def test_an_unusable_file_in_the_middle_of_an_epoch_is_named(folder, workers, content, reason):
    split, victim = split_of(folder, workers=workers), folder / "05.png"
    whole = victim.read_bytes()
    victim.unlink()
    if content is not None:
        victim.write_bytes(content(whole))
    iterators = [
        training_batches(split, augmentation, MEAN, STD, batch_size=2, seed=0, epoch=0)
        for augmentation in (RESIZED, CROP_FLIP)
    ]
    kept = []
    for batches in (*iterators, evaluation_batches(split, MEAN, STD, batch_size=2)):
        with pytest.raises(InputError, match=reason) as error:
            list(batches)
        message = str(error.value)
        assert message.startswith(f"The image '{victim}' can't be used: ")
        assert "\n" not in message
        assert error.value.__cause__ is None
        kept.append(error)
    assert wait_until_gone([child.pid for child in multiprocessing.active_children()]) == []


def test_batches_before_an_unusable_file_are_delivered(folder):
    (folder / "12.png").write_bytes(b"x")
    batches = evaluation_batches(split_of(folder, workers=2), MEAN, STD, batch_size=4)
    assert [len(next(batches)) for _ in range(3)] == [4, 4, 4]
    with pytest.raises(InputError, match=r"12\.png"):
        next(batches)


def test_an_image_that_would_grow_beyond_all_bounds_is_refused(folder):
    Image.new("RGB", (5000, 1)).save(folder / "13.png")
    assert len(list(evaluation_batches(split_of(folder, size=32), MEAN, STD, batch_size=99))) == 1
    with pytest.raises(InputError, match=r"13\.png.*5000 x 1 pixels: too narrow"):
        list(evaluation_batches(split_of(folder, size=224), MEAN, STD, batch_size=99))


# Worker processes


def test_workers_end_when_the_consumer_fails_or_stops(folder):
    split = split_of(folder, workers=2)

    def fail():
        for _ in training_batches(split, RESIZED, MEAN, STD, batch_size=1, seed=0, epoch=0):
            pids.extend(child.pid for child in multiprocessing.active_children())
            raise ZeroDivisionError

    pids = []
    with pytest.raises(ZeroDivisionError) as kept:
        fail()
    assert len(pids) == 2
    assert wait_until_gone(pids) == []
    assert kept.value.__traceback__ is not None  # the error is still held while its workers are gone
    batches = evaluation_batches(split, MEAN, STD, batch_size=1)
    next(batches)
    pids = [child.pid for child in multiprocessing.active_children()]
    assert len(pids) == 2
    del batches
    assert wait_until_gone(pids) == []


def test_a_worker_that_is_killed_is_reported(folder):
    batches = evaluation_batches(split_of(folder, workers=1), MEAN, STD, batch_size=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGSTOP)  # it may have prepared some batches already
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(RunError, match="A process that decodes images ended"):
        list(batches)


def test_workers_leave_an_interruption_to_the_training_process(folder):
    batches = evaluation_batches(split_of(folder, workers=1), MEAN, STD, batch_size=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGINT)
    assert len(list(batches)) == 12


def train_slowly(folder, connection):
    os.setsid()  # a group of processes of its own, as a shell gives it to a command
    # Where the tests themselves run in the background, Ctrl-C is ignored, which a process passes on to its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stderr = open(folder / "errors.txt", "w", buffering=1)  # noqa: SIM115
    os.dup2(sys.stderr.fileno(), 2)
    split = split_of(folder, workers=2, size=224)
    for _ in training_batches(split, RESIZED, MEAN, STD, batch_size=1, seed=0, epoch=0):
        connection.send([child.pid for child in multiprocessing.active_children()])
        time.sleep(60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_when_the_training_process_is_interrupted_or_killed(folder, number):
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=train_slowly, args=(folder, there))
    process.start()
    pids = here.recv()
    assert len(pids) == 2
    time.sleep(0.3)  # so that the workers have more ready than a pipe holds
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does it for Ctrl-C
    else:
        os.kill(process.pid, number)
    process.join()
    assert wait_until_gone(pids) == []
    if number == signal.SIGINT:
        errors = (folder / "errors.txt").read_text()
        assert errors.count("Traceback") == errors.count("KeyboardInterrupt") == 1


# Splits and data sets of files


def test_the_fingerprint_covers_everything_but_place_and_workers(folder, tmp_path_factory):
    split = split_of(folder)

    def fingerprint(train, names=("a", "b", "c", "d", "e")):
        parts = {"train": train, "validation": split, "test": split}
        return make_streamed_dataset("images", names, **parts, augmentation=RESIZED).fingerprint

    first = fingerprint(split)
    copy = tmp_path_factory.mktemp("copy")
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert fingerprint(split_of(copy, workers=2)) == first
    (copy / "03.png").write_bytes((copy / "04.png").read_bytes())
    (folder / "same.png").write_bytes((folder / split.paths[0]).read_bytes())
    renamed = ("same.png", *split.paths[1:])
    others = [
        fingerprint(split, ("a", "b", "c", "d", "f")),
        fingerprint(dataclasses.replace(split, image_size=64)),
        fingerprint(split_of(copy)),
        fingerprint(FileSplit(folder, split.paths, 4 - split.labels, split.ids, 32)),
        fingerprint(FileSplit(folder, renamed, split.labels, split.ids, 32)),
        fingerprint(FileSplit(folder, split.paths[:-1], split.labels[:-1], split.ids[:-1], 32)),
    ]
    assert len({first, *others}) == 7


def test_a_streamed_data_set_is_normalised_as_the_field_does(folder):
    split = split_of(folder)
    data = make_streamed_dataset("images", ["a"], train=split, validation=split, test=split, augmentation=RESIZED)
    assert (data.mean, data.std, data.image_size, data.num_classes) == (MEAN, STD, 32, 1)


def test_unreadable_files_are_listed_at_once(folder):
    split = split_of(folder)
    (folder / "01.png").unlink()
    (folder / "02.png").write_bytes(b"")
    with pytest.raises(InputError) as error:
        make_streamed_dataset("images", ["a"], train=split, validation=split, test=split, augmentation=RESIZED)
    assert "6 of 39 image files can't be read" in str(error.value)
    assert f"{folder / '01.png'}: the file is missing" in str(error.value)
    assert f"{folder / '02.png'}: empty file" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.zeros(2).long()}, r"labels of shape \(2,\)"),
        ({"ids": torch.zeros(3)}, "ids .*torch.float32"),
        ({"image_size": 0}, "image_size=0"),
        ({"workers": -1}, "workers=-1: expected a whole number of processes"),
        ({"workers": 1.5}, "workers=1.5"),
    ],
)
def test_unusable_splits_are_refused(tmp_path, changes, message):
    given = {"labels": torch.zeros(3).long(), "ids": torch.arange(3), "image_size": 32} | changes
    with pytest.raises(InputError, match=message):
        FileSplit(tmp_path, ("a", "b", "c"), **given)


@pytest.mark.parametrize("scale", [(0.5,), (0.0, 1.0), (0.9, 0.5), (0.5, 1.5)])
def test_unusable_ranges_of_a_resized_crop_are_refused(scale):
    with pytest.raises(InputError, match=r"resized_crop=.*expected two shares"):
        Augmentation(resized_crop=scale)


def test_two_crops_exclude_each_other_and_memory_has_no_resized_crop():
    with pytest.raises(InputError, match=r"crop_padding=4 and resized_crop=\(0\.5, 1\.0\) exclude each other"):
        Augmentation(crop_padding=4, resized_crop=(0.5, 1.0))
    split = ImageSplit(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.zeros(3).long(), torch.arange(3))
    with pytest.raises(InputError, match="resized_crop needs the images in full"):
        training_batches(split, RESIZED, MEAN, STD, batch_size=2, seed=0, epoch=0)


@pytest.mark.parametrize("layout", [["train/cat", "train/dog", "test/cat", "test/dog"], ["cat", "dog"]])
def test_a_streamed_folder_has_the_images_of_the_one_in_memory(make_tree, layout, monkeypatch):
    root = make_tree(dict.fromkeys(layout, 6))
    memory = load_dataset(root, train_limit=4)
    monkeypatch.chdir(root.parent)
    streamed = load_dataset("./pictures", augmentation="resized_crop", workers=1, train_limit=4)
    monkeypatch.chdir("/")
    assert (streamed.image_size, streamed.augmentation.resized_crop) == (224, (0.08, 1.0))
    assert streamed.class_names == memory.class_names
    for part in ("train", "validation", "test"):
        mine, theirs = getattr(streamed, part), getattr(memory, part)
        assert mine.workers == 1
        assert torch.equal(mine.labels, theirs.labels)
        assert torch.equal(mine.ids, theirs.ids)
        files = [mine.file(row) for row in range(len(mine))]
        assert torch.equal(decode_images(files, 32, root=root), theirs.images)
