"""From a preset and the command line to a checked configuration, with the settings of every method that takes part."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

from tmkd_plugin.baselines import BASELINES, baseline_class
from tmkd_plugin.baselines.catkd_pairs import published_settings
from tmkd_plugin.bench.arms import ENHANCERS, ArmSpec, check_enhancers, enhancer_class, expand_baselines, parts_of
from tmkd_plugin.config import COMMAND_LINE, Experiment, Layer, Resolved, Section, resolve
from tmkd_plugin.config_checks import checked_value, unknown_key
from tmkd_plugin.errors import InputError
from tmkd_plugin.presets import EMBEDDED_DATASET, load_preset, preset_for
from tmkd_plugin.richkd_settings import RichKDSettings
from tmkd_plugin.settings import Setting
from tmkd_plugin.tmkd_settings import TMKDSettings
from tmkd_plugin.training.recipes import recipe_values
from tmkd_plugin.training.settings import TrainingSettings
from tmkd_plugin.views import VIEW_NAMES, ViewSettings

RECIPES = ("training", "teacher_training")
SMALL_CLIP = "small_clip"
SMALL_CLIP_SETTINGS = {
    "epochs": Setting(
        10, "ours", "passes over the training images; the best of them by validation is taken; at least 1"
    ),
    "seed": Setting(0, "ours", "seed of the small CLIP's training"),
}
VIEWS = Setting(list(VIEW_NAMES), "paper", "the views that the teacher is shown")
"""An argument of the enhancers that is no number of the method; see ``TMKDEnhancer``."""
ENHANCER_SETTINGS: dict[str, tuple[type, ...]] = {
    "tmkd": (TMKDSettings, ViewSettings),
    "richkd": (RichKDSettings,),
}
_NETWORKS = (
    "self",
    "student",
    "teacher",
    "distiller",
    "class_names",
    "text",
    "mean",
    "std",
    "views",
    "seed",
    "input_size",
)


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What is compared and how.

    Attributes:
        resolved: The checked values.
        baselines: Names of the baselines, ``all`` written out.
        enhancers: Names of the enhancers.
        preset: Name or path of the preset.
        without_effect: What ``--set`` gives to methods and steps that do not take part.
    """

    resolved: Resolved
    baselines: list[str]
    enhancers: list[str]
    preset: str
    without_effect: list[str]

    @property
    def experiment(self) -> Experiment:
        """The values outside sections."""
        return self.resolved.experiment

    def recipe(self, name: str) -> TrainingSettings:
        """Returns the recipe ``training`` or ``teacher_training``."""
        return TrainingSettings(**self.resolved.given[name])

    def settings_of(self, method: str) -> dict[str, Any]:
        """Returns what is given for a baseline or enhancer; the rest has its defaults."""
        return dict(self.resolved.given[section_name(method)])

    def enhancer_settings(self, arm: ArmSpec, part: str) -> dict[str, Any]:
        """Returns what is given for one of the enhancers of an arm, with what its variant changes."""
        changed = self.experiment.variants[arm.variant] if arm.variant else {}
        return {**self.settings_of(part), **changed}

    @property
    def enhancer_parts(self) -> list[str]:
        """Every enhancer that takes part, alone or around another, each once."""
        return list(dict.fromkeys(part for name in self.enhancers for part in parts_of(name)))


