"""Builds again what a finished comparison had in memory: its teacher, its text teacher, its learned fusion weights."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tmkd_plugin.bench.arms import parts_of
from tmkd_plugin.bench.configuration import SMALL_CLIP, SMALL_CLIP_SETTINGS
from tmkd_plugin.bench.figures.finished_run import Entry, FinishedRun
from tmkd_plugin.clip_teacher import ClipTeacher, load_clip_teacher
from tmkd_plugin.data.dataset import ImageDataset
from tmkd_plugin.errors import InputError
from tmkd_plugin.fusion import WeightNet
from tmkd_plugin.text_teacher import SharedTextWarning, TextEmbeddings, text_embeddings
from tmkd_plugin.tmkd_settings import TMKDSettings
from tmkd_plugin.training.files import sha256_of_file
from tmkd_plugin.training.run_folder import HEADS
from tmkd_plugin.training.teacher_store import read_weights, stored_teachers
from tmkd_plugin.views import VIEW_NAMES, ViewSettings
from tmkd_plugin.zoo import build_network

SHARED_TEACHER = "all other arms"
"""The role, in ``results.json``, of the teacher of all arms but the control that has its own."""

_WEIGHT_NET = "heads.weight_net."  # behind "distiller." where TMKD is inside another enhancer
_CLOSE = 1e-3  # another machine's small CLIP differs from the run's in the last digits, another CLIP by far more


_Settings = TypeVar("_Settings", ViewSettings, TMKDSettings)


def _nothing(line: str) -> None:
    """Says nothing."""


@dataclass(frozen=True)
class Rebuilder:
    """Builds the frozen parts of a finished comparison again.

    Args:
        run: The comparison.
        dataset: Its images; the small CLIP is found, or trained again, by them.
        cache_dir: Where teachers, text embeddings and the small CLIP are kept.
        say: Called with each line for the user.
    """

    run: FinishedRun
    dataset: ImageDataset
    cache_dir: Path
    say: Callable[[str], None] = _nothing
    _teachers: dict[str, nn.Module] = field(default_factory=dict)

    def teacher(self, role: str = SHARED_TEACHER) -> nn.Module:
        """Returns the run's teacher, frozen and in eval mode, with the weights that ``results.json`` names.

        Args:
            role: Which one: ``"all other arms"``, or ``"rgb_teacher"`` for that of the control.

        Raises:
            InputError: The run has no such teacher, or its weights are not to be found any more.
        """
        if role not in self._teachers:
            self._teachers[role] = self._built_teacher(role)
        return self._teachers[role]

    def _built_teacher(self, role: str) -> nn.Module:
        entry = next((each for each in self.run.results.get("teachers", []) if each.get("role") == role), None)
        if entry is None:
            raise InputError(f"{self.run.folder} names no teacher of the role '{role}' in its results.json.")
        network, wanted = str(entry["network"]), str(entry["weights_sha256"])
        checkpoint = self.run.value("teacher_checkpoint")
        if checkpoint is not None:
            return self._from_checkpoint(network, Path(str(checkpoint)), wanted)
        store = self.cache_dir / "teachers"
        known = stored_teachers(store)
        for stored in known:
            if stored.problem is None and stored.record["weights_sha256"] == wanted:
                built = build_network(network, self.dataset.num_classes, image_size=self.dataset.image_size)
                built.load_state_dict(read_weights(stored.folder, stored.record))
                return _frozen(built)
        raise InputError(
            f"The teacher of {self.run.folder} ({entry['source']}, weights {wanted[:12]}) is not in {store}. Set TMKD_CACHE to "
            "the folder in which it was trained, or train it again with the same `tmkd bench` command and another --out."
            + (
                " Some teachers there can't be used: `tmkd teachers list` says why."
                if any(t.problem for t in known)
                else ""
            )
        )

    def settings_of(self, enhancer: str, arm: Entry | None = None) -> dict[str, Any]:
        """Returns what the run's configuration holds of an enhancer, with what an arm's variant changes."""
        section = self.run.results["config"].get(enhancer, {})
        values = {key: entry["value"] for key, entry in section.items()}
        variant = None if arm is None else arm.get("variant")
        return {**values, **self.run.value("variants", {}).get(variant, {})} if variant else values

    def view_settings(self, arm: Entry | None = None) -> ViewSettings:
        """Returns the thresholds and scales of the views: those of a TMKD arm, or those that teachers were measured with."""
        if arm is None and "tmkd" not in enhancers_of(self.run):
            return ViewSettings()
        return _fields_of(ViewSettings, self.settings_of("tmkd", arm))

    def views(self, arm: Entry) -> tuple[str, ...]:
        """Returns the views that a TMKD arm shows its teacher, in the order of the fusion weights."""
        return tuple(self.settings_of("tmkd", arm).get("views", VIEW_NAMES))

    @cached_property
    def guide(self) -> str | Path:
        """The run's text teacher: what its text= names, or the folder of the small CLIP of its own training images.

        Raises:
            RunError: The small CLIP is not in the cache and can't be trained again.
        """
        source = str(self.run.value("text", SMALL_CLIP))
        return self._small_clip() if source == SMALL_CLIP else source

    @cached_property
    def text(self) -> TextEmbeddings:
        """The run's text embeddings, of all views.

        Raises:
            InputError: The text teacher is not to be had any more.
        """
        return self.text_of(self.guide)

    def text_of(self, source: str | Path) -> TextEmbeddings:
        """Returns the text embeddings of the run's classes from any source, of all views."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SharedTextWarning)  # the run has said it
            return text_embeddings(self.dataset.class_names, source, views=VIEW_NAMES, cache_dir=self.cache_dir)

    def clip(self, source: str | Path | None = None) -> ClipTeacher:
        """Loads a CLIP with both towers; by default the one that the run's text= names.

        Raises:
            InputError: It names embeddings alone, or its weights can't be had.
        """
        clip = load_clip_teacher(self.guide if source is None else source, self.dataset.class_names)
        if source is None and self.run.value("text", SMALL_CLIP) == SMALL_CLIP:
            clip.source = SMALL_CLIP  # where it lies is this machine's business
        return clip

    def fusion_table(self, arm: Entry, seed: int) -> Tensor:
        """Returns what WeightNet of a TMKD run made of the class names, (K, V) float32; rows sum to 1.

        Raises:
            InputError: The run's heads can't be read, or don't fit the text teacher that is there now.
        """
        views = self.views(arm)
        settings = _fields_of(TMKDSettings, self.settings_of("tmkd", arm))
        if settings.fusion != "text":
            return torch.full((self.dataset.num_classes, len(views)), 1 / len(views))
        text = self.text.for_views(views)
        weight_net = WeightNet(len(views), text.tensor.shape[2], settings.hidden_width)
        path = self.run.cell(arm, seed) / HEADS
        _load_weight_net(weight_net, path)
        with torch.no_grad():
            table: Tensor = weight_net(text.tensor)
        self._check_table(table.mean(dim=0), views, arm, seed)
        return table

    def _check_table(self, mean: Tensor, views: tuple[str, ...], arm: Entry, seed: int) -> None:
        """Compares the mean weights with those that the history has of the epoch whose weights were kept."""
        best = next(cell["best"] for cell in arm["seeds"] if cell["seed"] == seed)
        records = (record for record in self.run.history(arm, seed) if record.get("epoch") == best["epoch"])
        recorded: Mapping[str, float] = next(records, {}).get("fusion_weights", {})
        for view, weight in zip(views, mean.tolist(), strict=True):
            if abs(weight - recorded.get(view, weight)) > _CLOSE:
                raise InputError(
                    f"The fusion weights of {arm['title']}, seed {seed}, can't be made again: {view} has {weight:.4f}, the "
                    f"run's history says {recorded[view]:.4f}. The text teacher '{self.run.value('text')}' is not what it was "
                    "then: give the run its old TMKD_CACHE or text file."
                )

    def _small_clip(self) -> Path:
        from tmkd_plugin.training.small_clip import train_small_clip
        from tmkd_plugin.training.small_clip_images import images_of

        settings = {name: setting.value for name, setting in SMALL_CLIP_SETTINGS.items()}
        settings |= self.settings_of(SMALL_CLIP)
        dataset = self.dataset
        return train_small_clip(
            images_of(dataset.train),
            dataset.train.labels.cpu(),
            images_of(dataset.validation),
            dataset.validation.labels.cpu(),
            dataset.class_names,
            cache_dir=self.cache_dir,
            view_settings=self.view_settings(),
            progress=lambda epoch, top1: self.say(f"small CLIP, epoch {epoch}/{settings['epochs']}: val {top1:.2f} %"),
            **settings,
        ).folder

    def _from_checkpoint(self, network: str, path: Path, wanted: str) -> nn.Module:
        if not path.is_file() or sha256_of_file(path) != wanted:
            raise InputError(
                f"The teacher's checkpoint {path} of {self.run.folder} is missing or not what it was (sha256 {wanted[:12]}). "
                "Put the old file back."
            )
        return _frozen(
            build_network(network, self.dataset.num_classes, checkpoint=path, image_size=self.dataset.image_size)
        )


