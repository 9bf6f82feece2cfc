"""What TMKD trains beside the student, WeightNet and the projections, and the terms that it adds (Eq 12)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tmkd_plugin.distiller import cross_entropy
from tmkd_plugin.errors import InputError
from tmkd_plugin.fusion import WeightNet, fuse, seeded_linear
from tmkd_plugin.labels import select_rows
from tmkd_plugin.losses import feature_kl_loss, kd_loss, perturbed_features, softened_kl, text_contrast_loss
from tmkd_plugin.model_output import ModelOutput
from tmkd_plugin.multi_view_teacher import MultiViewTeacher, PerView
from tmkd_plugin.tmkd_settings import TMKDSettings


class TMKDHeads(nn.Module):
    """WeightNet, the projections, and the loss terms made with them.

    A head that no term needs is not made, so that every parameter here gets a gradient.

    Args:
        settings: Weights, temperatures and widths.
        logit_weight: The resolved weight of the added logit KL.
        text_embeddings: (V, K, D), one row a view and class.
        anchors: (K, D), the text embeddings of the plain prompt, which the contrast draws the student towards.
        student_width: Width of the student's pooled features; None if it has none.
        teacher_width: Width of the teacher's.
        seed: Initialisation is a function of it.
    """

    def __init__(
        self,
        settings: TMKDSettings,
        logit_weight: float,
        text_embeddings: Tensor,
        anchors: Tensor,
        student_width: int | None,
        teacher_width: int | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.logit_weight = logit_weight
        self.text_embeddings: Tensor
        self.register_buffer("text_embeddings", text_embeddings, persistent=False)
        self.anchors: Tensor
        self.register_buffer("anchors", anchors, persistent=False)
        n_views, _, text_width = text_embeddings.shape

        self.weight_net: WeightNet | None = None
        if settings.fusion == "text":
            self.weight_net = WeightNet(n_views, text_width, settings.hidden_width, seed=seed)
            self.weight_net.requires_grad_(self._weight_net_learns())
        self.feature_projection: nn.Linear | None = None
        if settings.feature_weight and student_width is not None and teacher_width is not None:
            self.feature_projection = seeded_linear(student_width, teacher_width, seed, "feature projection")
        self.student_projection: nn.Linear | None = None
        self.text_projection: nn.Linear | None = None
        if settings.contrast_weight and student_width is not None:
            width = settings.projection_width
            self.student_projection = seeded_linear(student_width, width, seed, "student projection")
            self.text_projection = seeded_linear(text_width, width, seed, "text projection")
        self.to(text_embeddings.dtype)

    def fusion_table(self) -> Tensor:
        """Returns the fusion weights (K, V) of all classes, attached to WeightNet; rows sum to 1."""
        if self.weight_net is None:
            n_views, n_classes, _ = self.text_embeddings.shape
            return self.text_embeddings.new_full((n_classes, n_views), 1 / n_views)
        table: Tensor = self.weight_net(self.text_embeddings)
        return table

    def terms(
        self,
        multi_view: MultiViewTeacher,
        student: ModelOutput,
        per_view: PerView,
        labels: Tensor,
        table: Tensor,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Computes the weighted terms that TMKD adds to the distiller's own (Eq 12); a term of weight 0 is not computed.

        Args:
            multi_view: Fuses what the teacher said.
            student: What the student said of the batch.
            per_view: What the teacher said of each view of it.
            labels: (B,) integers or (B, K) probabilities.
            table: (K, V), attached to WeightNet.
            generator: Of the noise.

        Returns:
            Scalars by name: ``feature_kl``, ``logit_kl``, ``text_contrast``, ``fusion_cross_entropy``.
        """
        settings, terms = self.settings, {}
        weights = select_rows(table, labels)
        if self.feature_projection is not None:
            # The only place where the weights stay attached: WeightNet learns from Eq 7 and, by default, nothing else.
            attached = weights if settings.fusion_objective == "feature_kl" else weights.detach()
            fused = multi_view.fused_pooled_features(per_view, attached)
            noise = torch.randn(fused.shape, generator=generator).to(fused)
            target = perturbed_features(fused, noise, settings.noise_scale)  # Eq 6
            mapped = _project(self.feature_projection, student.pooled_features)
            loss = feature_kl_loss(mapped, target, settings.feature_temperature, settings.scale_feature_kl)  # Eq 7
            terms["feature_kl"] = settings.feature_weight * loss
        if self.logit_weight:
            logits = multi_view.fused_output(per_view, weights.detach()).logits
            kl = kd_loss if settings.scale_logit_kl else softened_kl
            terms["logit_kl"] = self.logit_weight * kl(student.logits, logits, settings.temperature)  # Eq 8
        if self.student_projection is not None and self.text_projection is not None:
            s = _project(self.student_projection, student.pooled_features)  # Eq 9
            t = self.text_projection(self.anchors)  # Eq 10
            contrast = text_contrast_loss(s, t, labels, settings.contrast_temperature)  # Eq 11
            terms["text_contrast"] = settings.contrast_weight * contrast
        if self.weight_net is not None and settings.fusion_objective == "labels":
            logits = fuse([output.logits for output in per_view.outputs], weights)
            terms["fusion_cross_entropy"] = cross_entropy(logits, labels)
        return terms

    def _weight_net_learns(self) -> bool:
        objective = self.settings.fusion_objective
        return objective == "labels" or (objective == "feature_kl" and self.settings.feature_weight > 0)


def _project(projection: nn.Linear, features: Tensor | None) -> Tensor:
    if features is None:
        raise InputError("The student gave no pooled features in this step.")
    projected: Tensor = projection(features.to(projection.weight.dtype))
    return projected
