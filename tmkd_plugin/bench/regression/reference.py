"""The reference of a regression check: a configuration, and what each of its arms gave over at least 20 seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tmkd_plugin.bench.results_file import check_version, read_json
from tmkd_plugin.bench.statistics import mean_and_sd
from tmkd_plugin.config_checks import unknown_key
from tmkd_plugin.errors import InputError, unknown_name
from tmkd_plugin.training.files import write_json

SCHEMA_VERSION = 1
FEWEST_SEEDS = 20
FOLDER = Path(__file__).parents[2] / "presets" / "references"
DECIMALS = 6


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Measured(_Model):
    """One quantity of an arm over the reference seeds.

    Attributes:
        mean: Of ``values``.
        sd: Of ``values``, with n - 1 in the divisor.
        n: How many values there are.
        values: Seed to value.
    """

    mean: float
    sd: float = Field(ge=0)
    n: int
    values: dict[int, float]

    @model_validator(mode="after")
    def _agrees(self) -> Measured:
        if len(self.values) < FEWEST_SEEDS:
            raise ValueError(f"expected the values of at least {FEWEST_SEEDS} seeds, got {len(self.values)}")
        mean, sd = mean_and_sd(list(self.values.values()))
        written, found = (self.mean, self.sd, float(self.n)), (mean, sd or 0.0, float(len(self.values)))
        if not all(math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-5) for a, b in zip(written, found, strict=True)):
            raise ValueError(
                f"says mean {self.mean}, sd {self.sd}, n {self.n}, but its values have {mean:.6f}, {sd:.6f}, {len(self.values)}"
            )
        return self

    @classmethod
    def of(cls, values: Mapping[int, float]) -> Measured:
        """Returns the mean and sd of values with the values themselves."""
        mean, sd = mean_and_sd(list(values.values()))
        return cls(mean=round(mean, DECIMALS), sd=round(sd or 0.0, DECIMALS), n=len(values), values=dict(values))


class ArmReference(_Model):
    """What an arm gave.

    Attributes:
        title: Its name in tables.
        baseline: The distillation method.
        enhancer: The enhancer around it, if there is one.
        control: Which control it is, if it is one.
        top1: Test top-1 in percent, epoch chosen by validation.
        terms: Each term of the loss, weighted, mean over the last epoch's steps; empty if they were not recorded.
    """

    title: str
    baseline: str
    enhancer: str | None = None
    control: str | None = None
    top1: Measured
    terms: dict[str, Measured] = Field(default_factory=dict)


class ReferenceConfiguration(_Model):
    """What to run.

    Attributes:
        preset: Name or file of a preset; ``None`` for that of the data set.
        values: What differs from the preset, as in a preset.
    """

    preset: str | None
    values: dict[str, Any]


class ReferenceDataset(_Model):
    """The images.

    Attributes:
        name: The data set's name.
        fingerprint: Its hash; other images can't be compared.
        test: Number of test images.
    """

    name: str
    fingerprint: str
    test: int = Field(ge=1)


class Environment(_Model):
    """Where the reference was recorded: elsewhere the same seeds give other bits.

    Attributes:
        torch: Version of torch.
        python: Version of Python.
        machine: Operating system and machine type.
        threads: Number of CPU threads.
    """

    torch: str
    python: str
    machine: str
    threads: int = Field(ge=1)


class Reference(_Model):
    """The content of a reference file.

    Attributes:
        schema_version: Of the file.
        tmkd: Version of this package that recorded it.
        configuration: What to run.
        check_seeds: The seeds that a check runs.
        dataset: The images.
        environment: Where it was recorded.
        teachers: Role of each teacher to the hash of its weights: another hash is another teacher.
        arms: Name to what the arm gave.
    """

    schema_version: int
    tmkd: str
    configuration: ReferenceConfiguration
    check_seeds: list[int] = Field(min_length=1)
    dataset: ReferenceDataset
    environment: Environment
    teachers: dict[str, str]
    arms: dict[str, ArmReference] = Field(min_length=1)

    @field_validator("check_seeds")
    @classmethod
    def _seeds(cls, value: list[int]) -> list[int]:
        if min(value) < 0 or len(set(value)) < len(value):
            raise ValueError("expected seeds of at least 0, each once")
        return value

    def pairs(self) -> list[tuple[str, str]]:
        """Returns the names of each baseline and of each enhanced arm of it."""
        return [
            (plain, enhanced)
            for plain, before in self.arms.items()
            if before.enhancer is None and before.control is None
            for enhanced, after in self.arms.items()
            if after.enhancer is not None and after.baseline == before.baseline
        ]

    def differences(self, baseline: str, enhanced: str) -> list[float]:
        """Returns ``enhanced - baseline`` in points for each seed that both have."""
        before, after = self.arms[baseline].top1.values, self.arms[enhanced].top1.values
        return [after[seed] - before[seed] for seed in before if seed in after]


def reference_names() -> list[str]:
    """Returns the names of the references that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def reference_path(name_or_path: str) -> Path:
    """Returns the file of a reference that comes with the package, or the path that was given.

    Raises:
        InputError: It is neither a known name nor looks like a path.
    """
    if name_or_path in reference_names():
        return FOLDER / f"{name_or_path}.json"
    path = Path(name_or_path).expanduser()
    if path.suffix != ".json" and "/" not in name_or_path:
        raise unknown_name("reference", name_or_path, [*reference_names(), "FILE.json"])
    return path


def load_reference(path: Path) -> Reference:
    """Reads a reference.

    Raises:
        InputError: The file can't be read, is of a newer version, or something in it is unknown or of a wrong type; one
            line for each problem.
    """
    content = read_json(path, "reference")
    check_version(content, SCHEMA_VERSION, path, "reference")
    try:
        return Reference.model_validate(content)
    except ValidationError as error:
        problems = "\n".join(f"  {line}" for line in _lines(error))
        raise InputError(f"The reference {path} can't be used:\n{problems}") from None


def save_reference(path: Path, reference: Reference) -> None:
    """Writes a reference; the file is whole or absent."""
    write_json(path, reference.model_dump(mode="json"))


def _lines(error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        *parents, key = [str(part) for part in problem["loc"]] or ["file"]
        path = ".".join([*parents, key])
        if problem["type"] == "extra_forbidden":
            yield unknown_key(path, key, _known_keys(parents), "reference")
        elif problem["type"] == "missing":
            yield f"{path}: is missing."
        else:
            yield f"{path}: {problem['msg'].removeprefix('Value error, ')}; got {_shortened(problem['input'])}."


def _known_keys(parents: list[str]) -> list[str]:
    models: dict[str, type[_Model]] = {
        "configuration": ReferenceConfiguration,
        "dataset": ReferenceDataset,
        "environment": Environment,
    }
    if not parents:
        return list(Reference.model_fields)
    if parents[0] == "arms":
        return list((ArmReference if len(parents) == 2 else Measured).model_fields)
    return list(models[parents[0]].model_fields)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
