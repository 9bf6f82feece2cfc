"""Answering for the teacher while a distiller runs, so that the distiller itself stays as it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tmkd_plugin.errors import InputError
from tmkd_plugin.fusion import fuse_nests
from tmkd_plugin.labels import check_labels, select_rows
from tmkd_plugin.model_output import SUBSTITUTE, ModelOutput
from tmkd_plugin.multi_view_teacher import MultiViewTeacher, PerView
from tmkd_plugin.stand_in import replaced_attributes


class TeacherInterception:
    """Stands in for a teacher during one step: whoever calls the teacher gets the fused answer.

    The teacher *object* answers: through ``__call__``, through ``forward_features`` and ``forward_head`` where it has them,
    and through this package's own readers. Outside :meth:`active` it is untouched.

    Args:
        multi_view: Shows the teacher the views.
        table: (K, V), the fusion weights of each class, detached.
        images: The batch that the distiller was given.
        labels: Its labels, (B,) integers or (B, K) probabilities.
        teacher_labels: Labels of the images that the distiller gives the teacher, if these are not the batch.
    """

    def __init__(
        self,
        multi_view: MultiViewTeacher,
        table: Tensor,
        images: Tensor,
        labels: Tensor,
        teacher_labels: Tensor | None = None,
    ) -> None:
        self.multi_view = multi_view
        # Any, since a network's forward_features and forward_head are known at run time only.
        self.teacher: Any = multi_view.teacher
        self.table = table
        self.images = images
        self.labels = labels
        self.teacher_labels = teacher_labels
        self.was_called = False
        self._first: tuple[PerView, Tensor] | None = None
        self._first_is_the_batch = False
        self._last: tuple[PerView, Tensor] | None = None
        self._features: list[tuple[Any, list[Any], Tensor]] = []
        self._rows_are_known = False
        self._before: dict[str, Any] = {}

    @contextlib.contextmanager
    def active(self) -> Iterator[TeacherInterception]:
        """Answers for the teacher inside the block."""
        with replaced_attributes(self.teacher, self._answers()) as self._before:
            yield self

    def first_call(self) -> tuple[PerView, Tensor]:
        """Returns what the teacher said of each view in its first call of the step, and the labels of that call's images.

        Raises:
            InputError: The teacher was not called.
        """
        if self._first is None and self._features:
            _, per_view, labels = self._features[0]
            self._first = self._finish(per_view), labels
        if self._first is None:
            raise InputError(
                f"The distiller never called its teacher ({type(self.teacher).__name__}) in this step, so there was nothing "
                "to enhance. If its teacher is another module than the one that was found, pass that as teacher=; if it calls "
                "another method than teacher(images), forward_features or forward_head, let it call one of these."
            )
        return self._first

    def read(self, images: Tensor) -> ModelOutput:
        """Answers this package's own readers; (B, 3, H, W) -> the fused :class:`ModelOutput`."""
        per_view, labels = self._ask(self.teacher, images)
        return self.multi_view.fused_output(per_view, select_rows(self.table, labels))

    def last_output(self) -> ModelOutput:
        """Returns the fused :class:`ModelOutput` of the last call."""
        if self._last is None:
            raise InputError(f"The teacher ({type(self.teacher).__name__}) was not called.")
        per_view, labels = self._last
        return self.multi_view.fused_output(per_view, select_rows(self.table, labels))

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        # Hooks on the teacher itself run once, around this answer, as they do around the bare teacher's.
        per_view, labels = self._ask(lambda *a, **k: self._own_forward()(*a, **k), *args, **kwargs)
        return self.multi_view.fused_return(per_view, select_rows(self.table, labels))

    def _own_forward(self) -> Any:
        # A module compiled in place runs through __call__ only.
        return self.teacher if self.teacher._compiled_call_impl is not None else self.teacher.forward

    def _ask(self, run: Any, *args: Any, **kwargs: Any) -> tuple[PerView, Tensor]:
        images, args, kwargs = _split_images(args, kwargs)
        labels = self._labels_of(images)
        with self._paused():
            per_view = self.multi_view.views_forward(images, *args, run=run, **kwargs)
        is_the_batch = _is_same(images, self.images)
        # The terms that compare student and teacher want the batch itself, if the teacher saw it at all.
        if self._first is None or (is_the_batch and not self._first_is_the_batch):
            self._first, self._first_is_the_batch = (per_view, labels), is_the_batch
        self._last = per_view, labels
        return per_view, labels

    def _forward_features(self, *args: Any, **kwargs: Any) -> Any:
        images, args, kwargs = _split_images(args, kwargs)
        labels = self._labels_of(images)
        with self._paused():
            per_view = self.multi_view.for_each_view(
                lambda view: self.teacher.forward_features(view, *args, **kwargs), self.multi_view.views_of(images)
            )
        fused = fuse_nests(per_view, select_rows(self.table, labels), self.multi_view.rgb)
        self._features.append((fused, per_view, labels))
        return fused

    def _forward_head(self, features: Any, *args: Any, **kwargs: Any) -> Any:
        known = next((entry for entry in self._features if entry[0] is features), None)
        with self._paused(), torch.no_grad():
            if known is None:
                return self.teacher.forward_head(features, *args, **kwargs)
            # A head need not be affine (ConvNeXt normalises in it): each view goes through it, then they are fused.
            _, per_view, labels = known
            heads = self.multi_view.for_each_view(
                lambda each: self.teacher.forward_head(each, *args, **kwargs), per_view
            )
        gives_logits = not kwargs.get("pre_logits", args[0] if args else False)
        if gives_logits and self.multi_view.logit_source == "rgb":
            return heads[self.multi_view.rgb]
        return fuse_nests(heads, select_rows(self.table, labels), self.multi_view.rgb)

    def _finish(self, features: list[Any]) -> PerView:
        """Reads logits and pooled features off per-view features that the distiller asked for without the head."""
        reader = self.multi_view.reader
        if not callable(getattr(self.teacher, "forward_head", None)):
            raise InputError(
                f"The distiller called forward_features of its teacher ({type(self.teacher).__name__}), which has no "
                "forward_head, so its logits and pooled features are not known. Give it one, or call the teacher itself."
            )

        def head(each: Any) -> ModelOutput:
            with reader.recording():
                return reader.recorded(self.teacher.forward_head(each))

        return PerView(tuple(features), tuple(self.multi_view.for_each_view(head, features)))

    def _labels_of(self, images: Tensor) -> Tensor:
        self.was_called = True
        if self._rows_are_known or _is_same(images, self.images):
            return self.labels
        if self.teacher_labels is None:
            raise InputError(
                f"The distiller gave its teacher images of shape {tuple(images.shape)} that are not the batch "
                f"{tuple(self.images.shape)} it was called with (another crop, order, size or normalisation), so their labels "
                "are not known. Pass them as teacher_labels=: enhancer(images, labels, teacher_labels=labels) if the rows are "
                "the same images in the same order."
            )
        self.multi_view.check(images)
        check_labels(self.teacher_labels, images.shape[0], self.multi_view.reader.num_classes)
        return self.teacher_labels

    @contextlib.contextmanager
    def _paused(self) -> Iterator[None]:
        """Lets the teacher answer for itself; an enhancer around this one learns that the rows are those of its batch."""
        with replaced_attributes(self.teacher, self._before):
            outer = getattr(self.teacher.__dict__.get("forward"), "__self__", None)
            if not isinstance(outer, TeacherInterception):
                yield
                return
            outer._rows_are_known = True
            try:
                yield
            finally:
                outer._rows_are_known = False

    def _answers(self) -> dict[str, Any]:
        answers: dict[str, Any] = {"forward": self._forward, SUBSTITUTE: self}
        # `module.compile()` hides `forward` behind this attribute.
        if self.teacher._compiled_call_impl is not None:
            answers["_compiled_call_impl"] = None
        for name, answer in (("forward_features", self._forward_features), ("forward_head", self._forward_head)):
            if callable(getattr(self.teacher, name, None)):
                answers[name] = answer
        return answers


def _split_images(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """Takes the images out of a call's arguments: the first positional one, else the first keyword that is a tensor."""
    if args and isinstance(args[0], Tensor):
        return args[0], args[1:], kwargs
    for name, value in kwargs.items():
        if isinstance(value, Tensor):
            return value, args, {key: kwargs[key] for key in kwargs if key != name}
    raise InputError(
        "The distiller called its teacher without a tensor of images; TMKD needs images (B, 3, H, W) as the first argument."
    )


def _is_same(given: Tensor, batch: Tensor) -> bool:
    if given is batch:
        return True
    if given.shape != batch.shape:
        return False
    if given.dtype == batch.dtype and given.data_ptr() == batch.data_ptr() and given.stride() == batch.stride():
        return True
    return torch.equal(given, batch.to(dtype=given.dtype, device=given.device))
