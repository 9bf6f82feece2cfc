"""Everything that can be wrong with a comparison is found here, before anything is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tmkd_plugin.baselines import baseline_class
from tmkd_plugin.bench.arms import Plan, parts_of, plan_arms
from tmkd_plugin.bench.configuration import SMALL_CLIP, Configuration
from tmkd_plugin.bench.distillers import build_distiller, logit_kl_of
from tmkd_plugin.clip_guidance import with_stand_in
from tmkd_plugin.clip_teacher import clip_source
from tmkd_plugin.data import ImageDataset, evaluation_batches, load_dataset
from tmkd_plugin.distiller_return import read_return
from tmkd_plugin.errors import InputError, unknown_name
from tmkd_plugin.prompts import check_class_names
from tmkd_plugin.randomness import forked_random_state
from tmkd_plugin.richkd_settings import RichKDSettings
from tmkd_plugin.sample_ids import ids_for, tell_samples
from tmkd_plugin.text_teacher import DEFAULT_TEXT_MODEL, TextEmbeddings, text_embeddings
from tmkd_plugin.training.teacher_cache import check_augmentation
from tmkd_plugin.training.teacher_cache_trial import require_kept_answers_suffice
from tmkd_plugin.training.teacher_store import loading_of
from tmkd_plugin.views import VIEW_NAMES
from tmkd_plugin.zoo import build_network

TRIAL_IMAGES = 8


@dataclass(frozen=True)
class Preparation:
    """What a comparison needs beside its teachers.

    Attributes:
        configuration: The checked configuration.
        dataset: The images.
        plan: The arms.
        text: The text embeddings; ``None`` where no arm needs them or the small CLIP is still to be trained.
    """

    configuration: Configuration
    dataset: ImageDataset
    plan: Plan
    text: TextEmbeddings | None

    @property
    def needs_small_clip(self) -> bool:
        """Whether the text embeddings are those of a small CLIP that is trained on the data set."""
        return bool(self.configuration.enhancers) and self.configuration.experiment.text == SMALL_CLIP

    @property
    def clip_images(self) -> set[str]:
        """Which images CLIP is asked about: ``"once"``, ``"augmented"``, both, or none where no arm is RichKD's."""
        arms = [arm for arm in self.plan.arms if arm.enhancer and "richkd" in parts_of(arm.enhancer)]
        settings = [RichKDSettings(**self.configuration.enhancer_settings(arm, "richkd")) for arm in arms]
        return {each.clip_images or "once" for each in settings}


def prepare(configuration: Configuration, cache_dir: Path, say: Callable[[str], None] | None = None) -> Preparation:
    """Loads the data set and the text embeddings, and takes every arm through one step with untrained networks.

    Raises:
        InputError: Something that was given can't be used; nothing has been trained.
    """
    experiment = configuration.resolved.experiment
    _check_device(experiment.device)
    plan = _plan(configuration)
    # Names first: they are cheap to check, and reading a data set is not.
    for role in ("teacher", "student"):
        with _said_of(role):
            build_network(getattr(experiment, role), 2)
    dataset = load_dataset(**loading_of(experiment), workers=experiment.workers, download=experiment.download, say=say)
    check_class_names(dataset.class_names)
    if experiment.teacher_cache:
        check_augmentation(dataset, experiment.augmentation_variants)
    text = None
    if configuration.enhancers and experiment.text != SMALL_CLIP:
        _check_text_name(experiment.text)
        if "richkd" in configuration.enhancer_parts:
            clip_source(experiment.text)  # refuses what has no image encoder
        text = text_embeddings(dataset.class_names, experiment.text, views=VIEW_NAMES, cache_dir=cache_dir)
    preparation = Preparation(configuration, dataset, plan, text)
    _try_every_arm(preparation)
    return preparation


