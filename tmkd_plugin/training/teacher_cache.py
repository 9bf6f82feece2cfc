"""Training from a teacher's kept answers: each training image is shown to the teacher once in each view, not once an epoch.

What is kept, for what, and when it pays: ``docs/teacher-cache.md``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tmkd_plugin.data.batches import augmentation_epoch
from tmkd_plugin.data.dataset import ImageDataset, Split
from tmkd_plugin.errors import InputError
from tmkd_plugin.multi_view_teacher import MultiViewTeacher
from tmkd_plugin.text_cache import digest_of
from tmkd_plugin.training.acceleration import Acceleration
from tmkd_plugin.training.distributed import Processes
from tmkd_plugin.training.teacher_cache_file import UnusableFileError, answers_file, read_answers
from tmkd_plugin.training.teacher_cache_fill import AskedImages, TeacherReading, check, fill, read_teacher
from tmkd_plugin.training.teacher_cache_forward import Answers, KnownBatch, KnownForward
from tmkd_plugin.training.teacher_cache_key import (
    RGB,
    View,
    computation_key,
    images_key,
    is_random,
    teacher_key,
    view_key,
    view_of,
)

FOLDER = "teacher-answers"
"""Below the cache folder."""

Showing = Callable[[Tensor, Tensor], contextlib.AbstractContextManager[None]]
"""Answers about one batch inside a block: is given its images, (B, 3, H, W), and their ids, (B,)."""


@dataclass(frozen=True)
class TeacherCacheFolder:
    """Where answers are kept, and who is told about it.

    Attributes:
        path: The folder.
        say: Called with each line for the user.
    """

    path: Path
    say: Callable[[str], None]


def views_needed(distiller: nn.Module) -> list[View]:
    """Returns the views in which a distiller, with all that is wrapped in it, shows its teacher the images; RGB first."""
    enhancers = [getattr(module, "multi_view", None) for module in distiller.modules()]
    views = [
        view_of(name, each.view_settings)
        for each in enhancers
        if isinstance(each, MultiViewTeacher)
        for name in each.views
    ]
    return list(dict.fromkeys([RGB, *views]))


def check_augmentation(dataset: ImageDataset, variants: int | None) -> None:
    """Refuses images that are augmented anew in each epoch, about which a teacher would have to be asked again.

    Raises:
        InputError: With both ways out.
    """
    augmentation_epoch(1, variants)
    if variants is None and is_random(dataset.augmentation):
        augmentation = dataset.augmentation
        raise InputError(
            f"--teacher-cache keeps what the teacher says of each training image, but those of '{dataset.name}' are augmented "
            f"anew in each epoch (crop_padding={augmentation.crop_padding}, flip={augmentation.flip}, "
            f"resized_crop={augmentation.resized_crop}). Either give --augmentation-variants K (such as 4), so that epochs "
            "replay K augmentations of each image, or leave --teacher-cache out."
        )


class TeacherCache:
    """Answers for the teachers of distillers that train side by side.

    Args:
        folder: Where the answers are kept.
        dataset: The images.
        train: Its training split, on the device on which batches are made.
        seed: Of the augmentation.
        variants: K, how many augmentations of each image are replayed; None for images without random augmentation.
        batch_size: How many images the teacher is shown at once.
        device: Where the teachers are.
        acceleration: How they compute.
        processes: Those that train together; None for this one alone.

    Raises:
        InputError: The images are augmented anew in each epoch.
    """

    def __init__(
        self,
        folder: TeacherCacheFolder,
        dataset: ImageDataset,
        train: Split,
        *,
        seed: int,
        variants: int | None,
        batch_size: int,
        device: torch.device,
        acceleration: Acceleration,
        processes: Processes | None = None,
    ) -> None:
        check_augmentation(dataset, variants)
        self.folder = folder
        self.dataset = dataset
        self.train = train
        self.seed = seed
        self.variants = variants if is_random(dataset.augmentation) else 1
        self.batch_size = batch_size
        self.device = device
        self.acceleration = acceleration
        self.processes = processes
        self._places = torch.full((int(dataset.train.ids.max()) + 1,), -1)
        self._places[dataset.train.ids.cpu()] = torch.arange(len(dataset.train))
        self._teachers: dict[int, tuple[TeacherReading, dict[str, str]]] = {}
        self._open: dict[str, Answers] = {}

    def know(self, distiller: nn.Module) -> None:
        """Finds out about a distiller's teacher, before somebody stands in for its ``forward``."""
        teacher = getattr(distiller, "teacher", None)
        if isinstance(teacher, nn.Module) and id(teacher) not in self._teachers:
            self._teachers[id(teacher)] = read_teacher(teacher, self.dataset.image_size), teacher_key(teacher)

    def answering(self, distillers: Sequence[nn.Module], epoch: int) -> Showing:
        """Prepares to answer for the teachers of known distillers; fills files that are missing.

        Args:
            distillers: Those that train.
            epoch: The epoch, from 1.

        Returns:
            What answers for the teachers while the distillers see a batch.

        Raises:
            InputError: A file does not hold what the teacher says, there is no room for one, or a teacher can't be used.
        """
        asked = AskedImages(
            self.dataset,
            self.train,
            self.seed,
            augmentation_epoch(epoch, self.variants),
            self.batch_size,
            self.device,
            self.acceleration.precision,
        )
        batches: list[KnownBatch] = []
        forwards: list[KnownForward] = []
        for group in self._by_teacher(distillers).values():
            reading, key = self._teachers[id(group[0].teacher)]
            views = list(dict.fromkeys(view for distiller in group for view in views_needed(distiller)))
            known = KnownBatch(self._answers(asked, reading, key, views), self.dataset.mean, self.dataset.std)
            batches.append(known)
            for teacher in {id(distiller.teacher): distiller.teacher for distiller in group}.values():
                own, _ = self._teachers[id(teacher)]
                forwards.append(KnownForward(own.network, known, own.classifier))

        @contextlib.contextmanager
        def showing(images: Tensor, ids: Tensor) -> Iterator[None]:
            rows = self._places[ids.cpu()]
            if (rows < 0).any():
                raise InputError(f"The image with id {int(ids.cpu()[rows < 0][0])} is none of the training split.")
            for batch in batches:
                batch.begin(images, rows)
            with contextlib.ExitStack() as stack:
                for forward in forwards:
                    stack.enter_context(forward.installed())
                yield

        return showing

    def _by_teacher(self, distillers: Sequence[nn.Module]) -> dict[str, list[Any]]:
        """Returns the distillers of teachers that are the same network, by what identifies it."""
        groups: dict[str, list[Any]] = {}
        for distiller in distillers:
            known = self._teachers.get(id(getattr(distiller, "teacher", None)))
            if known is not None:
                groups.setdefault(digest_of(known[1]), []).append(distiller)
        return groups

    def _answers(
        self, asked: AskedImages, teacher: TeacherReading, key: Mapping[str, str], views: Sequence[View]
    ) -> dict[View, Answers]:
        """Returns the answers in each view, of files that are there or are made now."""
        keys = {
            view: {
                "teacher": key,
                "images": images_key(self.dataset, self.seed, asked.epoch),
                "view": view_key(view),
                "computation": computation_key(self.acceleration, self.device),
            }
            for view in views
        }
        paths = {view: answers_file(self.folder.path, of_view) for view, of_view in keys.items()}
        found = {view: self._open[paths[view].name] for view in views if paths[view].name in self._open}
        closed = [view for view in views if view not in found]
        if not closed:
            return found
        # One process decides, so that all ask the teacher together.
        opened = {view: self._found(paths[view], keys[view]) for view in closed} if self._writes else {}
        missing = self._from_main([view for view in closed if opened.get(view) is None])
        if missing:
            files = {view: (paths[view], keys[view]) for view in missing}
            fill(asked, teacher, files, writes=self._writes, say=self.folder.say)
            if self.processes is not None:
                self.processes.barrier()
        whole = {view: opened.get(view) or self._read(paths[view], keys[view]) for view in closed}
        check(asked, teacher, whole, paths)
        self._open |= {paths[view].name: answers for view, answers in whole.items()}
        return found | whole

    def _found(self, path: Path, key: Mapping[str, Any]) -> Answers | None:
        """Opens a file if it is there and whole; says so if it is not whole."""
        if not path.is_file():
            return None
        try:
            return _opened(path, key, len(self.train))
        except UnusableFileError as error:
            self.folder.say(f"The kept answers of the teacher in {path} can't be used ({error}): they are made again.")
            return None

    def _read(self, path: Path, key: Mapping[str, Any]) -> Answers:
        try:
            return _opened(path, key, len(self.train))
        except UnusableFileError as error:
            raise InputError(
                f"The kept answers of the teacher in {path} can't be read right after they were found or written ({error}). "
                "All processes must see the same cache folder (TMKD_CACHE)."
            ) from error

    @property
    def _writes(self) -> bool:
        return self.processes is None or self.processes.is_main

    def _from_main(self, value: list[View]) -> list[View]:
        if self.processes is None:
            return value
        chosen: list[View] = self.processes.from_main(value)
        return chosen


def _opened(path: Path, key: Mapping[str, Any], rows: int) -> Answers:
    tensors = read_answers(path, key, rows)
    if "logits" not in tensors:
        raise UnusableFileError("it holds no logits")
    return Answers(tensors["logits"], tensors.get("pooled_features"))
