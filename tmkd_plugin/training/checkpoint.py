"""The state of a run that is not finished: on disk while it trains, gone when it is done.

A checkpoint is one safetensors file; numbers and names are JSON in its metadata, so reading one executes nothing. It is
written aside and renamed, and the one before is kept, so a process that is killed at any moment leaves a whole one.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tmkd_plugin.errors import InputError
from tmkd_plugin.training.distributed import process_count
from tmkd_plugin.training.files import write_bytes

SCHEMA_VERSION = 1
CHECKPOINT, PREVIOUS = "checkpoint.safetensors", "checkpoint_previous.safetensors"
CHECKPOINT_SECONDS = 60.0
_STATE, _DIGEST = "state", "sha256"


@dataclass(frozen=True)
class Checkpoint:
    """What was saved.

    Attributes:
        tensors: By name.
        state: What JSON holds: numbers, texts, lists and mappings of them.
    """

    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: The folder of the run.
        identity: What decides the run's bits, as JSON values; a checkpoint of another identity is refused.
        every_seconds: The least time between two checkpoints; 0 saves after every step.
        say: Called with each line for the user.
    """

    def __init__(
        self,
        folder: str | Path,
        identity: Any = None,
        *,
        every_seconds: float = CHECKPOINT_SECONDS,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.identity = _digest(json.dumps(identity, sort_keys=True))
        self.every_seconds = every_seconds
        self._say = say or _silent
        self._saved = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is old enough for another one."""
        return time.monotonic() - self._saved >= self.every_seconds

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Writes a checkpoint; the one before stays as ``checkpoint_previous.safetensors``."""
        from safetensors.torch import save

        plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        header = {
            "schema_version": SCHEMA_VERSION,
            "identity": self.identity,
            "environment": environment(),
            "state": dict(state),
        }
        try:
            text = json.dumps(header, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            self.every_seconds = math.inf
            self._say(f"No checkpoints of {self.folder}: the distiller's extra state is not JSON ({error}).")
            return
        content = save(plain, metadata={_STATE: text, _DIGEST: _digest_of(plain, text)})
        current = self.folder / CHECKPOINT
        if current.exists():
            current.replace(self.folder / PREVIOUS)
        write_bytes(current, content)
        self._saved = time.monotonic()

    def load(self) -> Checkpoint | None:
        """Returns the latest whole checkpoint; ``None`` where there is none.

        Raises:
            InputError: One is of another run or of a newer version, or all that there are are damaged.
        """
        damaged = []
        for path in (self.folder / CHECKPOINT, self.folder / PREVIOUS):
            if not path.exists():
                continue
            try:
                tensors, header = _read(path)
            except ValueError as error:
                damaged.append(f"{path}: {error}")
                continue
            self._check(path, header)
            for line in damaged:
                self._say(f"The checkpoint {line}; the one before it is used.")
            return Checkpoint(tensors, header["state"])
        if damaged:
            raise InputError(
                f"No checkpoint of {self.folder} can be used: {'; '.join(damaged)}. Delete them to start this run again."
            )
        return None

    def clear(self) -> None:
        """Removes the checkpoints of a run that is done."""
        for name in (CHECKPOINT, PREVIOUS):
            (self.folder / name).unlink(missing_ok=True)

    def _check(self, path: Path, header: Mapping[str, Any]) -> None:
        if header["schema_version"] > SCHEMA_VERSION:
            raise InputError(
                f"The checkpoint {path} was written by a newer version (schema {header['schema_version']}, this one reads "
                f"{SCHEMA_VERSION}). Use that version, or delete the file to start this run again."
            )
        if header["identity"] != self.identity:
            raise InputError(
                f"The checkpoint {path} is of another run (other data, teacher, text embeddings or settings). Choose another "
                "folder with --out, or give --overwrite to start again."
            )
        differing = [f"{key} {value}, now {environment()[key]}" for key, value in header["environment"].items()
                     if environment().get(key) != value]  # fmt: skip
        if differing:
            self._say(
                f"{self.folder.parent.name}/{self.folder.name} was begun with {'; '.join(differing)}: the last bits may differ."
            )


def environment() -> dict[str, str]:
    """Returns what bits depend on beside seeds and settings."""
    return {
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
        "processes": str(process_count()),
    }


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a file and checks that it is whole.

    Raises:
        ValueError: It is not; the message says how.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, UnicodeDecodeError, OverflowError, KeyError) as error:
        raise ValueError(f"truncated or damaged ({error})") from None
    text = metadata.get(_STATE, "")
    if metadata.get(_DIGEST) != _digest_of(tensors, text):
        raise ValueError("its content is not what its checksum says")
    header: dict[str, Any] = json.loads(text)
    return tensors, header


def _digest_of(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _silent(line: str) -> None:
    """Says nothing."""
