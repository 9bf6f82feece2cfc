"""Reads lists from MATLAB files of level 5 (MATLAB 5 to 7.2): cells of text, and real numbers.

SciPy's reader is made for files that one trusts: a few changed bytes crash the process. This one knows the two kinds of
variables that lists are made of, checks every length and bounds what compressed variables unpack to.

Format: MAT-File Level 5 File Format, The MathWorks.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
_CELL, _CHAR = 1, 4
_NUMERIC = range(6, 16)  # the array classes double to uint64
_COMPLEX = 0x0800
# Data types of the format by their number; text may be stored in any unsigned one.
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16"}


class MatError(Exception):
    """A file is no MATLAB file that can be read; the message is the reason alone."""


@dataclass(frozen=True)
class _Array:
    """One array of the file, its content not yet decoded."""

    kind: int
    is_complex: bool
    shape: tuple[int, ...]
    name: str
    content: list[tuple[int, memoryview]]


def read_mat_lists(
    path: Path, names: Collection[str], *, max_bytes: int, max_rows: int
) -> dict[str, list[str | float]]:
    """Reads some variables of a MATLAB file.

    Args:
        path: The file.
        names: The variables to read; others are skipped.
        max_bytes: Bound on the size of the file, and on what its compressed variables unpack to together.
        max_rows: Bound on the number of elements of a variable.

    Returns:
        For each variable that is there: its elements in MATLAB's order. A cell that holds no text gives ``""``.

    Raises:
        MatError: The file is damaged, too large, of another version, or a variable is of another kind.
        OSError: The file can't be read.
    """
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise MatError(f"it is larger than {max_bytes / 2**20:g} MiB")
    order = _byte_order(content)
    found: dict[str, list[str | float]] = {}
    for element in _matrices(memoryview(content)[_HEADER_BYTES:], order, max_bytes):
        array = _parse(element, order)
        if array.name in names:
            found[array.name] = _values(array, order, max_rows)
    return found


def _byte_order(content: bytes) -> str:
    """Returns ``<`` or ``>`` after a look at the header."""
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None or struct.unpack(order + "H", content[124:126]) != (0x0100,):
        raise MatError("it has no header of MATLAB 5 to 7.2")
    return order


def _matrices(data: memoryview, order: str, budget: int) -> Iterator[memoryview]:
    """Yields the content of each variable, unpacked."""
    for kind, body in _elements(data, order):
        if kind == _COMPRESSED:
            unpacked = _decompress(body, budget)
            budget -= len(unpacked)
            inner = list(_elements(memoryview(unpacked), order))
            if len(inner) != 1:
                raise MatError("a compressed variable holds no single variable")
            kind, body = inner[0]
        if kind != _MATRIX:
            raise MatError(f"data of type {kind} in place of a variable")
        yield body


def _decompress(data: memoryview, budget: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        unpacked = stream.decompress(data, budget + 1)
    except zlib.error as error:
        raise MatError(f"a compressed variable is damaged: {error}") from None
    if len(unpacked) > budget:
        raise MatError("its variables unpack to more than is allowed")
    if not stream.eof:
        raise MatError("a compressed variable is cut off")
    return unpacked


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yields (type, content) of the elements that follow each other in the data."""
    position = 0
    while position < len(data):
        if position + 8 > len(data):
            raise MatError("it is cut off")
        kind, size = struct.unpack_from(order + "II", data, position)
        start = position + 8
        end = start + size
        if kind >> 16:  # up to four bytes are stored in the tag itself
            kind, size, start, end = kind & 0xFFFF, kind >> 16, position + 4, position + 8
            if size > 4:
                raise MatError("a short element is longer than four bytes")
        elif kind != _COMPRESSED:
            end += -size % 8
        if start + size > len(data):
            raise MatError("it is cut off")
        yield kind, data[start : start + size]
        position = end


def _parse(data: memoryview, order: str) -> _Array:
    parts = list(_elements(data, order))
    if len(parts) < 3 or len(parts[0][1]) != 8:
        raise MatError("a variable has no flags, shape and name")
    (flags,) = struct.unpack_from(order + "I", parts[0][1])
    kind, sizes = parts[1]
    if kind != 5 or len(sizes) < 8 or len(sizes) % 4:
        raise MatError("the shape of a variable can't be read")
    shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    if min(shape) < 0:
        raise MatError(f"a variable has the shape {shape}")
    name = bytes(parts[2][1]).decode("latin-1")
    return _Array(flags & 0xFF, bool(flags & _COMPLEX), shape, name, parts[3:])


def _values(array: _Array, order: str, max_rows: int) -> list[str | float]:
    count = prod(array.shape)
    if count > max_rows:
        raise MatError(f"{array.name} has {count:,} elements, more than {max_rows:,}")
    if array.kind == _CELL:
        if len(array.content) != count or any(kind != _MATRIX for kind, _ in array.content):
            raise MatError(f"{array.name} has other than its {count:,} cells")
        return [_text(body, order) for _, body in array.content]
    if array.kind not in _NUMERIC or array.is_complex:
        raise MatError(f"{array.name} holds neither cells nor real numbers")
    return _numbers(array, order, count)


def _text(data: memoryview, order: str) -> str:
    """The text of a cell of one row; empty for anything else, as for an empty cell."""
    if not data:
        return ""
    array = _parse(data, order)
    if array.kind != _CHAR or len(array.content) != 1 or array.shape[0] != 1:
        return ""
    kind, content = array.content[0]
    encoding = _TEXTS.get(kind, "utf-8")
    if encoding == "utf-16":
        encoding += "-le" if order == "<" else "-be"
    try:
        return bytes(content).decode(encoding)
    except UnicodeDecodeError:
        return ""


def _numbers(array: _Array, order: str, count: int) -> list[str | float]:
    if len(array.content) != 1:
        raise MatError(f"{array.name} has no values")
    kind, content = array.content[0]
    dtype = np.dtype(order + _NUMBERS.get(kind, "V1"))
    if dtype.kind == "V" or len(content) != count * dtype.itemsize:
        raise MatError(f"{array.name} has other than its {count:,} values")
    return list(np.frombuffer(bytes(content), dtype).tolist()) if count else []
