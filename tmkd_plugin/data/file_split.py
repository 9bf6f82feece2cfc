"""A split whose images stay in their files: what it is, and the digest of what the files hold."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tmkd_plugin.errors import InputError

_SHOWN = 20


@dataclass(frozen=True, eq=False)
class FileSplit:
    """The images of one split, in files that are decoded again in each epoch.

    Attributes:
        root: The folder that the paths are relative to.
        paths: N files, relative to the root, with forward slashes.
        labels: int64 (N,), the class of each image.
        ids: int64 (N,), the place of each image in the data set's own order, over all splits.
        image_size: Height and width of the images in batches, in pixels.
        workers: Processes that decode; 0 decodes in the calling process. No result depends on it.
    """

    root: Path
    paths: tuple[str, ...]
    labels: Tensor
    ids: Tensor
    image_size: int
    workers: int = 0

    def __post_init__(self) -> None:
        for name, tensor in (("labels", self.labels), ("ids", self.ids)):
            if tensor.dtype != torch.int64 or tensor.shape != (len(self.paths),):
                raise InputError(
                    f"{name} of shape {tuple(tensor.shape)} and dtype {tensor.dtype}: "
                    f"expected int64 ({len(self.paths)},), one for each path."
                )
        if isinstance(self.image_size, bool) or not isinstance(self.image_size, int) or self.image_size < 1:
            raise InputError(f"image_size={self.image_size!r}: expected a whole number of pixels, 1 or more.")
        check_workers(self.workers)

    def __len__(self) -> int:
        return len(self.paths)

    def to(self, device: torch.device | str) -> FileSplit:
        """Returns the split whose batches are delivered on another device; decoding stays on the CPU."""
        return dataclasses.replace(self, labels=self.labels.to(device), ids=self.ids.to(device))

    def file(self, row: int) -> Path:
        """The file of one image, by its place in the split."""
        return self.root / self.paths[row]


def check_workers(workers: int) -> None:
    """Refuses a number of worker processes that is not a whole number of at least 0."""
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
        raise InputError(
            f"workers={workers!r}: expected a whole number of processes, 0 to decode in the training process."
        )


def file_fingerprint(class_names: Sequence[str], splits: Sequence[FileSplit]) -> str:
    """The sha256 of class names, relative paths, labels, image sizes and of what the files hold, in hexadecimal.

    Reads every file, in threads; the first epoch then finds them in the system's cache, if they fit there.

    Raises:
        InputError: Files are missing, empty or unreadable; the message names them.
    """
    described = [
        {"paths": list(split.paths), "labels": split.labels.tolist(), "image_size": split.image_size}
        for split in splits
    ]
    # surrogateescape: file names need not be valid UTF-8.
    header = json.dumps({"class_names": list(class_names), "splits": described}, ensure_ascii=True)
    digest = hashlib.sha256(header.encode())
    files = [split.file(row) for split in splits for row in range(len(split))]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        answers = list(pool.map(_digest_or_fault, files))
    faults = [(file, answer) for file, answer in zip(files, answers, strict=True) if isinstance(answer, str)]
    if faults:
        raise InputError(_report(faults, len(files)))
    for answer in answers:
        digest.update(answer if isinstance(answer, bytes) else b"")
    return digest.hexdigest()


def _digest_or_fault(file: Path) -> bytes | str:
    """The sha256 of a file's content, or in words why there is none."""
    try:
        with open(file, "rb") as stream:
            content = stream.read()
    except FileNotFoundError:
        return "the file is missing or a broken link"
    except OSError as error:
        return error.strerror or str(error)
    return hashlib.sha256(content).digest() if content else "empty file (0 bytes)"


def _report(faults: list[tuple[Path, str]], total: int) -> str:
    lines = [f"  {file}: {fault}" for file, fault in faults[:_SHOWN]]
    if len(faults) > _SHOWN:
        lines.append(f"  and {len(faults) - _SHOWN} more")
    return f"{len(faults)} of {total} image files can't be read:\n" + "\n".join(lines)
