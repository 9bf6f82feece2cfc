"""The folder of trained teachers: one folder each, named by everything that decides its weights.

A folder with a record is a teacher, whole and final. Training happens in a hidden folder beside it, which takes the
teacher's name when it is done: two processes, or one that is killed, leave no half teacher.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from tmkd_plugin.errors import InputError, TmkdNotice, unknown_name
from tmkd_plugin.training.files import TEMPORARY_SUFFIX, sha256_of_file

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from torch import Tensor

    from tmkd_plugin.config import Experiment
    from tmkd_plugin.data.dataset import ImageDataset
    from tmkd_plugin.training.settings import TrainingSettings
    from tmkd_plugin.views import ViewSettings

WEIGHTS, RECORD, HISTORY = "teacher.safetensors", "teacher.json", "history.jsonl"
SCHEMA_VERSION = 2
"""Part of what names a folder: teachers of another version are not found, and so trained again."""

_KEY_DIGITS, _SHORT_DIGITS = 16, 8
_LOADING = (
    "image_size", "data_dir", "augmentation", "train_limit", "validation_limit", "test_limit", "validation_fraction",
)  # fmt: skip


@dataclass(frozen=True)
class StoredTeacher:
    """A teacher in the store.

    Attributes:
        folder: Where it lies.
        record: What ``teacher.json`` says; empty if it can't be read.
        problem: Why the teacher can't be used, in words; ``None`` if nothing is known against it.
    """

    folder: Path
    record: dict[str, Any]
    problem: str | None = None

    @property
    def short_hash(self) -> str:
        """The first digits of the hash of everything that decides the weights."""
        return self.folder.name.rpartition("-")[2][:_SHORT_DIGITS]

    @property
    def network(self) -> str:
        """The network's name, as far as it is known."""
        return str(self.record.get("identity", {}).get("network", self.folder.name.rpartition("-")[0]))

    @property
    def title(self) -> str:
        """Network and short hash."""
        return f"{self.network} {self.short_hash}"


def loading_of(experiment: Experiment) -> dict[str, Any]:
    """Returns what ``load_dataset`` is called with, as far as it decides the images: what a teacher's record keeps of it.

    A folder is named by its full path, so that it is found from anywhere.
    """
    name = experiment.dataset
    given = {key: getattr(experiment, key, None) for key in _LOADING}
    path = Path(name).expanduser()
    return {"name_or_path": str(path.resolve()) if path.is_dir() else name} | {
        key: value for key, value in given.items() if value is not None
    }


def teacher_identity(
    name: str,
    dataset: ImageDataset,
    settings: TrainingSettings,
    views: str,
    seed: int,
    view_settings: ViewSettings,
    pretrained: bool,
) -> dict[str, Any]:
    """Returns everything that decides a teacher's weights; through JSON and back, so that it compares with what was written."""
    identity = {
        "schema_version": SCHEMA_VERSION,
        "network": name,
        "num_classes": dataset.num_classes,
        "data_fingerprint": dataset.fingerprint,
        "normalisation": [dataset.mean, dataset.std],
        "augmentation": dataclasses.asdict(dataset.augmentation),
        "settings": dataclasses.asdict(settings),
        "views": views,
        # Of an RGB-trained teacher they decide what its record says of the other views.
        "view_settings": dataclasses.asdict(view_settings),
        "seed": seed,
        "pretrained": pretrained_weights(name) if pretrained else None,
        "torch": torch.__version__,
    }
    plain: dict[str, Any] = json.loads(json.dumps(identity))
    return plain


def pretrained_weights(name: str) -> str:
    """Returns what ``build_network(name, pretrained=True)`` starts from, such as ``torchvision resnet50 IMAGENET1K_V1``.

    The names without a tag are resolved, since what they stand for differs from one version of a library to the next.
    """
    library, _, foreign = name.rpartition("/")
    architecture, _, tag = foreign.partition(".")
    if library == "timm" and not tag:
        import timm

        # Where there is no such network or no weights, build_network says so.
        tag = getattr(timm.get_pretrained_cfg(architecture), "tag", "") if timm.is_model(architecture) else ""
    elif library == "torchvision" and not tag:
        from torchvision import models

        known = architecture in models.list_models(module=models)
        tag = models.get_model_weights(architecture)["DEFAULT"].name if known else ""
    elif not library:
        library, tag = "torchvision", "IMAGENET1K_V1"
    return f"{library} {architecture} {tag}"


def teacher_folder(store: str | Path, identity: Mapping[str, Any]) -> Path:
    """Returns the folder of the teacher of this identity; see :func:`teacher_identity`."""
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in identity["network"])
    return Path(store) / f"{name}-{key[:_KEY_DIGITS]}"


def holds_teacher(folder: Path) -> bool:
    """Says whether there is a teacher in a folder: its record is the last file to come."""
    return (folder / RECORD).exists()


