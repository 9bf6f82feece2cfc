"""An experiment as data: a preset, what the command line changes, and where every value comes from.

A value is taken from the last of these that gives it: the default of the code, the preset, the command line. What is
unknown, of a wrong type or out of range is refused here with the path of the key, before anything is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tmkd_plugin.config_checks import checked_model, checked_value, unknown_key
from tmkd_plugin.errors import InputError
from tmkd_plugin.seeds import parse_seeds
from tmkd_plugin.settings import Setting

OUR_DEFAULT = "ours"
COMMAND_LINE = "command line"


class Experiment(BaseModel):
    """The values of a comparison that belong to no method and no recipe; the keys at the top of a preset.

    Attributes:
        dataset: A data set's name, or the path of a folder of images.
        data_dir: The folder that holds the data sets known by name; ``None`` for the usual place.
        download: Whether a data set that is not there may be downloaded.
        augmentation: What training images go through: ``crop_flip`` or ``resized_crop``; ``None`` for the data set's own.
        workers: Processes that read images which are not held in memory; no result depends on it.
        image_size: Side of the square images in pixels; ``None`` for the data set's own.
        train_limit: The most training images, equally many of each class; ``None`` for all.
        validation_limit: The same for the validation images.
        test_limit: The same for the test images.
        validation_fraction: Share of the training images that is kept for choosing the epoch, above 0 and below 1;
            ``None`` for the data set's own.
        teacher: Name of the teacher's network.
        teacher_views: Whether the teacher trained here sees RGB images only or a view drawn at random for each image.
        teacher_checkpoint: A file with the teacher's weights, used instead of training one.
        teacher_pretrained: Whether a teacher trained here starts from the weights that its library offers.
        teacher_recipe: Name of a recipe of ``tmkd teachers list --recipes``, or a file of one; its values replace those of
            ``teacher_training`` in weaker layers.
        teacher_seed: Seed of the training of the teacher that all arms and seeds share.
        student: Name of the student's network.
        student_pretrained: Whether the student starts from the weights that its library offers.
        baseline: Names of distillation methods, or ``module:Class`` of one's own.
        enhancer: The methods to compare each baseline with; ``none`` for the baselines alone.
        variants: Name to settings with which the enhancer is run once more, such as ``{rgb_only: {views: [rgb]}}``.
        student_alone: Whether to add the student that is trained without a teacher.
        controls: Whether to add the two control arms for each baseline.
        seeds: One run of every arm for each.
        text: The text teacher: ``small_clip``, an open_clip ``model/tag``, or a file of embeddings.
        device: Where to train, such as ``cpu`` or ``cuda``.
        precision: What the networks compute with while students train: ``fp32``, ``bf16``, or on a GPU ``fp16``.
        accumulation_steps: In how many parts a batch goes through the networks before the weights change.
        clip_norm: The largest L2 norm of a student's gradients; ``None`` for no limit.
        compile: The backend of ``torch.compile`` for student and teacher, such as ``inductor``; ``None`` for none.
        channels_last: Whether networks are laid out NHWC; GPUs only.
        sync_batch_norm: Whether batch norm takes its statistics over all processes; GPUs only.
        teacher_batch: How many images the teacher sees at a time; ``None`` for the whole batch.
        augmentation_variants: How many augmentations of each image the epochs replay; ``None`` for another one in each epoch.
        teacher_cache: Whether the teacher's answers are kept on disk, so that it need not run in each step; results
            agree with those without it up to rounding.
        arms_at_once: How many arms train side by side and share the teacher's passes; ``auto``: as many as fit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    data_dir: str | None = None
    download: bool = True
    augmentation: Literal["crop_flip", "resized_crop"] | None = None
    workers: int = Field(default=0, ge=0)
    image_size: int | None = Field(default=None, ge=8)
    train_limit: int | None = Field(default=None, ge=1)
    validation_limit: int | None = Field(default=None, ge=1)
    test_limit: int | None = Field(default=None, ge=1)
    validation_fraction: float | None = Field(default=None, gt=0, lt=1)
    teacher: str = "resnet20"
    teacher_views: Literal["rgb", "all"] = "all"
    teacher_checkpoint: str | None = None
    teacher_pretrained: bool = False
    teacher_recipe: str | None = None
    teacher_seed: int = Field(default=0, ge=0)
    student: str = "resnet8"
    student_pretrained: bool = False
    baseline: tuple[str, ...] = ("kd",)
    enhancer: tuple[str, ...] = ("tmkd",)
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    student_alone: bool = False
    controls: bool = False
    seeds: tuple[int, ...] = (0, 1, 2)
    text: str = "ViT-B-32-quickgelu/openai"
    device: str = "cpu"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulation_steps: int = Field(default=1, ge=1)
    clip_norm: float | None = Field(default=None, gt=0)
    compile: str | None = None
    channels_last: bool = False
    sync_batch_norm: bool = False
    teacher_batch: int | None = Field(default=None, ge=1)
    augmentation_variants: int | None = Field(default=None, ge=1)
    teacher_cache: bool = False
    arms_at_once: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"

    @field_validator("seeds", mode="before")
    @classmethod
    def _seeds(cls, value: Any) -> tuple[int, ...]:
        return parse_seeds(value)

    @field_validator("baseline", "enhancer", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
        if isinstance(names, (list, tuple)):
            if not names or "" in names:
                raise ValueError("expected a name or a list of names")
            if len(set(names)) < len(names):
                raise ValueError("holds a name twice")
        return names


@dataclass(frozen=True)
class Layer:
    """Values from one source: top-level keys, or sections ``{key: value}``."""

    source: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """The settings that a section of the configuration may have.

    Attributes:
        settings: Key to default; ``None`` accepts any key (a distiller of the user's whose settings we don't know).
        types: Key to the type of its value, where one is known.
    """

    settings: Mapping[str, Setting] | None
    types: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Resolved:
    """A checked configuration.

    Attributes:
        experiment: The values that stand outside sections.
        given: For each section the values that the preset or the command line gives, checked; what is absent has the default.
        described: All values, defaults included, as ``{"value": ..., "source": ...}``; what ``results.json`` holds.
    """

    experiment: Experiment
    given: dict[str, dict[str, Any]]
    described: dict[str, Any]


def resolve(layers: Sequence[Layer], sections: Mapping[str, Section], bare_section: str | None = None) -> Resolved:
    """Merges the layers, later ones winning, and checks every value.

    Args:
        layers: From weakest to strongest.
        sections: The sections there are, by name.
        bare_section: The section of a key that is given without one, if the key is unknown at the top.

    Raises:
        InputError: One line for each problem, with the key's path, what was given and what was expected.
    """
    top: dict[str, tuple[Any, str]] = {}
    inner: dict[str, dict[str, tuple[Any, str]]] = {name: {} for name in sections}
    problems: list[str] = []
    for layer in layers:
        for name, key, value in _entries(layer, sections, bare_section, problems):
            (top if name is None else inner[name])[key] = (value, layer.source)
    experiment = checked_model(Experiment, {key: value for key, (value, _) in top.items()}, problems)
    given = {name: _checked_section(name, inner[name], sections[name], problems) for name in sections}
    if problems or experiment is None:
        raise InputError("\n".join(["The configuration can't be used:", *(f"  {problem}" for problem in problems)]))
    described: dict[str, Any] = {
        key: {"value": value, "source": top[key][1] if key in top else OUR_DEFAULT}
        for key, value in experiment.model_dump(mode="json").items()
    }
    for name, section in sections.items():
        described[name] = _described(given[name], inner[name], section)
    return Resolved(experiment, given, described)


def _entries(
    layer: Layer, sections: Mapping[str, Section], bare_section: str | None, problems: list[str]
) -> Iterator[tuple[str | None, str, Any]]:
    """Yields (section or ``None``, key, value) of what a layer gives, and notes what has no place."""
    for key, value in layer.values.items():
        if key in sections:
            if isinstance(value, Mapping):
                # YAML reads a key such as `null:` or `1:` as no text.
                yield from ((key, str(inner), inner_value) for inner, inner_value in value.items())
            elif value is not None:  # an empty section of a YAML file
                problems.append(f"{key}: expected a section of keys and values, got {value!r} ({layer.source}).")
        elif key in Experiment.model_fields:
            yield None, key, value
        elif bare_section is not None and _accepts(sections[bare_section], key) and not isinstance(value, Mapping):
            yield bare_section, key, value
        else:
            known = [*Experiment.model_fields, *sections]
            if bare_section is not None:
                known += [*(sections[bare_section].settings or {})]
            problems.append(unknown_key(key, key, known, layer.source))


def _accepts(section: Section, key: str) -> bool:
    return section.settings is None or key in section.settings


def _checked_section(
    name: str, entries: Mapping[str, tuple[Any, str]], section: Section, problems: list[str]
) -> dict[str, Any]:
    checked = {}
    for key, (value, source) in entries.items():
        path = f"{name}.{key}"
        if not _accepts(section, key):
            problems.append(unknown_key(path, key, section.settings or (), source))
        else:
            checked[key] = checked_value(path, value, section.types.get(key, Any), problems)
    return checked


def _described(given: Mapping[str, Any], entries: Mapping[str, tuple[Any, str]], section: Section) -> dict[str, Any]:
    settings = section.settings or {}
    described = {key: {"value": setting.value, "source": setting.source} for key, setting in settings.items()}
    for key, value in given.items():
        described[key] = {"value": value, "source": entries[key][1]}
    return described


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Turns ``["training.epochs=5", "text=clip.npz"]`` into ``{"training": {"epochs": 5}, "text": "clip.npz"}``.

    A value is read as YAML reads it: ``true``, ``null``, numbers, ``[5, 8]``, ``{a: 1}``; anything else is text.

    Raises:
        InputError: An entry is not ``key=value`` or ``section.key=value``.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        *section, key = [part.strip() for part in path.split(".")]
        if not equals or not key or len(section) > 1 or "" in section:
            raise InputError(
                f"--set {assignment}: expected key=value or section.key=value, such as training.epochs=20."
            )
        target = values.setdefault(section[0], {}) if section else values
        if not isinstance(target, dict):
            raise InputError(f"--set {assignment}: '{section[0]}' was given a value before, so it can't be a section.")
        target[key] = _yaml_value(text)
    return values


def _yaml_value(text: str) -> Any:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if value is None or isinstance(value, (bool, int, float, list, dict)) else text
