"""What guides the enhancers of a comparison: text embeddings, and what CLIP says of the training images."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmkd_plugin.bench.configuration import SMALL_CLIP, SMALL_CLIP_SETTINGS, Configuration
from tmkd_plugin.bench.preparation import Preparation
from tmkd_plugin.clip_guidance import ClipGuidance, with_images
from tmkd_plugin.text_teacher import TextEmbeddings, text_embeddings
from tmkd_plugin.training.small_clip import SmallClip, train_small_clip, zero_shot_accuracy
from tmkd_plugin.training.small_clip_images import images_of
from tmkd_plugin.views import VIEW_NAMES, ViewSettings


@dataclass(frozen=True)
class Guide:
    """What the enhancers of a comparison are told.

    Attributes:
        text: The text embeddings, with CLIP's answers where an enhancer needs them; ``None`` where none does.
        zero_shot: The small CLIP's zero-shot accuracy on the test split in percent; ``None`` for other CLIPs.
        seconds: How long the small CLIP took; a cached one takes no time.
    """

    text: TextEmbeddings | None
    zero_shot: float | None = None
    seconds: float = 0.0

    @property
    def described(self) -> dict[str, Any] | None:
        """What ``results.json`` says of it."""
        if self.text is None:
            return None
        described: dict[str, Any] = {"source": self.text.source, "text_views": self.text.text_views}
        if self.zero_shot is not None:
            described["zero_shot_test_top1"] = self.zero_shot
        if isinstance(self.text, ClipGuidance):
            described["clip_images"] = self.text.asked
        return described


def guide_of(preparation: Preparation, cache_dir: Path, say: Callable[[str], None]) -> Guide:
    """Returns what was prepared, or what a small CLIP says that is trained on the data set, or that is in the cache.

    Args:
        preparation: The checked inputs of the comparison.
        cache_dir: Where CLIPs and what they say are kept.
        say: Called with each line for the user.
    """
    text, source = preparation.text, preparation.configuration.experiment.text
    if not preparation.needs_small_clip:
        return Guide(None if text is None else _with_images(text, source, preparation, cache_dir))
    start = time.perf_counter()
    clip = small_clip_of(preparation, cache_dir, say)
    seconds = round(time.perf_counter() - start, 3)
    dataset = preparation.dataset
    zero_shot = round(
        zero_shot_accuracy(clip.folder, images_of(dataset.test), dataset.test.labels, dataset.class_names), 4
    )
    say(f"small CLIP: zero-shot top-1 on the test set {zero_shot:.2f} % (epoch {clip.epoch}, chosen by validation)")
    text = text_embeddings(dataset.class_names, clip.folder, views=VIEW_NAMES, cache_dir=cache_dir)
    # Its folder's name is this machine's business; results name what it is.
    text = dataclasses.replace(text, source=SMALL_CLIP)
    return Guide(_with_images(text, clip.folder, preparation, cache_dir), zero_shot, seconds)


def small_clip_of(preparation: Preparation, cache_dir: Path, say: Callable[[str], None]) -> SmallClip:
    """Trains the small CLIP on the training images alone, or finds it in the cache."""
    dataset, configuration = preparation.dataset, preparation.configuration
    settings = {name: setting.value for name, setting in SMALL_CLIP_SETTINGS.items()}
    settings |= configuration.resolved.given[SMALL_CLIP]
    return train_small_clip(
        images_of(dataset.train),
        dataset.train.labels,
        images_of(dataset.validation),
        dataset.validation.labels,
        dataset.class_names,
        cache_dir=cache_dir,
        view_settings=view_settings_of(configuration),
        progress=lambda epoch, top1: say(f"small CLIP, epoch {epoch}/{settings['epochs']}: val {top1:.2f} %"),
        **settings,
    )


def view_settings_of(configuration: Configuration) -> ViewSettings:
    """Returns the thresholds and scales of the views, so that all teachers learn those that an enhancer shows."""
    given: dict[str, Any] = {}
    for enhancer in reversed(configuration.enhancer_parts):  # the first one's count
        given |= configuration.settings_of(enhancer)
    names = {field.name for field in dataclasses.fields(ViewSettings)}
    return ViewSettings(**{name: value for name, value in given.items() if name in names})


def _with_images(text: TextEmbeddings, source: str | Path, preparation: Preparation, cache_dir: Path) -> TextEmbeddings:
    """Asks CLIP about the training images, where an enhancer needs it."""
    wanted = preparation.clip_images
    if not wanted:
        return text
    return with_images(text, source, preparation.dataset, clip_images=wanted, cache_dir=cache_dir)
