"""A stand-in for the bench that trains nothing: every run's figures are a function of its arm and seed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tmkd_plugin.bench.arms import ArmSpec
from tmkd_plugin.bench.preparation import _plan
from tmkd_plugin.errors import RunError

METRICS = ("top1", "top5", "recall")


def figure_of(*parts: object) -> float:
    """A figure in percent with four decimals that depends on its parts alone."""
    digest = hashlib.sha256(json.dumps(list(parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") % 1_000_000 / 10_000


class FakeBench:
    """Remembers what it was asked to run.

    Attributes:
        calls: The folders of the comparisons that it has run.
        trained: The folders of the runs that it has made; a run that is there is not made again.
        fails: Called with the configuration; returns why the comparison fails, or ``None``.
        failing_arm: The arm whose runs fail.
        stop_after: After how many runs it is interrupted.
    """

    def __init__(self) -> None:
        self.calls: list[Path] = []
        self.trained: list[Path] = []
        self.fails = lambda configuration: None
        self.failing_arm: str | None = None
        self.stop_after: int | None = None

    def run(self, configuration, out: Path, *, runs: Path, quiet: bool = False):
        self.calls.append(out)
        problem = self.fails(configuration)
        if problem is not None:
            raise RunError(problem)
        arms = [self._arm(arm, configuration, runs) for arm in arms_of(configuration)]
        results = {
            "schema_version": 1,
            "config": json.loads(json.dumps(configuration.resolved.described, default=str)),
            "dataset": {
                "name": configuration.experiment.dataset, "class_names": ["a", "b"], "image_size": 32,
                "train": 40, "validation": 20, "test": 20,
            },
            "teachers": [{"test_top1": {"rgb": figure_of("teacher", configuration.experiment.teacher)}}],
            "arms": arms,
            "comparisons": [],
        }  # fmt: skip
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.json").write_text(json.dumps({"config": results["config"]}))
        (out / "results.json").write_text(json.dumps(results))
        return results

    def _arm(self, arm: ArmSpec, configuration, runs: Path):
        seeds = [self._seed(arm, seed, configuration, runs) for seed in configuration.experiment.seeds]
        return {"name": arm.name, "title": arm.title, "baseline": arm.baseline, "enhancer": arm.enhancer,
                "control": arm.control, "variant": arm.variant, "seeds": seeds}  # fmt: skip

    def _seed(self, arm: ArmSpec, seed: int, configuration, runs: Path):
        folder = runs / arm.folder / f"seed{seed}"
        if arm.name == self.failing_arm:
            return {"seed": seed, "best": None, "last": None, "error": "the loss is nan | in step_3"}
        if not (folder / "run.json").exists():
            if self.stop_after is not None and len(self.trained) >= self.stop_after:
                raise KeyboardInterrupt
            self.trained.append(folder)
            folder.mkdir(parents=True)
            (folder / "run.json").write_text("{}")
        student = configuration.experiment.student
        scores = {metric: figure_of(arm.name, seed, student, metric) for metric in METRICS}
        return {"seed": seed, "best": {"epoch": 1, "val_top1": 50.0, **scores}, "last": {"epoch": 1, **scores}}


def arms_of(configuration) -> list[ArmSpec]:
    """The arms that the bench makes of a configuration."""
    return _plan(configuration).arms
