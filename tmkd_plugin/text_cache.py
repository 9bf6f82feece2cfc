"""Text embeddings on disk: one safetensors file each, which is also what a text source ``/path/file.safetensors`` reads.

The metadata says what the numbers are of: format, class names, views and, as ``key``, everything that they depend on. A
digest of the numbers tells a damaged file from a good one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tmkd_plugin.errors import InputError

_FORMAT = "tmkd text embeddings 1"
_TENSOR_NAME = "embeddings"


@dataclass(frozen=True)
class StoredText:
    """The content of one file.

    Attributes:
        embeddings: (V, K, D) float32 with rows of length 1.
        class_names: K names, in the order of the rows.
        views: V names, in the order of the first dimension.
        key: What the numbers depend on: model, weights, prompts, class names, library version.
        source: The text source that they come from, such as ``"ViT-B-32-quickgelu/openai"``.
    """

    embeddings: torch.Tensor
    class_names: list[str]
    views: list[str]
    key: dict[str, Any]
    source: str


def default_cache_dir() -> Path:
    """Returns the folder named by the environment variable ``TMKD_CACHE``, else ``~/.cache/tmkd``."""
    return Path(os.environ.get("TMKD_CACHE") or "~/.cache/tmkd").expanduser()


def digest_of(key: Mapping[str, Any]) -> str:
    """Returns the sha256 of a key, the same on every machine: 64 hexadecimal digits."""
    return hashlib.sha256(_as_json(key).encode()).hexdigest()


def cache_file(cache_dir: Path, key: Mapping[str, Any]) -> Path:
    """Returns where the embeddings of this key are kept."""
    return cache_dir / f"text-{digest_of(key)[:32]}.safetensors"


def read_cache(cache_dir: Path, key: Mapping[str, Any]) -> StoredText | None:
    """Returns the embeddings kept under this key, or None where there are none yet.

    Raises:
        InputError: If there is a file, but truncated, damaged or of something else; it says to delete it.
    """
    path = cache_file(cache_dir, key)
    if not path.is_file():
        return None
    advice = "Delete it and run again."
    stored = read_text_file(path, advice)
    if _as_json(stored.key) != _as_json(key):
        differing = sorted(name for name in {*stored.key, *key} if stored.key.get(name) != key.get(name))
        raise InputError(
            f"The cached text embeddings {path} are of something else than their file name says"
            f" (they differ in: {', '.join(differing)}). {advice}"
        )
    return stored


def write_cache(cache_dir: Path, stored: StoredText) -> Path:
    """Keeps embeddings under their key and returns the file."""
    path = cache_file(cache_dir, stored.key)
    write_text_file(path, stored)
    return path


def read_text_file(path: Path, advice: str) -> StoredText:
    """Reads a file that ``write_text_file`` wrote.

    Args:
        path: An existing file.
        advice: What to do about a file that can't be used, as the last sentence of the error.

    Raises:
        InputError: If it is truncated, damaged, or a safetensors file of something else; the message starts with its path.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise InputError(
                    f"{path} holds no text embeddings: its format is {metadata.get('format')!r}, expected {_FORMAT!r}."
                    f" {advice}"
                )
            embeddings = file.get_tensor(_TENSOR_NAME)
        stored = StoredText(embeddings, **{name: json.loads(metadata[name]) for name in _JSON_FIELDS})
        intact = metadata["sha256"] == _digest_of_tensor(embeddings)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} can't be read as text embeddings: it is truncated or damaged ({error}). {advice}"
        ) from error
    if not intact:
        raise InputError(f"{path} is damaged: its numbers are not the ones that were written. {advice}")
    return stored


def write_text_file(path: Path, stored: StoredText) -> None:
    """Writes embeddings; the file is there in full or not at all, also when the process is interrupted."""
    from safetensors.torch import save_file

    embeddings = stored.embeddings.contiguous()
    metadata = {name: _as_json(getattr(stored, name)) for name in _JSON_FIELDS}
    metadata |= {"format": _FORMAT, "sha256": _digest_of_tensor(embeddings)}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:16]}-", suffix=".tmp")
    os.close(handle)
    try:
        save_file({_TENSOR_NAME: embeddings}, temporary, metadata)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


_JSON_FIELDS = ("class_names", "views", "key", "source")


def _as_json(value: Mapping[str, Any] | Sequence[Any] | str) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True)


def _digest_of_tensor(tensor: torch.Tensor) -> str:
    header = f"{tensor.dtype} {tuple(tensor.shape)}"
    return hashlib.sha256(header.encode() + tensor.contiguous().numpy().tobytes()).hexdigest()
