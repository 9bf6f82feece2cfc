"""What a finished run leaves beside its weights: what decided its bits, its scores, and the hashes of its files.

A comparison takes a run that is there for its own only if everything that decides its bits is the same; another comparison
in the same folder, with more seeds or other arms, takes it too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tmkd_plugin.bench.arms import STUDENT_ALONE, ArmSpec, parts_of
from tmkd_plugin.bench.configuration import Configuration, logit_kl_source, section_name
from tmkd_plugin.bench.results import Cell
from tmkd_plugin.clip_guidance import ClipGuidance
from tmkd_plugin.config import Experiment
from tmkd_plugin.errors import InputError
from tmkd_plugin.text_teacher import TextEmbeddings
from tmkd_plugin.training.files import sha256_of_file, write_json
from tmkd_plugin.training.run_folder import HEADS, HISTORY, PREDICTIONS, STUDENT, STUDENT_LAST
from tmkd_plugin.training.trainer import EpochScores

RECORD = "run.json"
SCHEMA_VERSION = 1
FILES = (STUDENT, STUDENT_LAST, HEADS, PREDICTIONS, HISTORY)
SELECTION = ("baseline", "enhancer", "variants", "controls", "student_alone", "seeds")
"""Values that say which runs there are, and nothing about any of them."""
ACCELERATION = (
    "precision",
    "accumulation_steps",
    "clip_norm",
    "compile",
    "channels_last",
    "sync_batch_norm",
    "teacher_batch",
)
"""Values that decide how a batch is computed; one that is off is no part of a run's identity, as before it existed."""
REPLAY = ("augmentation_variants",)
"""Values that decide which images a batch holds; likewise."""
PLACE = ("data_dir", "download", "workers", "arms_at_once", "teacher_cache")
"""Values that decide where data come from and how fast, and no result (with the teacher cache, but for the last bits)."""


def identity_of(
    configuration: Configuration,
    arm: ArmSpec,
    seed: int,
    *,
    dataset: Mapping[str, Any],
    teacher_sha256: str,
    text: TextEmbeddings | None,
) -> dict[str, Any]:
    """Returns everything that decides the bits of a run, as JSON values.

    Args:
        configuration: Of the comparison.
        arm: The arm.
        seed: The seed.
        dataset: What ``results.json`` says of the images.
        teacher_sha256: The hash of the weights of the arm's teacher.
        text: The text embeddings, which count for TMKD's arms, with CLIP's answers, which count for RichKD's.
    """
    described = configuration.resolved.described
    alone = arm.baseline == STUDENT_ALONE
    methods = set() if alone else {section_name(arm.baseline)}
    enhancers = parts_of(arm.enhancer) if arm.enhancer else []
    methods.update(enhancers)
    if arm.control == "logit_kl":
        methods.add(logit_kl_source(configuration.enhancers))
    own = {name: _values(described[name]) for name in sorted(methods) if name in described}
    if arm.variant:
        own[str(arm.enhancer)] = {**own[str(arm.enhancer)], **configuration.experiment.variants[arm.variant]}
    general = ("student", "student_pretrained", "device")
    identity = {
        "arm": arm.name,
        "seed": seed,
        "dataset": {key: value for key, value in dataset.items() if key != "name"},
        **{key: described[key]["value"] for key in general},
        **_not_default(described, (*ACCELERATION, *REPLAY)),
        "training": _values(described["training"]),
        "settings": own,
        "teacher_sha256": None if alone else teacher_sha256,
        "text_sha256": _text_sha256(text) if text is not None and "tmkd" in enhancers else None,
    }
    if isinstance(text, ClipGuidance) and "richkd" in enhancers:
        identity["clip_sha256"] = text.sha256(own["richkd"].get("clip_images"))
    plain: dict[str, Any] = json.loads(json.dumps(identity))
    return plain


def write_record(folder: Path, identity: Mapping[str, Any], cell: Cell) -> None:
    """Writes the record of a finished run, last of its files: a folder without one holds no finished run."""
    record = {
        "schema_version": SCHEMA_VERSION,
        "identity": identity,
        "best": None if cell.best is None else asdict(cell.best),
        "last": None if cell.last is None else asdict(cell.last),
        "files_sha256": {name: sha256_of_file(folder / name) for name in FILES if (folder / name).exists()},
    }
    write_json(folder / RECORD, {**record, "sha256": _digest(record)})


def read_record(folder: Path, identity: Mapping[str, Any]) -> tuple[Cell | None, str | None]:
    """Returns the finished run of a folder, or ``None`` and, where something is wrong with what is there, a line that says it.

    Raises:
        InputError: The folder holds a run of another identity, or the record is of a newer version.
    """
    path = folder / RECORD
    if not path.exists():
        return None, None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.pop("sha256") != _digest(record):
            raise ValueError("its content is not what its checksum says")
        version, there, hashes = int(record["schema_version"]), record["identity"], dict(record["files_sha256"])
        cell = Cell(identity["seed"], EpochScores(**record["best"]), EpochScores(**record["last"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return None, f"The record {path} is damaged ({error!r}): the run is made again."
    if version > SCHEMA_VERSION:
        raise InputError(
            f"{path} was written by a newer version (schema {version}, this one reads {SCHEMA_VERSION}). Choose another folder "
            "with --out, or give --overwrite to replace it."
        )
    if there != identity:
        differing = sorted(key for key in {*there, *identity} if there.get(key) != identity.get(key))
        raise InputError(
            f"The run in {folder} is of another configuration; it differs in: {', '.join(differing)}. Choose another folder "
            "with --out, or give --overwrite to replace it."
        )
    for name, expected in hashes.items():
        file = folder / name
        if not file.is_file() or sha256_of_file(file) != expected:
            return None, f"{file} is missing or not what its record says: the run is made again."
    return cell, None


def _not_default(described: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    fields = Experiment.model_fields
    values = {key: described[key]["value"] for key in keys if key in described}
    return {key: value for key, value in values.items() if value != fields[key].default}


def _values(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry["value"] for key, entry in section.items()}


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _text_sha256(text: TextEmbeddings) -> str:
    tensor = text.tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype} {text.views}".encode())
    digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
