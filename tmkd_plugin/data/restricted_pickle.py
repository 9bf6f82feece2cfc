"""Pickles that hold data only: arrays, strings, bytes, numbers, lists, tuples and dicts.

A pickle is a program that may import and call anything. This reader imports nothing: the few names by which numpy stores
an array, in versions 1 and 2, stand for small classes of this file; every other name is refused before it is looked up.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd_plugin.errors import InputError

_NUMERIC = re.compile(r"[uif][1248]")
_BYTE_ORDERS = ("|", "<", ">", "=")


def read_plain_pickle(content: bytes, path: Path) -> dict[str, Any]:
    """Reads a dict from a pickle of any protocol, of Python 2 (its strings as Latin-1) or 3.

    Args:
        content: The pickle.
        path: The file it is from, for messages.

    Returns:
        The dict; its values that are arrays are numpy arrays, which can't be written to.

    Raises:
        InputError: It asks for something to be imported, which the message names, is damaged, or is no dict of strings.
    """
    try:
        value = _PlainUnpickler(content, path).load()
    except InputError:
        raise
    except Exception as error:  # the machine of pickle raises errors of every kind on damaged content
        raise InputError(f"'{path}' is damaged or no pickle of plain data ({error}). Get it again.") from error
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InputError(f"'{path}' holds no dict of strings to values: it is not the official file. Get it again.")
    return {key: entry.numpy() if isinstance(entry, _Array) else entry for key, entry in value.items()}


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, content: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """Gives what stands for a name of numpy's, and refuses all others."""
        if (module, name) in _STAND_INS:
            return _STAND_INS[module, name]
        raise InputError(
            f"'{self._path}' asks to import '{module}.{name}', but files of plain data import nothing. It is refused: "
            "remove the file and get the official one."
        )

    def persistent_load(self, pid: Any) -> Any:
        """Refuses references to objects outside of the pickle."""
        raise pickle.UnpicklingError("it refers to objects outside of it")


class _Callable:
    """Something that a pickle may call. It has no attributes that a pickle could change."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes a function")


class _Dtype(_Callable):
    """Stands for a ``numpy.dtype`` of plain numbers."""

    __slots__ = ("_byte_order", "_name")

    def __init__(self, name: Any) -> None:
        if not isinstance(name, str) or not _NUMERIC.fullmatch(name):
            raise pickle.UnpicklingError(f"an array of {name!r} instead of numbers")
        self._name = name
        self._byte_order = "|"

    def __setstate__(self, state: Any) -> None:
        byte_order = state[1]
        if byte_order not in _BYTE_ORDERS:
            raise pickle.UnpicklingError(f"the byte order {byte_order!r}")
        self._byte_order = byte_order

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self._byte_order + self._name)


class _Array(_Callable):
    """Stands for a ``numpy.ndarray``, whose content arrives as its state."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: NDArray[Any] = np.zeros(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, raw = state
        if not isinstance(dtype, _Dtype) or not all(isinstance(side, int) and side >= 0 for side in shape):
            raise pickle.UnpicklingError("an array without a shape or a type")
        # Python 2 stored bytes as a string.
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        kind = dtype.numpy()
        if not isinstance(raw, bytes) or len(raw) != math.prod(shape) * kind.itemsize:
            raise pickle.UnpicklingError("an array whose bytes don't fit its shape")
        self._values = np.frombuffer(raw, kind).reshape(shape, order="F" if is_fortran else "C")

    def numpy(self) -> NDArray[Any]:
        return self._values


class _MakeArray(_Callable):
    """Stands for numpy's ``_reconstruct(numpy.ndarray, (0,), b"b")``."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> _Array:
        return _Array()


class _MakeDtype(_Callable):
    """Stands for ``numpy.dtype("u1", False, True)``."""

    __slots__ = ()

    def __call__(self, name: Any, *flags: Any) -> _Dtype:
        return _Dtype(name)


class _Encode(_Callable):
    """Stands for ``codecs.encode(text, "latin1")``, by which Python 3 stores bytes in old protocols."""

    __slots__ = ()

    def __call__(self, text: Any, encoding: Any = "latin1") -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise pickle.UnpicklingError(f"an encoding {encoding!r}")
        return text.encode("latin1")


class _NoBytes(_Callable):
    """Stands for ``bytes()``, by which Python 3 stores empty bytes in old protocols."""

    __slots__ = ()

    def __call__(self) -> bytes:
        return b""


_STAND_INS: dict[tuple[str, str], _Callable] = {
    ("numpy.core.multiarray", "_reconstruct"): _MakeArray(),
    ("numpy._core.multiarray", "_reconstruct"): _MakeArray(),
    ("numpy", "ndarray"): _Callable(),  # only ever an argument
    ("numpy", "dtype"): _MakeDtype(),
    ("_codecs", "encode"): _Encode(),
    ("__builtin__", "bytes"): _NoBytes(),
}
