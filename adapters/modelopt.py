"""TMKD or RichKD inside NVIDIA ModelOpt: a better teacher for ``modelopt.torch.distill``'s ``DistillationModel``.

Its forward pass runs teacher and student and sees no labels; they arrive with ``compute_kd_loss(labels=...)``, and that is
when what the hooks caught of each view is fused.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from tmkd_plugin.adapters.hosted import LATE_LABELS, HostStep, LateLabels, build
from tmkd_plugin.distiller_return import sum_of
from tmkd_plugin.errors import InputError

try:
    import modelopt.torch.distill as mtd
except ImportError as error:
    raise ImportError(
        f"NVIDIA ModelOpt can't be imported ({error}). Install it: pip install 'tmkd-plugin[modelopt]'."
    ) from error

ATTRIBUTE = "_tmkd"
"""Temporary attribute of the model that holds the adapter; ``mtd.export`` takes it off again."""


def enhance(
    model: nn.Module,
    class_names: Sequence[str],
    *,
    enhancer: str = "tmkd",
    text: Any = None,
    clip: Any = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    enabled: bool = True,
    **settings: Any,
) -> nn.Module:
    """Gives a ``DistillationModel`` a better teacher; call it before the optimiser is made.

    The same object comes back. From then on ``compute_kd_loss`` takes ``labels=``: the criteria see the fused teacher, and
    the enhancer's terms are added after the balancer (with ``skip_balancer=True`` they stand in the dict under their
    names). The heads are a loss module of the model: ``parameters()`` and ``state_dict()`` hold them, and ``mtd.export``
    takes everything off again.

    Args:
        model: What ``mtd.convert(student, mode=[("kd_loss", {...})])`` returned.
        class_names: The K class names in the order of the labels, in words.
        enhancer: ``"tmkd"`` or ``"richkd"``.
        text: Of TMKD: where the text embeddings come from; see :class:`~tmkd_plugin.TMKDEnhancer`. None: its default.
        clip: Of RichKD: the CLIP to run on every batch; see
            :class:`~tmkd_plugin.RichKDEnhancer`. None: its default.
        mean: Mean of the images' normalisation, three floats for pixels in [0, 1]; None: images are in [0, 1].
        std: Standard deviation, likewise.
        seed: The initialisation of the heads and all draws are functions of it.
        enabled: False gives the model back untouched.
        **settings: More arguments of the enhancer: ``input_size``, weights, temperatures, TMKD's ``views``.

    Returns:
        The model.

    Raises:
        InputError: It is no ``DistillationModel``, is wrapped or enhanced already, or an argument can't be used.
    """
    if not enabled:
        return model
    if not isinstance(model, mtd.DistillationModel):
        raise InputError(
            f"Expected the DistillationModel that mtd.convert returns, before DistributedDataParallel wraps it; got "
            f"{type(model).__name__}."
        )
    if hasattr(model, ATTRIBUTE):
        raise InputError("This model is enhanced already; call enhance() once, or mtd.export it first.")
    step = HostStep(
        "The enhancer inside a DistillationModel runs through the model: call it, then compute_kd_loss.",
        _has_logit_kl(model),
    )
    teacher = model.teacher_model
    # The probe runs the student alone, as it will be without ModelOpt.
    with model.hide_teacher_model(), model.only_student_forward():
        made = build(
            LATE_LABELS,
            enhancer,
            step,
            class_names,
            text=text,
            clip=clip,
            without_ids="ModelOpt",
            student=model,
            teacher=teacher,
            mean=mean,
            std=std,
            seed=seed,
            **settings,
        )
    made.train(model.training)
    _Adapter(model, teacher, enhancer, made).install()
    enhanced: nn.Module = model
    return enhanced


class _Adapter:
    """Answers for the teacher's ``forward`` and the model's ``compute_kd_loss`` between ``enhance`` and ``mtd.export``."""

    def __init__(self, model: Any, teacher: Any, name: str, enhancer: LateLabels) -> None:
        self.model, self.teacher = model, teacher
        self.name, self.enhancer = name, enhancer
        self.own_forward = teacher.forward
        self.own_compute_kd_loss = model.compute_kd_loss
        self.forward_was_replaced = "forward" in teacher.__dict__
        self.layers = list(dict.fromkeys(layer for _, layer in model._layers_to_loss if layer is not teacher))
        self.output_is_matched = any(layer is teacher for _, layer in model._layers_to_loss)
        self.criteria_take_labels = all(_takes_labels(loss) for loss in model._layers_to_loss.values())

    def install(self) -> None:
        """Puts the adapter in; ModelOpt deletes the temporary attribute, and so the rest, on export."""
        for student_layer, teacher_layer in self.model._layers_to_loss:  # what the probe left there
            student_layer._intermediate_output = teacher_layer._intermediate_output = None
        self.model._register_temp_attribute(ATTRIBUTE, self, del_hook=lambda *_: self.remove())
        self.model.loss_modules.add_module(self.name, self.enhancer)
        self.model.compute_kd_loss = self.compute_kd_loss
        self.teacher.forward = self.forward

    def remove(self) -> None:
        """Takes the adapter off."""
        self.enhancer.forget()
        del self.model.compute_kd_loss
        if self.forward_was_replaced:
            self.teacher.forward = self.own_forward
        else:
            del self.teacher.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the teacher on each view; what it returns, and what the hooks caught, waits for the labels."""
        name = None if args else next(name for name, value in kwargs.items() if isinstance(value, Tensor))
        images: Any = args[0] if name is None else kwargs[name]

        def run(view: Tensor) -> tuple[Any, list[Any]]:
            if name is None:
                returned = self.own_forward(view, *args[1:], **kwargs)
            else:
                returned = self.own_forward(**{**kwargs, name: view})
            caught = [layer._intermediate_output for layer in self.layers]
            for layer in self.layers:
                layer._intermediate_output = None
            return returned, caught

        returned, _ = self.enhancer.show(images, run).returned[self.enhancer.multi_view.rgb]
        return returned

    def compute_kd_loss(self, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """Computes ModelOpt's loss with the fused teacher, and adds the enhancer's terms.

        Args:
            *args: See ``DistillationModel.compute_kd_loss``.
            labels: (B,) integers or (B, K) probabilities.
            **kwargs: See ``DistillationModel.compute_kd_loss``.
        """
        if labels is None:
            raise InputError(
                f"{self.enhancer.TITLE} needs the labels: call compute_kd_loss(student_loss=..., labels=labels)."
            )
        returned, caught = self.enhancer.fused(labels)
        for layer, fused in zip(self.layers, caught, strict=True):
            layer._intermediate_output = fused
        if self.output_is_matched:
            self.teacher._intermediate_output = returned
        if self.criteria_take_labels:
            kwargs["labels"] = labels
        own = self.own_compute_kd_loss(*args, **kwargs)
        added = self.enhancer.late_terms(labels)
        return own | added if isinstance(own, dict) else sum_of({"own": own, **added})


def _has_logit_kl(model: Any) -> bool:
    kinds = (mtd.LogitsDistillationLoss, getattr(mtd, "MFTLoss", mtd.LogitsDistillationLoss), nn.KLDivLoss)
    return any(isinstance(loss, kinds) for loss in model._layers_to_loss.values())


def _takes_labels(loss: nn.Module) -> bool:
    return "labels" in inspect.signature(loss.forward).parameters
