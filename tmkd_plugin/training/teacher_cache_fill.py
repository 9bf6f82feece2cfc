"""Asks a teacher about the training images: about all of them to keep its answers, about a few to check those kept."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tmkd_plugin.data.batches import augmented_batches
from tmkd_plugin.data.dataset import ImageDataset, Split
from tmkd_plugin.errors import InputError
from tmkd_plugin.model_output import OutputReader, Place, Recorder
from tmkd_plugin.multi_view_teacher import normalised_views
from tmkd_plugin.randomness import generator_for
from tmkd_plugin.training.precision import Precision
from tmkd_plugin.training.teacher_cache_file import AnswersWriter, Layout, bytes_of, writing_answers
from tmkd_plugin.training.teacher_cache_forward import Answers, answers_of
from tmkd_plugin.training.teacher_cache_key import View
from tmkd_plugin.training.watched_teacher import have_drawn, random_states

CHECKED_IMAGES = 8
TOLERANCE = {("cpu", "fp32"): 1e-3, ("cuda", "fp32"): 1e-2, ("cuda", "fp16"): 1e-2}
"""How far an answer may be from the kept one, as a share of the largest kept value, by device and precision.

A network that sees an image in another batch, on other cores or by another algorithm sums in another order: float32 then
differs by about 1e-6 of the largest value on a CPU and 1e-3 on a GPU, whose convolutions compute with 10 bits (TF32), and
bfloat16 has 7 bits. What is another image, view or network differs by tenths.
"""
_USUAL_TOLERANCE = 5e-2
_SECONDS_BETWEEN_LINES = 30.0


@dataclass(frozen=True)
class TeacherReading:
    """A teacher, and where its pooled features are.

    Attributes:
        network: The teacher.
        classifier: Dotted name of the module whose input is the pooled features; None for none.
        has_pooled: Whether that input is (B, D).
    """

    network: nn.Module
    classifier: str | None
    has_pooled: bool

    @torch.no_grad()
    def ask(self, images: Tensor, precision: Precision) -> dict[str, Tensor]:
        """Returns ``logits`` and, if there are any, ``pooled_features`` of (B, 3, H, W).

        Raises:
            InputError: The teacher returns something else than logits, or draws random numbers.
        """
        recorder, before = Recorder(Place(self.classifier, None, False)), random_states(images.device)
        self.network.eval()
        with recorder.listening(self.network), precision.forward_context():
            returned = self.network(images)
            answers = answers_of(returned, recorder.heard(), self.network, self.has_pooled)
        if have_drawn(before, random_states(images.device)):
            raise InputError(
                f"The teacher ({type(self.network).__name__}) draws random numbers in eval mode too, so it says something else "
                "each time it is asked, which a teacher cache can't keep. Leave --teacher-cache out."
            )
        return answers


def read_teacher(network: nn.Module, image_size: int) -> TeacherReading:
    """Finds, by one pass over a probe, where a teacher keeps its pooled features."""
    compiled = network.__dict__.pop(
        "_compiled_call_impl", None
    )  # the probe listens everywhere, which nobody wants compiled
    try:
        plan = OutputReader(network, "teacher", image_size).plan
    finally:
        if compiled is not None:
            network._compiled_call_impl = compiled
    classifier = plan.classifier_name if plan.classifier is not None else None
    return TeacherReading(network, classifier, plan.pooled_width is not None)


@dataclass(frozen=True)
class AskedImages:
    """The training images of one epoch's augmentation.

    Attributes:
        dataset: Whose training split it is.
        train: That split, on the device of the teacher.
        seed: Of the augmentation.
        epoch: The epoch, from 1, whose augmentation the images have.
        batch_size: How many are shown at once.
        device: Where the teacher is.
        precision: What it computes with: ``fp32``, ``bf16`` or ``fp16``.
    """

    dataset: ImageDataset
    train: Split
    seed: int
    epoch: int
    batch_size: int
    device: torch.device
    precision: str

    def few(self) -> Tensor:
        """Draws the places of the images that are checked, (8,) int64 or fewer."""
        generator = generator_for(self.seed, "teacher cache check", self.epoch)
        return torch.randperm(len(self.train), generator=generator)[:CHECKED_IMAGES]

    def answers(
        self, teacher: TeacherReading, views: Sequence[View], parts: Sequence[Tensor]
    ) -> Iterator[dict[View, dict[str, Tensor]]]:
        """Yields what the teacher says of each view of the images at these places."""
        mean, std = self.dataset.mean, self.dataset.std
        precision = Precision(self.precision, self.device)
        batches = augmented_batches(
            self.train, parts, self.dataset.augmentation, mean, std, seed=self.seed, epoch=self.epoch
        )
        for batch in batches:
            images = batch.images.to(self.device)
            yield {view: teacher.ask(seen_as(view, images, self.dataset), precision) for view in views}


def seen_as(view: View, images: Tensor, dataset: ImageDataset) -> Tensor:
    """Returns a view of a data set's normalised images (B, 3, H, W), normalised again."""
    if view.settings is None:
        return images
    (seen,) = normalised_views(images, (view.name,), view.settings, dataset.mean, dataset.std)
    return seen


