"""The small CLIP on disk: a folder with an open_clip checkpoint and the record of its training."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tmkd_plugin.errors import InputError

_WEIGHTS_NAME = "open_clip_model.safetensors"
_RECORD_NAME = "training.json"


@dataclass(frozen=True)
class TrainingRecord:
    """How the weights in a folder came about.

    Attributes:
        epoch: The epoch whose weights were kept, counted from 1: the last of those with the highest accuracy.
        history: Validation accuracy of every epoch, percent.
    """

    epoch: int
    history: list[float]

    @property
    def validation_accuracy(self) -> float:
        """Validation accuracy of the kept epoch, percent."""
        return self.history[self.epoch - 1]


def digest_of_tensors(tensors: Sequence[torch.Tensor]) -> str:
    """Returns the sha256 of shapes and numbers: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr((str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def library_versions() -> dict[str, str]:
    """Returns the versions on which the bits of a training depend."""
    return {name: importlib.metadata.version(name) for name in ("torch", "open_clip_torch")}


def write_checkpoint(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    history: list[float],
    key: Mapping[str, Any],
) -> None:
    """Writes a local open_clip checkpoint; its folder is there in full or not at all, also after an interruption.

    Args:
        folder: The folder to make; left alone if another process has made it in the meantime.
        weights: The state dict of the best epoch.
        config: open_clip's configuration, ``model_cfg`` and ``preprocess_cfg``.
        history: Validation accuracy of every epoch, percent.
        key: What the training depended on, kept for the reader.
    """
    from safetensors.torch import save_file

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".small-clip-"))
    try:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary / _WEIGHTS_NAME)
        record = {
            "epoch": max(range(len(history)), key=lambda index: (history[index], index)) + 1,
            "history": history,
            "weights_sha256": _sha256(temporary / _WEIGHTS_NAME),
            "key": key,
        }
        (temporary / "open_clip_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        (temporary / _RECORD_NAME).write_text(json.dumps(record, indent=1), encoding="utf-8")
        try:
            os.replace(temporary, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_record(folder: Path) -> TrainingRecord:
    """Reads the record of a folder and checks the weights against it.

    Raises:
        InputError: If a file is missing or damaged; it says to delete the folder.
    """
    try:
        content = json.loads((folder / _RECORD_NAME).read_text(encoding="utf-8"))
        record = TrainingRecord(int(content["epoch"]), [float(accuracy) for accuracy in content["history"]])
        intact = content["weights_sha256"] == _sha256(folder / _WEIGHTS_NAME)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"The cached small CLIP {folder} is incomplete ({error}). Delete this folder and run again."
        ) from error
    if not intact:
        raise InputError(
            f"The cached small CLIP {folder} is damaged ({_WEIGHTS_NAME}). Delete this folder and run again."
        )
    return record


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
