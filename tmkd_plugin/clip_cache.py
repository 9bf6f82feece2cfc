"""What CLIP says of the images of a split, on disk: one safetensors file for each CLIP, class list and set of images."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tmkd_plugin.errors import InputError
from tmkd_plugin.text_cache import digest_of

_FORMAT = "tmkd CLIP answers 1"
_NAMES = ("features", "cosines", "ids")


def clip_cache_file(cache_dir: Path, key: Mapping[str, Any]) -> Path:
    """Returns where the answers of this key are kept."""
    return cache_dir / f"clip-{digest_of(key)[:32]}.safetensors"


def read_clip_cache(cache_dir: Path, key: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Returns the tensors kept under a key, or None where there are none yet.

    Raises:
        InputError: There is a file, but truncated, damaged or of something else; it says to delete it.
    """
    from safetensors import SafetensorError, safe_open

    path = clip_cache_file(cache_dir, key)
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in _NAMES}
        known = metadata["format"], json.loads(metadata["key"]), metadata["sha256"]
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(
            f"CLIP's cached answers {path} are damaged ({error}). Delete the file and run again."
        ) from error
    if known != (_FORMAT, json.loads(json.dumps(key)), _digest(tensors)):
        raise InputError(
            f"CLIP's cached answers {path} are damaged: they are not what was written there. Delete the file and run again."
        )
    return tensors


def write_clip_cache(cache_dir: Path, key: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Keeps the tensors ``features``, ``cosines`` and ``ids`` under a key and returns the file.

    It is there in full or not at all, also when the process is interrupted.
    """
    from safetensors.torch import save_file

    path = clip_cache_file(cache_dir, key)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {"format": _FORMAT, "key": json.dumps(key), "sha256": _digest(contiguous)}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".clip-", suffix=".tmp")
    os.close(handle)
    try:
        save_file(contiguous, temporary, metadata)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return path


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
