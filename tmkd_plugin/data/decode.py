"""Reads image files of any kind into square RGB pixels."""

from __future__ import annotations

import contextlib
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from tmkd_plugin.errors import InputError

# Named one by one: Pillow would otherwise hand a file that claims to be EPS to Ghostscript, whatever its ending.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 89_478_485  # Pillow's own bound for decompression bombs: 256 MB as RGB
_EXIF_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WITH_ALPHA = ("LA", "PA", "RGBA")
_SHOWN = 20
_CHUNK = 64


class UnusableImageError(Exception):
    """One image can't be used; the message is the reason alone."""


def decode_images(
    paths: Sequence[Path], image_size: int, *, root: Path, progress: Callable[[int, int], None] | None = None
) -> Tensor:
    """Decodes images in threads.

    Args:
        paths: The files.
        image_size: Height and width of the result, S.
        root: The folder that error messages are relative to.
        progress: Called from this thread as ``progress(done, total)``.

    Returns:
        uint8 (N,3,S,S), RGB.

    Raises:
        InputError: Some files can't be read; the message names them and the reasons.
    """
    pixels = np.empty((len(paths), 3, image_size, image_size), dtype=np.uint8)

    def decode_chunk(start: int) -> list[tuple[Path, str]]:
        faults = []
        for index in range(start, min(start + _CHUNK, len(paths))):
            try:
                pixels[index] = decode_image(paths[index], image_size).transpose(2, 0, 1)
            except UnusableImageError as error:
                faults.append((paths[index], str(error)))
        return faults

    Image.init()  # once, before threads would load Pillow's plugins side by side
    faults: list[tuple[Path, str]] = []
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")  # about large or slightly damaged files: judged here, by name
        for start, found in zip(
            range(0, len(paths), _CHUNK), pool.map(decode_chunk, range(0, len(paths), _CHUNK)), strict=True
        ):
            faults += found
            if progress is not None:
                progress(min(start + _CHUNK, len(paths)), len(paths))
    if faults:
        raise InputError(_report(faults, len(paths), root))
    return torch.from_numpy(pixels)


def decode_image(path: Path, image_size: int) -> NDArray[np.uint8]:
    """Reads one image: upright (EXIF), RGB, its central square, resized with antialiasing (bicubic).

    Transparent pixels are put on white, 16-bit grey is scaled to 8 bit, an animation gives its first frame.

    Args:
        path: The file.
        image_size: Height and width of the result, S. An image of that size keeps its pixels.

    Returns:
        uint8 (S,S,3).

    Raises:
        UnusableImageError: With the reason.
    """
    with _opened(path) as image:
        image.draft(None, (2 * image_size, 2 * image_size))  # large JPEGs: decode at a fraction, never below 2 S
        turn = _orientation(image)
        square = _central_square(_to_rgb(image), image_size)
        return np.asarray(square if turn is None else square.transpose(turn))


def read_image(path: Path) -> Image.Image:
    """Reads one image in full: upright (EXIF) and RGB; pixels of other modes as :func:`decode_image` has them.

    Raises:
        UnusableImageError: With the reason.
    """
    with _opened(path) as image:
        turn = _orientation(image)
        pixels = _to_rgb(image)
        pixels.load()  # here, where the file is open and its damage is noticed
        return pixels if turn is None else pixels.transpose(turn)


def short_side(path: Path) -> int | None:
    """The short side of an image in pixels, from its header; None if that can't be read."""
    try:
        _check_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                return min(image.size)
    except Exception:  # decoding reports what is wrong with it
        return None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Opens an image of a kind and size that is read here; whatever fails in the block is an ``UnusableImageError``."""
    try:
        _check_file(path)
        with Image.open(path, formats=FORMATS) as image:
            _check_pixels(image)
            yield image
    except UnusableImageError:
        raise
    except Exception as error:  # Pillow's readers raise errors of every kind on damaged files
        raise UnusableImageError(_reason(error)) from error


def _check_file(path: Path) -> None:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise UnusableImageError("not a regular file")
    if status.st_size == 0:
        raise UnusableImageError("empty file (0 bytes)")


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise UnusableImageError(
            f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}: possibly a decompression bomb"
        )


def _orientation(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TRANSPOSE.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # damaged metadata does not spoil the pixels
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise UnusableImageError("floating-point pixels, whose range is unknown: store it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return _from_16_bit(image).convert("RGB")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        upright = image.convert("RGBA")
        white = Image.new("RGBA", upright.size, "white")
        return Image.alpha_composite(white, upright).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    # Pillow's own conversion clips at 255; older versions open 16-bit files as 32-bit integers.
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UnusableImageError(f"pixels from {values.min()} to {values.max()}: store it with 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _central_square(image: Image.Image, image_size: int) -> Image.Image:
    """Resizes the short side and crops the centre, in one step: only the central square is resampled."""
    if image.size == (image_size, image_size):
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.resize((image_size, image_size), Image.Resampling.BICUBIC, box=box)


def _reason(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, FileNotFoundError):
        return "the file is missing or a broken link"
    if isinstance(error, UnidentifiedImageError):
        return f"not an image that can be read ({', '.join(FORMATS)})"
    return str(error) or type(error).__name__


def _report(faults: list[tuple[Path, str]], total: int, root: Path) -> str:
    lines = [f"  {path.relative_to(root).as_posix()}: {reason}" for path, reason in faults[:_SHOWN]]
    if len(faults) > _SHOWN:
        lines.append(f"  and {len(faults) - _SHOWN} more")
    return (
        f"{len(faults)} of {total} images of '{root}' can't be used:\n" + "\n".join(lines) + "\n"
        "Replace or remove them; other files are fine."
    )
