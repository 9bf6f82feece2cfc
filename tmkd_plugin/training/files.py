"""Files that are either whole or absent, with the same bytes for the same content.

Every writer fills a temporary file beside the target and renames it over the target, so an exception, Ctrl-C or a killed
process leaves the old file or the new one, never a part of one. No timestamp and no unordered map enters the bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

TEMPORARY_SUFFIX = ".part"


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that appears under its name only when the block has ended without an exception.

    Args:
        path: The file to write; its folder is made if it is missing.

    Yields:
        The binary file to write to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two processes that write the same cached file apart.
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary_files(folder: str | Path) -> None:
    """Removes what a killed process (which could not clean up) left of a write in this folder."""
    for temporary in Path(folder).glob(f".*{TEMPORARY_SUFFIX}"):
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a whole file at once; see the module's first lines for what that promises."""
    with atomic_file(path) as file:
        file.write(content)


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON with sorted keys and each float in the shortest form that reads back as the same float.

    Args:
        path: The file to write.
        value: Dicts, lists, tuples, strings, numbers, booleans, ``None``, dataclasses and paths. NaN and infinities are not
            JSON and raise ``ValueError``: write ``None`` for what is not known.
    """
    write_bytes(path, (_to_json(value, indent=2) + "\n").encode())


def append_jsonl(path: str | Path, record: Mapping[str, Any]) -> None:
    """Adds one line of JSON to a file; the file is replaced as a whole, so it never ends in half a line."""
    path = Path(path)
    before = path.read_bytes() if path.exists() else b""
    write_bytes(path, before + json_line(record))


def json_line(record: Mapping[str, Any]) -> bytes:
    """Returns a record as one line of a JSON-lines file."""
    return (_to_json(record) + "\n").encode()


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Reads what ``append_jsonl`` has written."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, sort_keys=True, indent=indent, allow_nan=False, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"Can't write a {type(value).__name__} as JSON.")


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], *, epoch: int | None = None) -> None:
    """Writes tensors as safetensors.

    Args:
        path: The file to write.
        tensors: Name to tensor, of any shape, dtype, device and memory layout; tied tensors are written once for each name.
        epoch: The epoch that the tensors are from, put into the file's metadata.
    """
    from safetensors.torch import save

    # A fresh copy each: the format refuses tensors that share memory.
    plain = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    # One metadata entry at most: the library writes several in an order that changes from process to process.
    write_bytes(path, save(plain, metadata=None if epoch is None else {"epoch": str(epoch)}))


def save_predictions(path: str | Path, index: Tensor, labels: Tensor, logits: Tensor) -> None:
    """Writes what a network says of a split as ``.npz`` with the arrays ``index``, ``label``, ``logits`` and ``predicted``.

    ``predicted`` is the class of the largest logit as it was given: rounded to float16, the two largest may be equal.

    Args:
        path: The file to write.
        index: (N,) int64, the images' positions in the data set's own order.
        labels: (N,) int64.
        logits: (N, K) floating, stored as float16; what lies beyond its range is clamped to its largest number.
    """
    import numpy as np

    largest = torch.finfo(torch.float16).max
    arrays = {
        "index": index.to("cpu", torch.int64),
        "label": labels.to("cpu", torch.int64),
        "logits": logits.detach().cpu().clamp(-largest, largest).to(torch.float16),
        "predicted": logits.detach().cpu().argmax(dim=1),
    }
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, tensor in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, tensor.contiguous().numpy(), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # else the operating system's number enters the bytes
            archive.writestr(entry, content.getvalue())


def sha256_of_file(path: str | Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