@contextlib.contextmanager
def training_folder(folder: Path) -> Iterator[Path | None]:
    """Lets one process at a time train a teacher, in a hidden folder that becomes the teacher's at the end.

    Where another process trains the same teacher, waits for it. What an interrupted training has left is still there, for
    its checkpoint.

    Args:
        folder: The teacher's own folder.

    Yields:
        The folder to train in; ``None`` if the teacher is there by now.

    Raises:
        InputError: The store can't be written to.
    """
    unfinished = folder.with_name(f".{folder.name}{TEMPORARY_SUFFIX}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{folder.name}.lock").open("ab")
    except OSError as error:
        raise InputError(
            f"The folder of teachers {folder.parent} can't be written to ({error.strerror}). Set TMKD_CACHE to another folder."
        ) from error
    with lock:
        _wait_for(lock, folder)
        if holds_teacher(folder):
            yield None
            return
        unfinished.mkdir(exist_ok=True)
        yield unfinished
        if folder.exists():  # without a record: no teacher
            shutil.rmtree(folder)
        unfinished.rename(folder)


def _wait_for(lock: BinaryIO, folder: Path) -> None:
    """Locks a file until it is closed, also by the end of the process; does nothing where files can't be locked."""
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        warnings.warn(f"Another process trains {folder.name}: waiting for it.", TmkdNotice, stacklevel=4)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        return


def stored_teachers(store: str | Path) -> list[StoredTeacher]:
    """Returns every teacher in the store, by network and hash."""
    folders = [path for path in Path(store).glob("*") if not path.name.startswith(".") and holds_teacher(path)]
    return [stored_teacher(folder) for folder in sorted(folders)]


def stored_teacher(folder: Path) -> StoredTeacher:
    """Returns the teacher in a folder; what is wrong with its record becomes its problem."""
    try:
        return StoredTeacher(folder, read_record(folder))
    except InputError as error:
        return StoredTeacher(folder, {}, str(error))


def find_teachers(store: str | Path, wanted: Sequence[str]) -> list[StoredTeacher]:
    """Returns teachers by name.

    Args:
        store: The folder of teachers.
        wanted: Networks, folders' names, or first digits (4 or more) of hashes of folders or weights; ``all`` for all.

    Raises:
        InputError: One of them names no teacher.
    """
    known = stored_teachers(store)
    found: dict[Path, StoredTeacher] = {}
    for name in wanted:
        matching = [teacher for teacher in known if name == "all" or _is_called(teacher, name)]
        if not matching and name != "all":
            names = {word for teacher in known for word in (teacher.network, teacher.short_hash)}
            raise unknown_name(f"teacher in {store}", name, names)
        found |= {teacher.folder: teacher for teacher in matching}
    return list(found.values())


def _is_called(teacher: StoredTeacher, name: str) -> bool:
    if name in (teacher.network, teacher.folder.name):
        return True
    hashes = (teacher.folder.name.rpartition("-")[2], str(teacher.record.get("weights_sha256", "")))
    return len(name) >= 4 and any(digits.startswith(name.lower()) for digits in hashes)


def read_record(folder: Path) -> dict[str, Any]:
    """Reads a teacher's record.

    Raises:
        InputError: It can't be read, lacks something, is of another version, or of another teacher than the folder's name.
    """
    path = folder / RECORD
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        identity = record["identity"] if "identity" in record else record["recipe"]  # its name in version 1
        if identity["schema_version"] != SCHEMA_VERSION:
            raise InputError(
                f"The teacher's record '{path}' is of version {identity['schema_version']}, this one reads {SCHEMA_VERSION}: "
                f"it is never used. {advice_for(folder)}"
            )
        float(record["val_top1"]["rgb"]), float(record["test_top1"]["rgb"]), str(record["weights_sha256"])
        named_by = teacher_folder(folder.parent, identity)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"The teacher's record '{path}' can't be read ({error!r}). {advice_for(folder)}") from error
    if named_by != folder:
        raise InputError(
            f"The teacher's record '{path}' is of another teacher than its folder's name. {advice_for(folder)}"
        )
    return record


def read_weights(folder: Path, record: Mapping[str, Any]) -> dict[str, Tensor]:
    """Reads a teacher's weights.

    Raises:
        InputError: They are missing or not those that the record names.
    """
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    if not path.is_file() or sha256_of_file(path) != record["weights_sha256"]:
        raise InputError(
            f"The teacher's weights '{path}' are missing or not those that its record names. {advice_for(folder)}"
        )
    weights: dict[str, Tensor] = load_file(path)
    return weights


def advice_for(folder: Path) -> str:
    """Returns what to do about a teacher that is not what its record says."""
    return f"Delete the folder '{folder}' to train the teacher again."
