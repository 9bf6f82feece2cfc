"""The folder of a comparison: whether it may be written to, and what of an earlier comparison stands there."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tmkd_plugin.bench.arms import ArmSpec, title_of
from tmkd_plugin.bench.lock import LOCK
from tmkd_plugin.bench.run_record import PLACE, RECORD, SELECTION
from tmkd_plugin.errors import InputError
from tmkd_plugin.training.checkpoint import CHECKPOINT
from tmkd_plugin.training.files import remove_temporary_files, write_json

RESULTS, TIMING, CONFIG = "results.json", "timing.json", "config.json"
OF_A_RUN = ("history.jsonl", "error.txt", RECORD, CHECKPOINT)


def default_folder(dataset: str, baselines: Sequence[str], enhancers: Sequence[str]) -> Path:
    """Returns ``runs/<dataset>-<baseline>-<enhancer>``."""
    parts = [Path(dataset).expanduser().resolve().name if "/" in dataset else dataset]
    parts += ["_".join(title_of(name) if ":" in name else name for name in baselines), "_".join(enhancers) or "none"]
    return Path("runs") / re.sub(r"[^A-Za-z0-9_.+-]", "_", "-".join(parts))


class OutputFolder:
    """The folder that a comparison writes to.

    Args:
        path: The folder; made if it is missing.
        identity: What decides the results: the described configuration and the data set.
        overwrite: Whether results of another configuration, or finished ones, may be replaced.
        runs: The folder of the runs, which several comparisons can share; ``None`` for ``path``.

    Attributes:
        finished: The results and timing of the same comparison, if they stand there complete.

    Raises:
        InputError: It can't be written to, or holds something else than this comparison.
    """

    def __init__(
        self, path: Path, identity: Mapping[str, Any], *, overwrite: bool = False, runs: Path | None = None
    ) -> None:
        self.path = path
        self.runs = runs or path
        self.finished: tuple[dict[str, Any], dict[str, Any]] | None = None
        check_writable(path)
        wanted = json.loads(json.dumps(identity))
        there = self._read(RESULTS, overwrite) or self._read(CONFIG, overwrite)
        if there is not None and not overwrite:
            self._check_same(there, wanted)
            if _finished(there, wanted):
                self.finished = there, self._read(TIMING, overwrite) or {}
        elif there is None and not overwrite and any(file.name != LOCK for file in path.iterdir()):
            raise InputError(
                f"The folder {path} holds files that are not of a comparison. Choose an empty folder or a new one with "
                "--out, or give --overwrite to add the results to it."
            )
        if self.finished is None:
            if overwrite:
                self._clear()
            remove_temporary_files(path)
            for name in (RESULTS, TIMING):
                (path / name).unlink(missing_ok=True)
            write_json(path / CONFIG, wanted)

    def cell(self, arm: ArmSpec, seed: int) -> Path:
        """Returns the folder of a run."""
        return self.runs / arm.folder / f"seed{seed}"

    def write(self, results: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        """Writes what the comparison found and how long it took; each file is whole or absent."""
        write_json(self.path / TIMING, timing)
        write_json(self.path / RESULTS, results)

    def _read(self, name: str, overwrite: bool) -> dict[str, Any] | None:
        file = self.path / name
        if not file.exists():
            return None
        try:
            content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            if overwrite:
                return None
            raise InputError(f"{file} can't be read: {error}. Give --overwrite to replace it.") from None
        return content

    def _check_same(self, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        # What only one of the two has is a method or a control that the other does not run.
        shared = [key for key in wanted["config"] if key in there.get("config", {}) and key not in (*SELECTION, *PLACE)]
        before, now = (
            {"config": {key: side.get("config", {}).get(key) for key in shared}, "dataset": side.get("dataset")}
            for side in (there, wanted)
        )
        differing = list(_differences(before, now))
        if differing:
            raise InputError(
                f"The folder {self.path} holds results of another configuration:\n  "
                + "\n  ".join(differing[:10])
                + "\n"
                "Choose another folder with --out, or give --overwrite to replace them."
            )

    def _clear(self) -> None:
        """Removes the runs of an earlier comparison, so that no file of it is taken for one of this."""
        for folder in self.runs.glob("*/seed*"):
            if re.fullmatch(r"seed\d+", folder.name) and any((folder / name).exists() for name in OF_A_RUN):
                shutil.rmtree(folder)
                with contextlib.suppress(OSError):  # other seeds are still there
                    folder.parent.rmdir()


def _finished(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Says whether results are whole and of the very comparison that is wanted."""
    if "arms" not in there or not all(run["best"] for arm in there["arms"] for run in arm["seeds"]):
        return False
    keys = {*there["config"], *wanted["config"]} - {*PLACE}
    before, now = ({key: side["config"].get(key) for key in keys} for side in (there, wanted))
    return not list(_differences(before, now))


def check_writable(path: Path) -> None:
    """Makes a folder and refuses one that can't be written to."""
    probe = path / f".{CONFIG}.probe.part"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(f"The folder {path} can't be written to: {error}. Choose another one with --out.") from None


def _differences(there: Any, wanted: Any, path: str = "") -> Iterator[str]:
    """Yields a line for each value that differs, whatever its source; dictionaries are walked."""
    if isinstance(there, Mapping) and isinstance(wanted, Mapping):
        if "source" in wanted and "value" in wanted:
            there, wanted = {"value": there.get("value")}, {"value": wanted["value"]}
        for key in sorted({*there, *wanted}):
            name = path if key == "value" else f"{path}.{key}" if path and path != "config" else key
            yield from _differences(there.get(key), wanted.get(key), name)
    elif there != wanted:
        yield f"{path}: there {there!r}, now {wanted!r}"