def fill(
    asked: AskedImages,
    teacher: TeacherReading,
    files: Mapping[View, tuple[Path, Mapping[str, Any]]],
    *,
    writes: bool,
    say: Callable[[str], None],
) -> None:
    """Shows the teacher every training image once in each view, and keeps what it says.

    Args:
        asked: The images.
        teacher: The teacher.
        files: File and key of each view.
        writes: Whether this process writes the files; others run the teacher with it.
        say: Called with each line for the user.

    Raises:
        InputError: There is no room on the disk, or the teacher returns something else than logits.
    """
    count = len(asked.train)
    # The first answers say how wide a row is, before room is taken.
    first = next(asked.answers(teacher, [next(iter(files))], [torch.arange(min(2, count))]))
    layouts = _layouts(next(iter(first.values())), count)
    title = f"teacher cache: {count:,} images in {', '.join(view.name for view in files)}"
    _check_room(title, next(iter(files.values()))[0].parent, len(files) * bytes_of(layouts), say, writes)
    parts = list(torch.split(torch.arange(count), asked.batch_size))
    done, start = 0, time.perf_counter()
    spoken = start
    with contextlib.ExitStack() as stack:
        writers: dict[View, AnswersWriter] = {}
        if writes:
            for view, (path, key) in files.items():
                writers[view] = stack.enter_context(writing_answers(path, key, layouts))
        for part, answers in zip(parts, asked.answers(teacher, list(files), parts), strict=True):
            for view, writer in writers.items():
                writer.put(done, answers[view])
            done += len(part)
            if time.perf_counter() - spoken > _SECONDS_BETWEEN_LINES:
                spoken = time.perf_counter()
                say(f"{title}: {100 * done // count} % after {spoken - start:.0f} s")
    say(f"{title}: filled in {time.perf_counter() - start:.1f} s")


def check(
    asked: AskedImages,
    teacher: TeacherReading,
    kept: Mapping[View, Answers],
    paths: Mapping[View, Path],
) -> None:
    """Asks the teacher again about a few images and compares; see ``TOLERANCE``.

    Raises:
        InputError: It says something else now; the message names the file.
    """
    rows = asked.few()
    again = next(asked.answers(teacher, list(kept), [rows]))
    tolerance = TOLERANCE.get((asked.device.type, asked.precision), _USUAL_TOLERANCE)
    for view, answers in kept.items():
        logits, pooled = answers.of(rows)
        for name, before in (("logits", logits), ("pooled features", pooled)):
            now = again[view].get(name.replace(" ", "_"))
            if (before is None) != (now is None) or (
                before is not None and now is not None and before.shape != now.shape
            ):
                raise _stale(paths[view], f"the {name} have another shape now")
            if before is None or now is None:
                continue
            off = _difference(before, now)
            if not off <= tolerance:
                raise _stale(paths[view], f"{name} differ by {off:.2g} of their largest value, more than {tolerance:g}")


def _difference(before: Tensor, now: Tensor) -> float:
    before, now = before.to(torch.float64), now.to("cpu", torch.float64)
    # What is not finite is told of where it is trained with, as without a cache.
    both = before.isfinite() & now.isfinite()
    if not torch.equal(before.isfinite(), now.isfinite()):
        return float("inf")
    scale = float(before[both].abs().max()) if both.any() else 0.0
    largest = float((before - now)[both].abs().max()) if both.any() else 0.0
    return largest / scale if scale else largest


def _stale(path: Path, what: str) -> InputError:
    return InputError(
        f"The teacher says something else now than its kept answers in {path} hold ({CHECKED_IMAGES} images were asked about "
        f"again): {what}. Something has changed that its key does not see, such as the code of a network of your own. Delete "
        "the file and run again."
    )


def _layouts(answers: Mapping[str, Tensor], rows: int) -> dict[str, Layout]:
    # Wide numbers first, so that each tensor begins where its numbers may lie in memory.
    ordered = sorted(answers.items(), key=lambda item: -item[1].element_size())
    return {name: Layout(rows, tensor.shape[1], tensor.dtype) for name, tensor in ordered}


def _check_room(title: str, folder: Path, needed: int, say: Callable[[str], None], writes: bool) -> None:
    say(f"{title}: asking the teacher; {needed / 1e6:,.1f} MB in {folder}")
    if not writes:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"The teacher cache needs the folder {folder}, but {error.filename} is a file. Remove it, set TMKD_CACHE to "
            "another folder, or leave --teacher-cache out."
        ) from error
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"The teacher cache needs {needed / 1e9:.2f} GB in {folder}, but {free / 1e9:.2f} GB are free there. Make room, "
            "set TMKD_CACHE to another folder, lower --augmentation-variants, or leave --teacher-cache out."
        )
