"""The teachers of a finished comparison as classifiers: alone, averaged over its views, fused by TMKD, fused with CLIP.

None of :func:`teachers_of` sees a label. The paper's own fusion takes an image's weights from the row of its *true* class,
which a classifier can't know; :func:`label_gathered` builds that apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tmkd_plugin.bench.figures.finished_run import Entry, FinishedRun, finished_seeds, load_images
from tmkd_plugin.bench.rebuilding import Rebuilder, has_enhancer
from tmkd_plugin.bench.view_fusion import FusedViews, LabelGathered
from tmkd_plugin.cross_modal_teacher import FusedClassifier
from tmkd_plugin.data.dataset import ImageDataset
from tmkd_plugin.errors import InputError
from tmkd_plugin.richkd_settings import RichKDSettings
from tmkd_plugin.text_cache import default_cache_dir
from tmkd_plugin.training.view_training import AVERAGE
from tmkd_plugin.views import VIEW_NAMES

SINGLE, TMKD, RICHKD = "single", "tmkd", "richkd"


@dataclass(frozen=True)
class NamedTeacher:
    """A teacher as a classifier.

    Attributes:
        name: ``"single"``, ``"average"``, ``"tmkd"`` or ``"richkd"``.
        title: Its name in tables.
        network: Normalised images (B, 3, H, W) -> logits (B, K), in eval mode, without gradient; no label enters.
        seed: The seed of the run that its fusion comes from; ``None`` where no run has a part in it.
        note: What a reader has to know of it.
        arm: The name of the arm that its fusion comes from; ``None`` where no arm has a part in it.
    """

    name: str
    title: str
    network: nn.Module
    seed: int | None
    note: str
    arm: str | None = None


@dataclass(frozen=True)
class GatheredTeacher:
    """A teacher fused with the weights of the true class of each image: no classifier, for the answer enters it.

    Attributes:
        title: Its name in tables.
        network: Called with normalised images and their labels.
        seed: The seed of the run whose WeightNet it is.
        arm: The name of the arm.
    """

    title: str
    network: LabelGathered
    seed: int
    arm: str


@dataclass(frozen=True)
class TeacherChoice:
    """Which fused teachers are wanted.

    Attributes:
        arms: TMKD arms whose weights to take; ``None`` for the first one of the run.
        richkd: Whether to build the CLIP-fused teacher; ``None``: where the run has a RichKD arm.
        clip: The CLIP to fuse with instead of the run's own; see ``load_clip_teacher``.
    """

    arms: Sequence[str] | None = None
    richkd: bool | None = None
    clip: str | None = None


def teachers_of(
    run: FinishedRun,
    cache_dir: Path | None = None,
    *,
    choice: TeacherChoice | None = None,
    dataset: ImageDataset | None = None,
    say: Callable[[str], None] | None = None,
    rebuilder: Rebuilder | None = None,
) -> list[NamedTeacher]:
    """Returns the teachers of a finished comparison as classifiers into which no label enters.

    Args:
        run: The comparison.
        cache_dir: Where its teachers and text teachers are kept; default: ``$TMKD_CACHE``, else ``~/.cache/tmkd``.
        choice: Which ones; None for the defaults.
        dataset: Its images, where they are loaded already.
        say: Called with each line for the user.
        rebuilder: What builds the parts, instead of ``cache_dir``, ``dataset`` and ``say``; shared, it builds each once.

    Returns:
        ``single``; ``average``, the plain mean over the views' logits; ``tmkd`` for each chosen arm and each of its finished
        seeds, with the mean over classes of the weights that WeightNet learned; ``richkd``.

    Raises:
        InputError: An arm is unknown or no TMKD arm, the images, the teacher or the text teacher are not to be had, or the CLIP
            has no image encoder.
    """
    choice = choice or TeacherChoice()
    rebuilder = rebuilder or rebuilder_of(run, cache_dir, dataset=dataset, say=say)
    arms, teacher = tmkd_arms(run, choice.arms), rebuilder.teacher()
    mean, std = rebuilder.dataset.mean, rebuilder.dataset.std
    views, settings = VIEW_NAMES, rebuilder.view_settings()
    plain = torch.full((len(views),), 1 / len(views))
    found = [
        NamedTeacher(
            SINGLE,
            "teacher, RGB view",
            FusedViews(teacher, torch.ones(1), ("rgb",), mean, std),
            None,
            "the teacher as it is",
        ),
        NamedTeacher(
            AVERAGE,
            "teacher, average of the views",
            FusedViews(teacher, plain, views, mean, std, settings),
            None,
            f"plain mean of the logits of {', '.join(views)}",
        ),
    ]
    found += [
        _tmkd_teacher(gathered, rebuilder, arm) for arm in arms for gathered in _gathered(rebuilder, arm, teacher)
    ]
    if choice.richkd or (choice.richkd is None and _richkd_arm(run) is not None):
        found.append(_richkd_teacher(rebuilder, teacher, choice.clip))
    return found


def label_gathered(
    run: FinishedRun,
    cache_dir: Path | None = None,
    *,
    choice: TeacherChoice | None = None,
    dataset: ImageDataset | None = None,
    say: Callable[[str], None] | None = None,
    rebuilder: Rebuilder | None = None,
) -> list[GatheredTeacher]:
    """Returns the TMKD-fused teachers with the weights of each image's TRUE class, as the student's training sees them.

    Their logits depend on the answer: what they score is no accuracy of a classifier.

    Args:
        run: The comparison.
        cache_dir: See :func:`teachers_of`.
        choice: ...
        dataset: ...
        say: ...
        rebuilder: ...
    """
    rebuilder = rebuilder or rebuilder_of(run, cache_dir, dataset=dataset, say=say)
    arms, teacher = tmkd_arms(run, None if choice is None else choice.arms), rebuilder.teacher()
    return [gathered for arm in arms for gathered in _gathered(rebuilder, arm, teacher)]


def rebuilder_of(
    run: FinishedRun,
    cache_dir: Path | None = None,
    *,
    dataset: ImageDataset | None = None,
    say: Callable[[str], None] | None = None,
) -> Rebuilder:
    """Returns what builds the parts of a comparison again, its images loaded."""
    dataset = load_images(run) if dataset is None else dataset
    folder = default_cache_dir() if cache_dir is None else cache_dir
    return Rebuilder(run, dataset, folder) if say is None else Rebuilder(run, dataset, folder, say)


def tmkd_arms(run: FinishedRun, names: Sequence[str] | None) -> list[Entry]:
    """Returns the TMKD arms of these names, or the run's first one if it has one.

    Raises:
        InputError: There is no arm of a name, or it is no TMKD arm with a finished seed.
    """
    if names is None:
        known = (arm for arm in run.results["arms"] if has_enhancer(arm, TMKD) and finished_seeds(arm))
        return sorted(known, key=_preference)[:1]
    arms = [run.arm(name) for name in names]
    for arm in arms:
        if not has_enhancer(arm, TMKD) or not finished_seeds(arm):
            raise InputError(
                f"The arm {arm['name']} of {run.folder} has no fusion weights: it is no finished TMKD arm."
            )
    return arms


def _gathered(rebuilder: Rebuilder, arm: Entry, teacher: nn.Module) -> Iterator[GatheredTeacher]:
    views, dataset = rebuilder.views(arm), rebuilder.dataset
    for seed in finished_seeds(arm):
        table = rebuilder.fusion_table(arm, seed)
        if rebuilder.settings_of(TMKD, arm).get("logit_source") == "rgb":
            # This arm fuses features alone; its distiller sees the logits of the RGB view.
            table = torch.tensor([float(view == "rgb") for view in views]).expand_as(table)
        network = LabelGathered(teacher, table, views, dataset.mean, dataset.std, rebuilder.view_settings(arm))
        yield GatheredTeacher(f"TMKD of {arm['title']}, weights of the true class", network, seed, str(arm["name"]))


def _tmkd_teacher(gathered: GatheredTeacher, rebuilder: Rebuilder, arm: Entry) -> NamedTeacher:
    network = gathered.network
    weights = ", ".join(
        f"{view} {weight:.3f}" for view, weight in zip(network.views, network.weights.tolist(), strict=True)
    )
    beside = "; what the arm adds from CLIP's image encoder is left out" if has_enhancer(arm, RICHKD) else ""
    return NamedTeacher(
        TMKD,
        f"teacher, TMKD of {arm['title']}",
        FusedViews(network.teacher, network.weights, network.views, network.mean, network.std, network.view_settings),
        gathered.seed,
        f"weights are the mean over classes of WeightNet's: {weights}{beside}",
        gathered.arm,
    )


def _richkd_arm(run: FinishedRun) -> Entry | None:
    arms = [arm for arm in run.results["arms"] if has_enhancer(arm, RICHKD)]
    return min(arms, key=_preference, default=None)


def _preference(arm: Entry) -> tuple[bool, bool]:
    """Sorts an arm with one enhancer and its usual settings first."""
    return "+" in arm["enhancer"], bool(arm.get("variant"))


def _richkd_teacher(rebuilder: Rebuilder, teacher: nn.Module, source: str | None) -> NamedTeacher:
    arm, dataset = _richkd_arm(rebuilder.run), rebuilder.dataset
    settings = RichKDSettings(**rebuilder.settings_of(RICHKD, arm))
    alpha = settings.alpha if settings.fuses_logits else 1.0
    clip = rebuilder.clip(source)
    network = FusedClassifier(
        teacher,
        clip,
        mean=dataset.mean,
        std=dataset.std,
        alpha=alpha,
        clip_logit_scale=settings.clip_logit_scale,
        input_size=dataset.image_size,
    ).eval()
    said = f"{alpha:g} x teacher + {1 - alpha:g} x {settings.clip_logit_scale:g} x cosines of CLIP ({clip.source})"
    name = None if arm is None else str(arm["name"])
    return NamedTeacher(RICHKD, "teacher, RichKD (with CLIP)", network, None, said, name)
