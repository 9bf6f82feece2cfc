"""Builds what an arm of a comparison trains: student, baseline, enhancers and controls."""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any

from torch import nn

from tmkd_plugin.baselines import baseline_class, build_baseline
from tmkd_plugin.bench.arms import STUDENT_ALONE, ArmSpec, enhancer_class, parts_of
from tmkd_plugin.bench.configuration import Configuration, logit_kl_source
from tmkd_plugin.bench.controls import WithLogitKL
from tmkd_plugin.clip_guidance import ClipGuidance
from tmkd_plugin.randomness import forked_random_state
from tmkd_plugin.richkd_settings import RichKDSettings
from tmkd_plugin.text_teacher import TextEmbeddings
from tmkd_plugin.tmkd_settings import TMKDSettings
from tmkd_plugin.training.isolation import shares_teacher
from tmkd_plugin.training.teachers import Classifier
from tmkd_plugin.zoo import build_network

if TYPE_CHECKING:
    from tmkd_plugin.bench.preparation import Preparation

LOGIT_KL_WEIGHTS = {"tmkd": 1.0, "richkd": 3.0}
"""The weight of the logit KL that each enhancer adds to a baseline without one."""


def build_student(preparation: Preparation, seed: int) -> nn.Module:
    """Builds the student as it starts; every arm of a seed starts with the same weights."""
    experiment, dataset = preparation.configuration.resolved.experiment, preparation.dataset
    return build_network(
        experiment.student,
        dataset.num_classes,
        pretrained=experiment.student_pretrained,
        seed=seed,
        image_size=dataset.image_size,
    )


def build_distiller(
    preparation: Preparation,
    arm: ArmSpec,
    teacher: nn.Module,
    text: TextEmbeddings | None,
    seed: int,
    *,
    side_by_side: bool = False,
) -> nn.Module:
    """Builds an arm's distiller around a fresh student and a copy of the teacher.

    Args:
        preparation: The checked inputs of the comparison.
        arm: The arm.
        teacher: The network of its teacher.
        text: The text embeddings, with CLIP's answers where an enhancer needs them.
        seed: The seed of the run.
        side_by_side: Whether the copy holds the teacher's own tensors, so that arms that train side by side can share what
            it says of a batch; those of somebody else's distiller are its own all the same, see
            :func:`~tmkd_plugin.training.isolation.shares_teacher`.

    Raises:
        InputError: The method refuses the networks or its settings.
    """
    student = build_student(preparation, seed)
    if arm.baseline == STUDENT_ALONE:
        return Classifier(student)
    # A copy: no arm can leave anything in the networks of another.
    shares = side_by_side and shares_teacher(baseline_class(arm.baseline))
    kept = {id(tensor): tensor for tensor in (*teacher.parameters(), *teacher.buffers())} if shares else {}
    teacher = copy.deepcopy(teacher, kept)
    # Heads of a user's own distiller are drawn from the global generator, alike in every arm.
    with forked_random_state(seed, "distiller initialisation"):
        settings = _baseline_settings(preparation, arm.baseline, seed)
        distiller: nn.Module = build_baseline(arm.baseline, student, teacher, **settings)
        for part in reversed(parts_of(arm.enhancer) if arm.enhancer else []):
            distiller = _enhanced(preparation, arm, part, distiller, text, seed)
        if arm.control == "logit_kl":
            weight, temperature = logit_kl_of(preparation.configuration)
            weight = (
                LOGIT_KL_WEIGHTS[logit_kl_source(preparation.configuration.enhancers)] if weight is None else weight
            )
            size = preparation.dataset.image_size
            distiller = WithLogitKL(distiller, weight=weight, temperature=temperature, input_size=size)
    return distiller


def logit_kl_of(configuration: Configuration) -> tuple[float | None, float]:
    """Returns weight (None: the usual one) and temperature of the logit KL of the first enhancer, and so of the control."""
    source = logit_kl_source(configuration.enhancers)
    given = configuration.settings_of(source)
    if source == "richkd":
        settings = RichKDSettings(**given)
        return (settings.logit_weight if settings.fuses_logits else 0.0), settings.temperature
    return given.get("logit_weight"), given.get("temperature", TMKDSettings().temperature)


def _baseline_settings(preparation: Preparation, baseline: str, seed: int) -> dict[str, Any]:
    settings = preparation.configuration.settings_of(baseline)
    parameters = inspect.signature(baseline_class(baseline)).parameters
    for name, value in (("seed", seed), ("input_size", preparation.dataset.image_size)):
        if name in parameters:
            settings.setdefault(name, value)
    return settings


def _enhanced(
    preparation: Preparation, arm: ArmSpec, part: str, distiller: nn.Module, text: TextEmbeddings | None, seed: int
) -> nn.Module:
    make, dataset = enhancer_class(part), preparation.dataset
    settings = preparation.configuration.enhancer_settings(arm, part)
    guide: dict[str, Any] = {"text": text}
    if part == "richkd":
        wanted = RichKDSettings(**settings).clip_images
        # In a trial step a stand-in answers for either; what it stands for follows from its type.
        guide = {"clip": text.images_for(wanted) or text.answers if isinstance(text, ClipGuidance) else None}
        settings.pop("clip_images", None)
    enhanced: nn.Module = make(
        distiller,
        dataset.class_names,
        **guide,
        mean=dataset.mean,
        std=dataset.std,
        seed=seed,
        input_size=dataset.image_size,
        **settings,
    )
    return enhanced