def configure(flags: Mapping[str, Any], assignments: Mapping[str, Any], preset: str | None = None) -> Configuration:
    """Builds the configuration of a comparison.

    Args:
        flags: Top-level values from options such as ``--seeds``.
        assignments: Values from ``--set``, which win over the flags.
        preset: Name or file of a preset; ``None`` for the one that fits the data set.

    Raises:
        InputError: Something is unknown, of a wrong type or out of range; the message lists every such problem.
    """
    command_line = {**flags, **assignments}
    if preset is None:
        preset = preset_for(str(command_line.get("dataset", EMBEDDED_DATASET)))
    layers = [
        Layer(f"preset {preset}", load_preset(preset)),
        Layer(COMMAND_LINE, flags),
        Layer(COMMAND_LINE, assignments),
    ]
    if not any("dataset" in layer.values for layer in layers):
        raise InputError(f"The preset {preset} names no data set: give one with --dataset NAME_OR_FOLDER.")
    baselines = expand_baselines(_names(_last(layers, "baseline", "kd")), list(BASELINES))
    enhancers = check_enhancers(_names(_last(layers, "enhancer", "tmkd")))
    sections = _sections(baselines)
    layers = [_published_values(layers), *_with_recipes(layers)]
    bare = section_name(baselines[0]) if len(baselines) == 1 else None
    layers = [_scaled(layers[:position], layer) for position, layer in enumerate(layers)]
    resolved = resolve(layers, sections, bare)
    _check_recipes(resolved)
    _check_variants(resolved.experiment, enhancers, sections)
    unused = _unused(resolved, baselines, enhancers)
    without_effect = [
        f"{key}.{name}" if isinstance(value, Mapping) else key
        for key, value in assignments.items()
        if key in unused
        for name in (value if isinstance(value, Mapping) else [key])
    ]
    return Configuration(_without(resolved, unused, baselines, enhancers), baselines, enhancers, preset, without_effect)


def logit_kl_source(enhancers: Sequence[str]) -> str:
    """Returns the enhancer whose weight and temperature the control with a logit KL takes: the first one."""
    return parts_of(enhancers[0])[-1] if enhancers else "tmkd"


def section_name(method: str) -> str:
    """Returns the section that holds a method's settings: its name, or the class of ``module:Class``."""
    return method.rpartition(":")[2]


def _last(layers: Sequence[Layer], key: str, default: Any) -> Any:
    return next((layer.values[key] for layer in reversed(layers) if key in layer.values), default)


def _names(value: Any) -> list[str]:
    parts = value if isinstance(value, (list, tuple)) else str(value).split(",")
    names = [str(part).strip() for part in parts]
    return [name if ":" in name else name.lower() for name in names]


def _sections(baselines: Sequence[str]) -> dict[str, Section]:
    recipe = Section(TrainingSettings.SETTINGS, get_type_hints(TrainingSettings))
    sections = dict.fromkeys(RECIPES, recipe)
    sections[SMALL_CLIP] = Section(SMALL_CLIP_SETTINGS, {"epochs": int, "seed": int})
    for name in ENHANCERS:
        method = enhancer_class(name)
        section = section_of(method, ENHANCER_SETTINGS.get(name, ()))
        if "views" in inspect.signature(method).parameters:
            section = Section({**(section.settings or {}), "views": VIEWS}, {**section.types, "views": list[str]})
        sections[name] = section
    for name in [*BASELINES, *baselines]:
        sections[section_name(name)] = section_of(baseline_class(name))
    return sections


def section_of(method: Callable[..., Any], dataclasses_: Sequence[type] = ()) -> Section:
    """Returns the settings of a method: its ``SETTINGS``, or for a class of the user's the arguments of its constructor.

    Args:
        method: The class, or a function that builds the distiller.
        dataclasses_: Where the types of settings stand that the constructor takes as ``**settings``.
    """
    parameters = inspect.signature(method).parameters
    types = _types(method)
    for owner in dataclasses_:
        types |= get_type_hints(owner)
    declared = getattr(method, "SETTINGS", None)
    if declared:
        # The bench gives each run's own seed.
        settings = {name: setting for name, setting in declared.items() if name != "seed"}
        return Section(settings, {name: types.get(name, _type_of(setting.value)) for name, setting in settings.items()})
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return Section(None, types)
    own = {name: _default(parameter) for name, parameter in parameters.items() if name not in _NETWORKS}
    return Section({name: Setting(default, "the distiller's own default", "") for name, default in own.items()}, types)