def enhancers_of(run: FinishedRun) -> list[str]:
    """Returns the enhancers that take part in a run, alone or around another."""
    value = run.value("enhancer", [])
    names = value.split(",") if isinstance(value, str) else list(value)
    return [part for name in names for part in parts_of(name)]


def has_enhancer(arm: Entry, name: str) -> bool:
    """Says whether an arm has an enhancer, alone or with another."""
    return name in parts_of(arm["enhancer"] or "")


def _load_weight_net(weight_net: WeightNet, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        heads = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"The heads {path} can't be read ({error}): the same `tmkd bench` command makes them again."
        ) from None
    own = {name.partition(_WEIGHT_NET)[2]: tensor for name, tensor in heads.items() if _WEIGHT_NET in name}
    try:
        weight_net.load_state_dict(own)
    except RuntimeError as error:  # torch's own for missing tensors and other shapes
        raise InputError(
            f"The WeightNet in {path} does not fit the text embeddings that are there now: {' '.join(str(error).split())}"
        ) from None


def _fields_of(owner: type[_Settings], values: Mapping[str, Any]) -> _Settings:
    names = {field.name for field in dataclasses.fields(owner)}
    return owner(**{name: value for name, value in values.items() if name in names})


def _frozen(network: nn.Module) -> nn.Module:
    return network.requires_grad_(False).eval()
