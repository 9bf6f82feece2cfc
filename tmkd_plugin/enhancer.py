"""TMKDEnhancer: a better teacher around any distiller (TMKD, arXiv 2603.24208)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tmkd_plugin.enhancer_base import TeacherEnhancer
from tmkd_plugin.errors import InputError, unknown_name
from tmkd_plugin.model_output import ModelOutput
from tmkd_plugin.multi_view_teacher import MultiViewTeacher, PerView
from tmkd_plugin.optimiser_watch import OptimiserWatch
from tmkd_plugin.randomness import generator_for
from tmkd_plugin.settings import Setting, settings_table
from tmkd_plugin.text_encoder import DEFAULT_TEXT_MODEL
from tmkd_plugin.text_teacher import TextEmbeddings, text_embeddings
from tmkd_plugin.tmkd_heads import TMKDHeads
from tmkd_plugin.tmkd_settings import TMKDSettings
from tmkd_plugin.views import VIEW_NAMES, ViewSettings


class TMKDEnhancer(TeacherEnhancer):
    """Wraps a distiller and gives its student a better teacher.

    In each step the wrapped distiller runs unchanged. When it calls its teacher, the enhancer shows the frozen teacher an
    RGB, an edge-enhanced and a high-frequency view of each image (Eq 1-2) and answers with the sum of what it says, weighted
    by class with weights made from CLIP text embeddings (Eq 3-5). To the distiller's own terms it adds a feature KL
    (Eq 6-7), a logit KL (Eq 8, where the distiller has none) and a text contrast (Eq 9-11).

    The enhancer is a distiller itself: it trains, checkpoints and nests like one. Give the optimiser
    :meth:`trainable_parameters`. Only the feature KL teaches WeightNet; everything else sees detached weights.

    Args:
        distiller: A module with ``.student`` and ``.teacher`` that maps (images, labels) to a dict with ``"loss"``, to a
            pair ``(logits, {name: term})`` or to a scalar; or a function that does, with ``student=`` and ``teacher=``.
        class_names: The K class names in the order of the labels, in words.
        text: Where the text embeddings come from: :class:`TextEmbeddings`, or a source that
            :func:`~tmkd_plugin.text_teacher.text_embeddings` understands.
        student: The student, or its dotted name in the distiller, where it is not ``distiller.student``.
        teacher: The teacher, likewise.
        mean: Mean with which the images are normalised, three floats for pixels in [0, 1]; None: images are in [0, 1].
        std: Standard deviation, likewise.
        views: Names of the views, out of ``rgb``, ``edge`` and ``high_frequency``.
        seed: The initialisation of the heads and the noise are functions of it.
        input_size: Side in pixels of the images with which the networks are probed; None finds it out.
        **settings: Weights, temperatures, thresholds and scales by name: the fields of
            :class:`~tmkd_plugin.tmkd_settings.TMKDSettings` and :class:`~tmkd_plugin.views.ViewSettings`;
            :attr:`SETTINGS` lists them.

    Raises:
        InputError: Something given can't be used; the message says what it is and what to do.
    """

    SETTINGS: ClassVar[dict[str, Setting]] = {**settings_table(TMKDSettings), **settings_table(ViewSettings)}
    """Every setting with its default, the source of the default and its meaning."""

    TITLE: ClassVar[str] = "TMKD"
    GUIDE: ClassVar[str] = "text"

    heads: TMKDHeads

    def __init__(
        self,
        distiller: nn.Module | Callable[..., Any],
        class_names: Sequence[str],
        *,
        text: Any = DEFAULT_TEXT_MODEL,
        student: nn.Module | str | None = None,
        teacher: nn.Module | str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        views: Sequence[str] = VIEW_NAMES,
        seed: int = 0,
        input_size: int | None = None,
        **settings: Any,
    ) -> None:
        tmkd, of_views = _split_settings(settings)
        super().__init__(distiller, class_names, student=student, teacher=teacher, seed=seed, input_size=input_size)
        self.multi_view = MultiViewTeacher(self.teacher_reader, views, mean, std, of_views, tmkd.logit_source)
        if not isinstance(text, TextEmbeddings):
            # The contrast draws towards the plain prompt even where the teacher is not shown the plain image.
            prompts = (
                self.multi_view.views if isinstance(text, Tensor) else dict.fromkeys(["rgb", *self.multi_view.views])
            )
            text = text_embeddings(self.class_names, text, views=tuple(prompts))
        self.text_source, self.text_views = text.source, text.text_views
        self.heads = self._build_heads(tmkd, text)
        self._watch = OptimiserWatch(list(self.student.parameters()), self._head_parameters())

    def forward(
        self, images: Tensor, labels: Tensor, *args: Any, teacher_labels: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Runs one step of the distiller with the enhanced teacher and adds TMKD's terms.

        Args:
            images: (B, 3, H, W), normalised with ``mean`` and ``std``.
            labels: (B,) integers or (B, K) probabilities.
            *args: Given to the distiller after images and labels.
            teacher_labels: Labels of the images that the distiller gives its teacher, where these are not the batch.
            **kwargs: Given to the distiller.

        Returns:
            ``"loss"``, ``"output"`` (student logits (B, K)) and every weighted term; the terms add up to the loss.

        Raises:
            InputError: Images or labels can't be used, or the distiller did not call its teacher.
        """
        return self.enhanced_step(
            lambda: self.distiller(images, labels, *args, **kwargs), images, labels, teacher_labels=teacher_labels
        )

    def added_terms(
        self,
        student: ModelOutput,
        per_view: PerView,
        labels: Tensor,
        table: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Computes TMKD's own terms of a step; see :meth:`TeacherEnhancer.added_terms`."""
        noise = generator_for(self.seed, "feature noise", self.steps_done)
        table = self.fusion_table() if table is None else table
        added = self.heads.terms(self.multi_view, student, per_view, labels, table, noise)
        self.steps_done += self.training
        return added

    def fusion_table(self) -> Tensor:
        """Returns the fusion weights (K, V) of all classes, attached to WeightNet; rows sum to 1."""
        return self.heads.fusion_table()

    def unpaired_advice(self) -> str | None:
        """See :meth:`TeacherEnhancer.unpaired_advice`."""
        if self.heads.feature_projection is None and not self.heads.logit_weight:
            return None
        return "set feature_weight=0 and logit_weight=0, which leaves the fused teacher and the text contrast"

    def epoch_report(self) -> dict[str, Any]:
        """Returns what a log should hold of each epoch: the fusion weight of each view, mean over the classes."""
        with torch.no_grad():
            means = self.fusion_table().mean(dim=0).tolist()
        return {"fusion_weights": dict(zip(self.multi_view.views, means, strict=True))}

    def _build_heads(self, settings: TMKDSettings, text: TextEmbeddings) -> TMKDHeads:
        expected = (len(self.multi_view.views), self.num_classes)
        if text.class_names is not None and list(text.class_names) != self.class_names:
            raise InputError(
                f"The text embeddings are of the classes {', '.join(text.class_names)}, but the class names are "
                f"{', '.join(self.class_names)}. Make them for these, in this order."
            )
        has_plain = text.views is not None and "rgb" in text.views
        plain = text.for_views(["rgb"]).tensor[0] if has_plain else None
        text = text.for_views(self.multi_view.views)
        if tuple(text.tensor.shape[:2]) != expected:
            raise InputError(
                f"The text embeddings are for {tuple(text.tensor.shape[:2])} (views, classes), but {expected} are needed: "
                f"views {', '.join(self.multi_view.views)} of {self.num_classes} classes."
            )
        parameter = next(self.student.parameters())
        dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
        embeddings = text.tensor.to(dtype)
        needs_student = settings.feature_weight or settings.contrast_weight
        reader, teacher_reader = self.student_reader, self.multi_view.reader
        return TMKDHeads(
            settings,
            logit_weight=self.resolve_logit_weight(settings.logit_weight, 1.0),
            text_embeddings=embeddings,
            anchors=embeddings[self.multi_view.rgb] if plain is None else plain.to(dtype),
            student_width=reader.pooled_width if needs_student else None,
            teacher_width=teacher_reader.pooled_width if settings.feature_weight else None,
            seed=self.seed,
        ).to(parameter.device)

    def _head_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.heads.parameters() if parameter.requires_grad]


def _split_settings(given: Mapping[str, Any]) -> tuple[TMKDSettings, ViewSettings]:
    for name in given:
        if name not in TMKDEnhancer.SETTINGS:
            raise unknown_name("setting of TMKDEnhancer", name, TMKDEnhancer.SETTINGS)
    of_views = {name: value for name, value in given.items() if name in settings_table(ViewSettings)}
    rest = {name: value for name, value in given.items() if name not in of_views}
    return TMKDSettings(**rest), ViewSettings(**of_views)
