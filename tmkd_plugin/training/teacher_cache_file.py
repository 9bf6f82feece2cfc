"""A file of a teacher's answers, one row for each training image: written in pieces, read as memory that the disk backs.

It is a safetensors file. Its metadata holds the key, which says what the numbers are of, and a checksum of everything.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from tmkd_plugin.errors import TmkdError
from tmkd_plugin.text_cache import digest_of
from tmkd_plugin.training.files import TEMPORARY_SUFFIX, atomic_file

FORMAT = "tmkd teacher answers 1"
_DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16"}
_UNKNOWN = "0" * 64
_BLOCK = 1 << 20
_LEFT_BEHIND_SECONDS = 86_400.0


class UnusableFileError(TmkdError):
    """A file of answers is truncated, damaged or of something else."""


@dataclass(frozen=True)
class Layout:
    """A tensor of a file.

    Attributes:
        rows: How many images.
        width: Numbers for each.
        dtype: Their dtype.
    """

    rows: int
    width: int
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes for each image."""
        return self.width * self.dtype.itemsize


def answers_file(folder: Path, key: Mapping[str, Any]) -> Path:
    """Returns where the answers of this key are kept."""
    return folder / f"teacher-{digest_of(key)[:32]}.safetensors"


def bytes_of(layouts: Mapping[str, Layout]) -> int:
    """Returns the bytes of all tensors."""
    return sum(layout.rows * layout.row_bytes for layout in layouts.values())


class AnswersWriter:
    """Writes rows of the tensors of a file, in any order."""

    def __init__(self, file: BinaryIO, layouts: Mapping[str, Layout], start: int) -> None:
        self._file = file
        self._layouts = layouts
        self._starts = dict(zip(layouts, _starts(layouts, start), strict=True))

    def put(self, first_row: int, answers: Mapping[str, Tensor]) -> None:
        """Writes the answers for the images from ``first_row`` on, (B, width) each."""
        for name, layout in self._layouts.items():
            self._file.seek(self._starts[name] + first_row * layout.row_bytes)
            self._file.write(_bytes(answers[name].to("cpu", layout.dtype)))


@contextlib.contextmanager
def writing_answers(path: Path, key: Mapping[str, Any], layouts: Mapping[str, Layout]) -> Iterator[AnswersWriter]:
    """Writes a file that appears in full when the block has ended, or not at all.

    Args:
        path: The file; its folder is made.
        key: Says what the numbers are of.
        layouts: The tensors by name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_behind(path.parent)
    with atomic_file(path) as file:
        header = _header(key, layouts)
        file.write(header)
        file.truncate(len(header) + bytes_of(layouts))
        yield AnswersWriter(file, layouts, len(header))
        file.flush()
        checksum = _checksum(Path(file.name), header)
        file.seek(0)
        file.write(header.replace(_UNKNOWN.encode(), checksum.encode(), 1))


def read_answers(path: Path, key: Mapping[str, Any], rows: int) -> dict[str, Tensor]:
    """Returns the tensors of a file, (rows, width) each, of which only what is looked at takes memory.

    Args:
        path: An existing file.
        key: What the numbers have to be of.
        rows: How many images they have to be of.

    Raises:
        UnusableFileError: The file is truncated, damaged or of something else; the message says which.
    """
    import numpy as np

    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("it ends within its header")
            header = file.read(length)
        described = json.loads(header)
        metadata = described.pop("__metadata__")
        if metadata["format"] != FORMAT:
            raise ValueError(f"its format is {metadata['format']!r}")
        names = {name: dtype for dtype, name in _DTYPES.items()}
        layouts = {}
        for name, entry in described.items():
            count, width = entry["shape"]
            layouts[name] = Layout(count, width, names[entry["dtype"]])
        start = 8 + length
        if path.stat().st_size != start + bytes_of(layouts):
            raise ValueError("its size is not what its header says")
        plain = length.to_bytes(8, "little") + header.replace(metadata["sha256"].encode(), _UNKNOWN.encode(), 1)
        if _checksum(path, plain) != metadata["sha256"]:
            raise ValueError("its content is not what was written")
        if json.loads(metadata["key"]) != json.loads(json.dumps(key)):
            raise ValueError("it is of other answers than its name says")
        if any(layout.rows != rows for layout in layouts.values()):
            raise ValueError(f"it is not of {rows} images")
        tensors = {}
        for (name, layout), first in zip(layouts.items(), _starts(layouts, start), strict=True):
            size = layout.rows * layout.row_bytes
            # Copy-on-write: nobody can change the file through it.
            content = np.memmap(path, dtype=np.uint8, mode="c", offset=first, shape=(size,))
            tensors[name] = torch.from_numpy(content).view(layout.dtype).view(layout.rows, layout.width)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnusableFileError(str(error) or type(error).__name__) from error
    return tensors


def _header(key: Mapping[str, Any], layouts: Mapping[str, Layout]) -> bytes:
    """Returns the length and the header of a safetensors file, with a checksum that is still unknown."""
    entries: dict[str, Any] = {
        "__metadata__": {"sha256": _UNKNOWN, "format": FORMAT, "key": json.dumps(key, sort_keys=True)}
    }
    for (name, layout), start in zip(layouts.items(), _starts(layouts, 0), strict=True):
        end = start + layout.rows * layout.row_bytes
        shape = [layout.rows, layout.width]
        entries[name] = {"dtype": _DTYPES[layout.dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # the numbers that follow have to be aligned
    return len(text).to_bytes(8, "little") + text


def _starts(layouts: Mapping[str, Layout], start: int) -> list[int]:
    starts = []
    for layout in layouts.values():
        starts.append(start)
        start += layout.rows * layout.row_bytes
    return starts


def _checksum(path: Path, header: bytes) -> str:
    """Returns the sha256 of a file with another header."""
    digest = hashlib.sha256(header)
    with path.open("rb") as file:
        file.seek(len(header))
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _remove_left_behind(folder: Path) -> None:
    """Removes what a process that was killed long ago had begun to write."""
    for temporary in folder.glob(f".teacher-*{TEMPORARY_SUFFIX}"):
        with contextlib.suppress(OSError):
            if time.time() - temporary.stat().st_mtime > _LEFT_BEHIND_SECONDS:
                temporary.unlink()