def _plan(configuration: Configuration) -> Plan:
    experiment = configuration.resolved.experiment
    no_rgb_teacher = None
    if experiment.teacher_checkpoint is not None:
        no_rgb_teacher = "the recipe of the teacher in the checkpoint is not known here"
    elif experiment.teacher_views == "rgb":
        no_rgb_teacher = "the teacher of all arms is one already"
    return plan_arms(
        configuration.baselines,
        configuration.enhancers,
        controls=experiment.controls,
        adds_logit_kl={name: _adds_logit_kl(name, configuration) for name in configuration.baselines},
        no_rgb_teacher=no_rgb_teacher,
        variants=list(experiment.variants),
        student_alone=experiment.student_alone,
    )


def _adds_logit_kl(baseline: str, configuration: Configuration) -> bool:
    """Says whether the first enhancer adds a KL of logits to a baseline; see ``TMKDSettings.logit_weight``."""
    weight, _ = logit_kl_of(configuration)
    if weight is not None:
        return weight > 0
    made = baseline_class(baseline)
    of_its_own = getattr(made, "LOGIT_KL_WEIGHT", None)
    if of_its_own is not None and configuration.settings_of(baseline).get(of_its_own) == 0:
        return True
    return getattr(made, "has_logit_kl", None) is False


@contextlib.contextmanager
def _said_of(what: str) -> Iterator[None]:
    """Puts what an error is about before its message."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{what}: {error}") from error


def _check_text_name(source: str) -> None:
    """Tells a misspelt ``small_clip`` from the other text sources, which all have a separator or are a file."""
    if not any(mark in source for mark in "/=.") and not Path(source).exists():
        raise InputError(
            f"{unknown_name('text teacher', source, [SMALL_CLIP])} Or give MODEL/TAG of open_clip, such as "
            f"{DEFAULT_TEXT_MODEL}, or a file of embeddings (.npz, .safetensors)."
        )


def _check_device(name: str) -> None:
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises AssertionError
        reason = str(error).partition("\n")[0]
        raise InputError(f"device={name!r} can't be used: {reason}. Expected cpu, cuda or cuda:N.") from None


def _try_every_arm(preparation: Preparation) -> None:
    """Runs one step of every arm: what a method or a pair of networks can't do shows here."""
    experiment, dataset = preparation.configuration.resolved.experiment, preparation.dataset
    teacher = build_network(
        experiment.teacher,
        dataset.num_classes,
        checkpoint=experiment.teacher_checkpoint,
        image_size=dataset.image_size,
    ).eval()
    text = preparation.text
    if preparation.needs_small_clip:
        # Only its shape counts in a trial step; the small CLIP itself is not trained before everything else has been checked.
        shape = (len(VIEW_NAMES), dataset.num_classes, 1)
        text = TextEmbeddings(torch.ones(shape), "per view", SMALL_CLIP, views=VIEW_NAMES)
    if preparation.clip_images and text is not None:
        text = with_stand_in(text, dataset.train.ids, dataset.class_names)
    batch = next(iter(evaluation_batches(dataset.train, dataset.mean, dataset.std, batch_size=TRIAL_IMAGES)))
    seed = experiment.seeds[0]
    for arm in preparation.plan.arms:
        with _said_of(arm.title), forked_random_state(seed, "trial step"):
            distiller = build_distiller(preparation, arm, teacher, text, seed).train()
            read_return(distiller(batch.images, batch.labels, **ids_for(distiller, batch.ids)))
        if experiment.teacher_cache:
            tell_samples(distiller, dataset.train.labels, dataset.train.ids)
            require_kept_answers_suffice(distiller, arm.title, batch, dataset)


def describe_dataset(dataset: ImageDataset) -> dict[str, Any]:
    """Returns what ``results.json`` says of the images."""
    sizes = {split: len(getattr(dataset, split)) for split in ("train", "validation", "test")}
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "class_names": list(dataset.class_names),
        "image_size": dataset.image_size,
        **sizes,
    }
