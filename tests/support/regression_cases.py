"""Comparisons as ``tmkd bench`` leaves them on disk, with figures drawn at random instead of trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tmkd_plugin.bench.arms import ArmSpec
from tmkd_plugin.bench.configuration import configure
from tmkd_plugin.bench.results import Cell, results_of
from tmkd_plugin.training.files import append_jsonl, write_json
from tmkd_plugin.training.trainer import EpochScores

KD, TMKD = ArmSpec("kd"), ArmSpec("kd", "tmkd")
TIMING = {"torch": "2.15.0", "python": "3.11.7", "machine": "Linux x86_64", "threads": 1, "seconds": 1.0}
REFERENCE_SEEDS = range(100, 120)


def write_comparison(
    folder: Path,
    seeds: Sequence[int],
    *,
    kd: float = 90.0,
    tmkd: float = 91.0,
    contrast: float = 0.5,
    sd: float = 0.6,
    assignments: dict | None = None,
    fingerprint: str = "f" * 64,
    failed: Sequence[int] = (),
    histories: bool = True,
    timing: dict | None = None,
    teacher: str = "a" * 64,
) -> Path:
    """Writes the files of a comparison of KD and KD + TMKD and returns its ``results.json``.

    Args:
        folder: Where to.
        seeds: One run of each arm for each.
        kd: Mean top-1 of KD over seeds.
        tmkd: The same of KD + TMKD.
        contrast: Mean of its text contrast in the last epoch.
        sd: Spread over seeds; that of the contrast is a tenth.
        assignments: Configuration values.
        fingerprint: Of the images.
        failed: Seeds whose enhanced run failed.
        histories: Whether to write ``history.jsonl``.
        timing: What differs in ``timing.json``.
        teacher: The hash of the teacher's weights.
    """
    cells: dict[ArmSpec, list[Cell]] = {KD: [], TMKD: []}
    for seed in seeds:
        draw = np.random.default_rng(seed)
        for arm, mean in ((KD, kd), (TMKD, tmkd)):
            top1 = float(mean + sd * draw.normal())
            scores = EpochScores(epoch=2, val_top1=top1, top1=top1, top5=99.0, recall=top1)
            losses = {"loss": 1.0 + 0.1 * draw.normal(), "text_contrast": contrast + sd / 10 * draw.normal()}
            if arm is TMKD and seed in failed:
                cells[arm].append(Cell(seed, error="the loss is nan | <b>"))
                continue
            cells[arm].append(Cell(seed, scores, scores))
            run = folder / arm.folder / f"seed{seed}"
            run.mkdir(parents=True, exist_ok=True)
            if histories:
                kept = losses if arm is TMKD else {"loss": losses["loss"]}
                append_jsonl(run / "history.jsonl", {"epoch": 1, "losses": dict.fromkeys(kept, 9.0)})
                append_jsonl(run / "history.jsonl", {"epoch": 2, "losses": kept})
    configuration = configure({"seeds": list(seeds)}, assignments or {})
    results = results_of(
        cells,
        [(KD, TMKD)],
        config=configuration.resolved.described,
        dataset={"name": "digits", "fingerprint": fingerprint, "train": 698, "validation": 299, "test": 800},
        teachers=[{"role": "all other arms", "weights_sha256": teacher}],
        text=None,
    )
    write_json(folder / "results.json", results)
    write_json(folder / "timing.json", {**TIMING, **(timing or {})})
    return folder / "results.json"


def edited(path: Path, change) -> Path:
    """Changes the content of a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path
