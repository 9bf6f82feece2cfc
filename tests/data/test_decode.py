import numpy as np
import pytest
import torch
from PIL import Image

from tmkd_plugin.data import load_dataset
from tmkd_plugin.data.decode import UnusableImageError, decode_image

EXACT = ("RGB.png", "RGB.bmp", "RGB.tiff", "RGB.ppm", "RGB.webp")


def saved(image, path, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("name", EXACT)
def test_lossless_formats_keep_every_pixel(name, make_image, tmp_path):
    image = make_image((32, 32))
    path = saved(image, tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    assert np.array_equal(decode_image(path, 32), np.asarray(image))


@pytest.mark.parametrize("ending", ["jpg", "gif", "webp"])
def test_lossy_formats_come_close(ending, tmp_path):
    ramp = np.add.outer(np.arange(0, 128, 4), np.arange(0, 128, 4)).astype(np.uint8)
    path = saved(Image.fromarray(ramp).convert("RGB"), tmp_path / f"ramp.{ending}", quality=95)
    assert np.abs(decode_image(path, 32).astype(int) - ramp[..., None]).max() <= 12


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "I;16", "CMYK", "YCbCr"])
def test_modes_become_rgb(mode, tmp_path):
    """A picture of a dark left and a light right half comes out the same in every mode."""
    grey = np.full((32, 32), 255, dtype=np.uint8)
    grey[:, :16] = 0
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(grey).convert("RGB").convert(mode)
    ending = {"CMYK": "tiff", "YCbCr": "jpg"}.get(mode, "png")
    pixels = decode_image(saved(image, tmp_path / f"image.{ending}"), 32)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - grey[..., None]).max() <= 2


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 1024).astype(np.uint16).reshape(32, 32)
    pixels = decode_image(saved(Image.fromarray(values), tmp_path / "deep.png"), 32)
    assert np.array_equal(pixels[..., 0], np.rint(values / 257).astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pixels_become_white(mode, tmp_path):
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 16, 32))
    if mode == "P":
        indexed = Image.fromarray(np.repeat([[0] * 16 + [1] * 16], 32, axis=0).astype(np.uint8))
        indexed.putpalette([200, 0, 0, 0, 0, 0])
        path = saved(indexed, tmp_path / "image.png", transparency=0)
    elif mode == "RGB":
        keyed = Image.new("RGB", (32, 32), (0, 0, 0))
        keyed.paste((1, 2, 3), (0, 0, 16, 32))
        path = saved(keyed, tmp_path / "image.png", transparency=(1, 2, 3))
    else:
        path = saved(image.convert(mode), tmp_path / "image.png")
    pixels = decode_image(path, 32)
    assert (pixels[:, :16] == 255).all()
    assert (pixels[:, 16:] == 0).all()


def test_half_transparent_pixels_are_blended(tmp_path):
    pixels = decode_image(saved(Image.new("RGBA", (32, 32), (0, 100, 200, 128)), tmp_path / "image.png"), 32)
    assert np.abs(pixels[0, 0] - np.array([127, 177, 227])).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, make_image, tmp_path):
    upright = np.asarray(make_image((32, 32)))
    # Independent reference: how a camera that is held so stores the upright picture.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(Image.fromarray(np.ascontiguousarray(stored)), tmp_path / "image.png", exif=exif)
    assert np.array_equal(decode_image(path, 32), upright)


def test_an_unknown_orientation_is_ignored(make_image, tmp_path):
    image, exif = make_image((32, 32)), Image.Exif()
    exif[0x0112] = 99
    assert np.array_equal(decode_image(saved(image, tmp_path / "image.png", exif=exif), 32), np.asarray(image))


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (64, 64)])
def test_short_side_is_resized_and_the_centre_cropped(size, make_image, tmp_path):
    image = make_image(size)
    whole = image.resize((size[0] // 2, size[1] // 2), Image.Resampling.BICUBIC)
    left, top = (whole.width - 32) // 2, (whole.height - 32) // 2
    expected = np.asarray(whole.crop((left, top, left + 32, top + 32)))
    assert np.array_equal(decode_image(saved(image, tmp_path / "image.png"), 32), expected)


def test_shrinking_averages(tmp_path):
    board = np.indices((256, 256)).sum(axis=0) % 2 * 255
    pixels = decode_image(saved(Image.fromarray(board.astype(np.uint8)), tmp_path / "board.png"), 16)
    assert np.abs(pixels.astype(int) - 127).max() <= 2


def test_large_jpegs_keep_their_content(tmp_path):
    ramp = np.linspace(0, 255, 1024)[None].repeat(1024, 0)
    image = Image.fromarray(ramp.astype(np.uint8)).convert("RGB")
    exact = decode_image(saved(image, tmp_path / "image.png"), 32).astype(int)
    assert np.abs(decode_image(saved(image, tmp_path / "image.jpg", quality=95), 32) - exact).max() <= 3


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    path = saved(frames[0], tmp_path / "image.gif", save_all=True, append_images=frames[1:])
    assert decode_image(path, 32)[0, 0].tolist() == [255, 0, 0]


def test_extreme_shapes(tmp_path):
    assert decode_image(saved(Image.new("RGB", (5000, 1), "red"), tmp_path / "line.png"), 32).shape == (32, 32, 3)
    assert decode_image(saved(Image.new("RGB", (1, 1), "red"), tmp_path / "dot.png"), 32)[31, 31].tolist() == [
        255,
        0,
        0,
    ]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros((8, 8), np.float32), "floating-point pixels"),
        (np.full((8, 8), 70000, np.int32), "from 70000 to 70000"),
        (np.full((8, 8), -1, np.int32), "from -1 to -1"),
    ],
)
def test_pixels_of_unknown_range_are_refused(values, reason, tmp_path):
    with pytest.raises(UnusableImageError, match=reason):
        decode_image(saved(Image.fromarray(values), tmp_path / "image.tiff"), 32)


def test_a_folder_of_mixed_files(make_tree, make_image):
    root = make_tree({"cat": 3, "dog": 3}, size=(64, 64))
    image = make_image((80, 50))
    for ending in ("JPG", "jpeg", "gif", "bmp", "webp", "tif", "PPM"):
        image.save(root / "cat" / f"photo.{ending}")
    image.convert("RGBA").save(root / "dog" / "alpha.png")
    data = load_dataset(root)
    assert data.image_size == 64
    assert sum(torch.bincount(split.labels) for split in (data.train, data.validation, data.test)).tolist() == [10, 4]


def test_progress_reports_every_image(make_tree):
    calls = []
    load_dataset(make_tree({"cat": 70, "dog": 70}), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(64, 140), (128, 140), (140, 140)]
