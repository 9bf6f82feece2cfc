"""What answers for a teacher whose answers are kept: it runs no network, and no view of a batch is made."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tmkd_plugin.batch_memory import MEMORY, BatchMemory, version_of
from tmkd_plugin.errors import InputError
from tmkd_plugin.model_output import LISTENERS, Recorder
from tmkd_plugin.multi_view_teacher import ViewsKey
from tmkd_plugin.nested import leaves
from tmkd_plugin.stand_in import replaced_attributes
from tmkd_plugin.training.teacher_cache_key import RGB, View, view_of
from tmkd_plugin.training.teacher_cache_view import unmade_view
from tmkd_plugin.training.watched_teacher import WatchedTeacher

ADVICE = "Train this one without --teacher-cache."


@dataclass(frozen=True)
class Answers:
    """What a teacher says of one view of N images; a file backs it.

    Attributes:
        logits: (N, K).
        pooled_features: (N, D); None where the teacher has none.
    """

    logits: Tensor
    pooled_features: Tensor | None

    def of(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns logits and pooled features of the images at these places, (B,) int64."""
        pooled = None if self.pooled_features is None else self.pooled_features[rows]
        return self.logits[rows], pooled


class KnownBatch(BatchMemory):
    """The batch that is trained on, of which the teacher's answers are known.

    Args:
        answers: The answers for each view.
        mean: Mean of the normalisation of the images that they are of.
        std: Standard deviation, likewise.
    """

    def __init__(self, answers: Mapping[View, Answers], mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self._answers = answers
        self._statistics = mean, std
        self._views: dict[View, tuple[Tensor, int]] = {}
        self._rows = torch.empty(0, dtype=torch.int64)

    def begin(self, images: Tensor, rows: Tensor) -> None:
        """Goes on to a batch.

        Args:
            images: (B, 3, H, W), on any device.
            rows: (B,) int64, their places in the answers, on the CPU.
        """
        self.forget()
        self._rows = rows
        # Looked at by what they are in memory: the views' own pixels are made by nobody.
        views = {view: images if view == RGB else unmade_view(images) for view in {RGB, *self._answers}}
        with torch._C.DisableTorchFunctionSubclass():
            self._views = {view: (tensor, version_of(tensor)) for view, tensor in views.items()}

    def find(self, key: Hashable, images: Tensor) -> Any:
        """Returns views that stand for those of the images, or what is kept like :meth:`BatchMemory.find`."""
        if not isinstance(key, ViewsKey):
            return super().find(key, images)
        if (key.mean, key.std) != self._statistics:
            raise InputError(
                f"The teacher cache holds views of images with mean {self._statistics[0]} and std {self._statistics[1]}, but "
                f"they are asked for with {key.mean} and {key.std}. {ADVICE}"
            )
        asked, part = self.place_of(images)
        if asked != RGB:
            raise InputError(f"The teacher cache holds views of images, but no views of views. {ADVICE}")
        return [self._stand_in(view_of(name, key.settings), part) for name in key.names]

    def place_of(self, images: Tensor) -> tuple[View, slice]:
        """Returns which view the images are, and which part of the batch.

        Raises:
            InputError: They are not the batch or a part of it.
        """
        for view, (whole, version) in self._views.items():
            part = _part_of(images, whole, version)
            if part is not None:
                return view, part
        raise InputError(
            f"The teacher was asked about images of shape {tuple(images.shape)} that are not those of the batch (or of a view "
            f"of it), so what it says of them is not known. {ADVICE}"
        )

    def answers_to(self, view: View, part: slice, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Returns logits and pooled features of a part of the batch."""
        logits, pooled = self._answers[view].of(self._rows[part])
        return logits.to(device), None if pooled is None else pooled.to(device)

    def _stand_in(self, view: View, part: slice) -> Tensor:
        if view not in self._views:
            raise InputError(f"The teacher cache holds no answers for the view '{view.name}' of this step. {ADVICE}")
        whole, _ = self._views[view]
        return whole[part]


class KnownForward:
    """Stands in for a teacher's ``forward``.

    Args:
        network: The teacher, in eval mode.
        batch: What is known.
        classifier: Dotted name of the module whose input is the pooled features; None for none.
    """

    def __init__(self, network: nn.Module, batch: KnownBatch, classifier: str | None) -> None:
        self.network = network
        self.batch = batch
        self.classifier = classifier
        self._watched = WatchedTeacher(network)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Answers for the network inside the block."""
        answers: dict[str, Any] = {"forward": self, MEMORY: self.batch}
        if self.network._compiled_call_impl is not None:
            answers["_compiled_call_impl"] = None  # it would run past what answers for its forward
        for name in ("forward_features", "forward_head"):
            if callable(getattr(self.network, name, None)):
                answers[name] = self._refusing(name)
        with replaced_attributes(self.network, answers):
            yield

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Returns the logits, and tells those who listen inside the network what they would hear.

        Raises:
            InputError: More is asked for than logits and pooled features of the batch.
        """
        given = [*args, *kwargs.values()]
        if len(given) != 1 or not isinstance(given[0], Tensor):
            raise self._error(f"is called with {len(given)} arguments instead of the images alone")
        images = given[0]
        if self._watched.is_training:
            raise self._error("is in training mode")
        if self._watched.wants_gradient(images):
            raise self._error("is called with gradient")
        if self._watched.was_written_to:
            raise self._error("was changed since its answers were kept")
        listeners: list[Recorder] = self.network.__dict__.get(LISTENERS, [])
        known = all(listener.place.classifier in (None, self.classifier) for listener in listeners)
        if not known or self._watched.is_heard_by_others(listeners):
            raise self._error("is listened to inside (forward hooks)")
        with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
            # Every arm that asks gets the same tensors, unless somebody has written into them.
            answer = self.batch.find("answers", images)
            if answer is None:
                answer = self.batch.answers_to(*self.batch.place_of(images), images.device)
                self.batch.keep("answers", images, answer)
        logits, pooled = answer
        for listener in listeners:
            # A reader wants to have heard something of a classifier whose input are no pooled features.
            listener.hear({"passing_map": None, "pooled": logits if pooled is None else pooled, "logits": logits})
        return logits  # type: ignore[no-any-return]

    def _refusing(self, name: str) -> Callable[..., Any]:
        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise self._error(f"is asked for {name}, which is more than its logits")

        return refuse

    def _error(self, what: str) -> InputError:
        return InputError(
            f"The teacher ({type(self.network).__name__}) {what}, but a teacher cache keeps its logits and pooled features of "
            f"the training images only. {ADVICE}"
        )


def _part_of(images: Tensor, whole: Tensor, version: int) -> slice | None:
    """Returns which rows of a batch these images are, by where they lie; None if they are others."""
    with torch._C.DisableTorchFunctionSubclass():
        alike = (images.device, images.dtype, images.shape[1:], images.stride()[1:]) == (
            *(whole.device, whole.dtype, whole.shape[1:], whole.stride()[1:]),
        )
        if not alike or version_of(images) != version or version_of(whole) != version:
            return None
        row = whole.stride(0) * whole.element_size()
        start, between = divmod(images.data_ptr() - whole.data_ptr(), row)
        end = start + images.shape[0]
        fits = between == 0 and start >= 0 and end <= whole.shape[0]
        fits = fits and (images.shape[0] == 1 or images.stride(0) == whole.stride(0))
        return slice(start, end) if fits else None


def answers_of(returned: Any, heard: Mapping[str, Any], network: nn.Module, has_pooled: bool) -> dict[str, Tensor]:
    """Returns what is kept of a teacher's pass over B images: ``logits`` (B, K) and ``pooled_features`` (B, D) if it has any.

    Raises:
        InputError: The teacher returns something else than logits.
    """
    if not isinstance(returned, Tensor) or returned.ndim != 2:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves(returned))
        raise InputError(
            f"A teacher cache needs a teacher that returns its logits (B, K) and nothing else, but {type(network).__name__} "
            f"returns {type(returned).__name__} ({shapes}). Give --teacher another network, or leave --teacher-cache out."
        )
    return {"pooled_features": heard["pooled"], "logits": returned} if has_pooled else {"logits": returned}
