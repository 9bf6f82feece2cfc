"""A finished comparison on disk: its arms, histories, predictions, students and images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmkd_plugin.bench.output import CONFIG, RESULTS
from tmkd_plugin.bench.predictions import UNREADABLE, Predictions, read_predictions
from tmkd_plugin.bench.results_file import read_results
from tmkd_plugin.errors import InputError, unknown_name
from tmkd_plugin.training.files import read_jsonl
from tmkd_plugin.training.run_folder import HISTORY, PREDICTIONS, STUDENT

if TYPE_CHECKING:
    from torch import nn

    from tmkd_plugin.data.dataset import ImageDataset

Entry = Mapping[str, Any]
"""An arm or a run as ``results.json`` has it."""


@dataclass(frozen=True)
class ArmPair:
    """A baseline and its enhanced self; both are entries of ``results.json``."""

    baseline: Entry
    enhanced: Entry

    @property
    def both(self) -> tuple[Entry, Entry]:
        """The baseline, then the enhanced arm."""
        return self.baseline, self.enhanced

    @property
    def seeds(self) -> list[int]:
        """The seeds that both arms have finished."""
        before, after = map(finished_seeds, self.both)
        return [seed for seed in before if seed in after]


@dataclass(frozen=True)
class FinishedRun:
    """A comparison that has its ``results.json``.

    Attributes:
        folder: Where it lies.
        results: The data of ``results.json``.
    """

    folder: Path
    results: Mapping[str, Any]

    @property
    def class_names(self) -> list[str]:
        """In the order of the labels."""
        return [str(name) for name in self.results["dataset"]["class_names"]]

    def value(self, key: str, default: Any = None) -> Any:
        """Returns a value of the configuration that stands outside sections."""
        entry = self.results["config"].get(key)
        return entry["value"] if isinstance(entry, Mapping) and "value" in entry else default

    def arm(self, name: str) -> Entry:
        """Returns the entry of an arm.

        Raises:
            InputError: The comparison has no such arm.
        """
        arms = {str(arm["name"]): arm for arm in self.results["arms"]}
        if name not in arms:
            raise unknown_name(f"arm of {self.folder}", name, arms)
        entry: Entry = arms[name]
        return entry

    def pairs(self, names: Sequence[str] | None = None) -> list[ArmPair]:
        """Returns each baseline with its enhanced self, or the one pair of arms that is named.

        Raises:
            InputError: The comparison has no enhanced arm, or the arms that are named share no finished seed.
        """
        if names is not None:
            pair = ArmPair(self.arm(names[0]), self.arm(names[1]))
            if not pair.seeds:
                raise InputError(
                    f"The arms {names[0]} and {names[1]} of {self.folder} have no finished seed in common."
                )
            return [pair]
        plain = {arm["baseline"]: arm for arm in self.results["arms"] if arm["name"] == arm["baseline"]}
        found = [
            ArmPair(plain[arm["baseline"]], arm)
            for arm in self.results["arms"]
            if arm["enhancer"] and not arm.get("variant") and arm["baseline"] in plain
        ]
        found = [pair for pair in found if pair.seeds]
        if not found:
            raise InputError(
                f"{self.folder} holds no finished pair of a baseline and its enhanced self, only: "
                f"{', '.join(str(arm['name']) for arm in self.results['arms']) or 'nothing'}. Run `tmkd bench` with "
                "--enhancer tmkd, or name two arms with --arms FIRST,SECOND."
            )
        return found

    def cell(self, arm: Entry, seed: int) -> Path:
        """Returns the folder of a run."""
        return self.folder / str(arm["folder"]) / f"seed{seed}"

    def history(self, arm: Entry, seed: int) -> list[dict[str, Any]]:
        """Returns one record an epoch.

        Raises:
            InputError: The file is missing or damaged.
        """
        path = self.cell(arm, seed) / HISTORY
        try:
            return list(read_jsonl(path))
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from None

    def predictions(self, arm: Entry, seed: int) -> Predictions:
        """Returns what the student says of the test split.

        Raises:
            InputError: The file is missing or damaged.
        """
        path = self.cell(arm, seed) / PREDICTIONS
        try:
            return read_predictions(path)
        except UNREADABLE as error:
            raise _unreadable(path, error) from None

    def student(self, arm: Entry, seed: int) -> nn.Module:
        """Returns the student with the weights of its best epoch, in eval mode.

        Raises:
            InputError: The weights are missing or don't fit.
        """
        from tmkd_plugin.zoo import build_network

        path = self.cell(arm, seed) / STUDENT
        if not path.is_file():
            raise _unreadable(path, FileNotFoundError())
        return build_network(
            str(self.value("student")),
            len(self.class_names),
            checkpoint=path,
            image_size=self.results["dataset"]["image_size"],
        ).eval()


def finished_seeds(arm: Entry) -> list[int]:
    """Returns the seeds of an arm whose runs are finished, in order."""
    return sorted(int(run["seed"]) for run in arm["seeds"] if run["best"] is not None)


def read_run(folder: Path) -> FinishedRun:
    """Reads a comparison.

    Args:
        folder: The folder that ``--out`` named, or the ``results.json`` in it.

    Raises:
        InputError: There is no comparison, it is not finished, or its file can't be used.
    """
    if folder.name == RESULTS and folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Give the folder of a comparison; `tmkd runs` lists them.")
    if not (folder / RESULTS).exists():
        if not (folder / CONFIG).exists():
            raise InputError(f"{folder} holds no comparison (no {RESULTS}); `tmkd runs {folder}` lists those below it.")
        raise InputError(
            f"The comparison in {folder} is not finished: it has no {RESULTS} yet. `tmkd runs {folder}` says how far it is; "
            "the same `tmkd bench` command goes on from there."
        )
    return FinishedRun(folder, read_results(folder / RESULTS))


def newest_run(folder: Path) -> Path:
    """Returns the folder of the newest finished comparison at or below a folder.

    Raises:
        InputError: There is none.
    """
    from tmkd_plugin.bench.run_list import find_comparisons

    found = find_comparisons(folder) if folder.is_dir() else []
    for comparison in found:
        if (comparison.folder / RESULTS).exists():
            return comparison.folder
    raise InputError(f"No finished comparison lies below {folder}: run `tmkd bench`, or name the folder of one.")


def load_images(run: FinishedRun, data_dir: str | None = None) -> ImageDataset:
    """Loads the images of a comparison again, without a download.

    Args:
        run: The comparison.
        data_dir: Where data sets known by name lie; ``None`` for where they lay.

    Raises:
        InputError: The images are not there, or not those of the comparison.
    """
    from tmkd_plugin.config import Experiment
    from tmkd_plugin.data import load_dataset
    from tmkd_plugin.training.teacher_store import loading_of

    values = {key: run.value(key) for key in Experiment.model_fields if run.value(key) not in (None, [])}
    loading = loading_of(Experiment(**values))
    if data_dir is not None:
        loading["data_dir"] = data_dir
    try:
        dataset = load_dataset(**loading, download=False)
    except InputError as error:
        raise InputError(f"The images of {run.folder} can't be loaded: {error}") from None
    wanted = run.results["dataset"]["fingerprint"]
    if dataset.fingerprint != wanted:
        raise InputError(
            f"The images of {loading['name_or_path']} are not those of {run.folder} any more: their fingerprint is "
            f"{dataset.fingerprint[:12]}, that of the comparison {wanted[:12]}. Put the old images back, or run it again."
        )
    return dataset


def _unreadable(path: Path, error: Exception) -> InputError:
    missing = isinstance(error, FileNotFoundError) or not path.exists()
    what = "is missing" if missing else f"can't be read ({json.dumps(str(error))[1:-1]})"
    return InputError(f"{path} {what}: the same `tmkd bench` command makes what is missing or damaged again.")