def _types(method: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(method.__init__ if inspect.isclass(method) else method)
    except (NameError, TypeError):  # annotations of names that exist for type checkers only
        return {}


def _type_of(default: Any) -> Any:
    if isinstance(default, (int, float)) and not isinstance(default, bool):
        return float  # a whole default does not say that the value must be whole
    if isinstance(default, (bool, str)):
        return type(default)
    return Any


def _default(parameter: inspect.Parameter) -> Any:
    return None if parameter.default is inspect.Parameter.empty else parameter.default


def _published_values(layers: Sequence[Layer]) -> Layer:
    """Returns what the authors of a method published for this data set and pair of networks."""
    names = (str(_last(layers, key, "")) for key in ("teacher", "student", "dataset"))
    values = published_settings(*names)
    return Layer("official code (CAT-KD's configuration of this pair)", {"catkd": values} if values else {})


def _with_recipes(layers: Sequence[Layer]) -> list[Layer]:
    """Puts below each layer that names a teacher's recipe that recipe, whose values replace all earlier ones."""
    expanded = []
    for layer in layers:
        name = layer.values.get("teacher_recipe")
        if isinstance(name, str):
            expanded.append(Layer(f"recipe {name}", {"teacher_training": recipe_values(name)}))
        expanded.append(layer)
    return expanded


def _check_variants(experiment: Experiment, enhancers: Sequence[str], sections: Mapping[str, Section]) -> None:
    if not experiment.variants:
        return
    if len(enhancers) != 1 or enhancers[0] not in ENHANCERS:
        raise InputError(f"variants: need one enhancer to vary, got {', '.join(enhancers) or 'none'}.")
    section, problems = sections[enhancers[0]], []
    for name, settings in experiment.variants.items():
        if not re.fullmatch(r"[A-Za-z0-9_.+-]+", name):
            problems.append(f"variants.{name}: expected a name of letters, digits and _ . + -.")
        for key, value in settings.items():
            path = f"variants.{name}.{key}"
            if key in (section.settings or {}):
                checked_value(path, value, section.types.get(key, Any), problems)
            else:
                problems.append(unknown_key(path, key, section.settings or (), "variants"))
    if problems:
        raise InputError("\n".join(problems))


def _scaled(before: Sequence[Layer], layer: Layer) -> Layer:
    """Lets a layer that changes only the number of epochs shorten or lengthen the whole recipe."""
    values = dict(layer.values)
    for name in RECIPES:
        given = values.get(name)
        if not isinstance(given, Mapping) or "epochs" not in given or {"decay_epochs", "warmup_epochs"} & given.keys():
            continue
        earlier: dict[str, Any] = {}
        for other in before:
            section = other.values.get(name)
            earlier |= section if isinstance(section, Mapping) else {}
        try:
            recipe = TrainingSettings(**earlier).scaled_to(given["epochs"])
        except (InputError, TypeError):
            continue  # the values are checked, with better words, when the layers are merged
        values[name] = {**given, "warmup_epochs": recipe.warmup_epochs, "decay_epochs": recipe.decay_epochs}
    return Layer(layer.source, values)


def _check_recipes(resolved: Resolved) -> None:
    problems = []
    for name in RECIPES:
        try:
            TrainingSettings(**resolved.given[name])
        except InputError as error:
            problems.append(f"{name}: {error}")
    for key, least in (("epochs", 1), ("seed", 0)):
        value = resolved.given[SMALL_CLIP].get(key, least)
        if value < least:
            problems.append(f"{SMALL_CLIP}.{key}: expected a whole number of at least {least}, got {value}.")
    if problems:
        raise InputError("\n".join(problems))


def _unused(resolved: Resolved, baselines: Sequence[str], enhancers: Sequence[str]) -> set[str]:
    """Returns the sections and values that have no influence on the results."""
    experiment = resolved.experiment
    methods = {section_name(name) for name in baselines} | {part for name in enhancers for part in parts_of(name)}
    if experiment.controls:
        methods.add(logit_kl_source(enhancers))
    unused = set(resolved.given) - methods - set(RECIPES) - {SMALL_CLIP}
    if not enhancers:
        unused |= {"text", SMALL_CLIP}
    elif experiment.text != SMALL_CLIP:
        unused.add(SMALL_CLIP)
    if experiment.teacher_checkpoint is not None:
        unused |= {"teacher_training", "teacher_recipe", "teacher_seed", "teacher_views"}
    return unused


def _without(resolved: Resolved, unused: set[str], baselines: Sequence[str], enhancers: Sequence[str]) -> Resolved:
    """Leaves out of the description what has no influence on the results."""
    described = {key: value for key, value in resolved.described.items() if key not in unused}
    described["baseline"] = {**described["baseline"], "value": list(baselines)}
    described["enhancer"] = {**described["enhancer"], "value": list(enhancers)}
    return dataclasses.replace(resolved, described=described)
