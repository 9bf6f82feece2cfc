"""TMKD or RichKD inside mdistiller (megvii-research) and its forks: their own trainer trains the enhanced distiller.

Nothing of mdistiller is imported: a distiller is known by its contract, a module with ``student``, ``teacher``,
``forward_train(image, target, **kwargs) -> (logits, losses_dict)``, ``get_learnable_parameters`` and
``get_extra_parameters``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tmkd_plugin.adapters.hosted import HOSTED, Hosted, HostStep, build
from tmkd_plugin.errors import InputError, TmkdNotice
from tmkd_plugin.sample_ids import wants_ids

HAS_LOGIT_KL = {"KD": True, "DKD": True} | dict.fromkeys(
    ("AT", "CRD", "FitNet", "KDSVD", "NST", "OFD", "PKT", "RKD", "ReviewKD", "SP", "VID"), False
)
"""Whether a distiller of the repository has a KL divergence of logits of its own, by the name of its class."""


def enhance(
    distiller: nn.Module,
    class_names: Sequence[str],
    *,
    enhancer: str = "tmkd",
    text: Any = None,
    clip: Any = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    add_to: str | None = None,
    enabled: bool = True,
    **settings: Any,
) -> nn.Module:
    """Gives an mdistiller ``Distiller`` a better teacher; call it before ``DataParallel`` and the trainer.

    The same object comes back, as an instance of a subclass of its class: its attributes, its checkpoint keys and what it
    does at test time stay; the keys ``tmkd.*`` (``richkd.*``) and the enhancer's terms in ``losses_dict`` are new.

    Args:
        distiller: The instance that mdistiller's ``tools/train.py`` makes.
        class_names: The K class names in the order of the labels, in words.
        enhancer: ``"tmkd"`` or ``"richkd"``.
        text: Of TMKD: where the text embeddings come from; see :class:`~tmkd_plugin.TMKDEnhancer`. None: its default.
        clip: Of RichKD: the CLIP to run on every batch, or ``ClipAnswers``; see
            :class:`~tmkd_plugin.RichKDEnhancer`. None: its default.
        mean: Mean of the images' normalisation, three floats for pixels in [0, 1]; None: images are in [0, 1].
        std: Standard deviation, likewise.
        seed: The initialisation of the heads and all draws are functions of it.
        add_to: Name of the term in ``losses_dict`` to which the added terms are added, for trainers that read their terms by
            name (the DOT trainers: ``"loss_kd"``); None: each keeps its own name.
        enabled: False gives the distiller back untouched.
        **settings: More arguments of the enhancer: ``input_size``, weights, temperatures, TMKD's ``views``.

    Returns:
        The distiller.

    Raises:
        InputError: It is no distiller of that contract, or an argument can't be used.
    """
    if not enabled:
        return distiller
    _check(distiller)
    host: Any = distiller
    step = HostStep(
        "The enhancer inside an mdistiller distiller runs through the distiller: call forward_train of that.",
        _has_logit_kl(distiller, settings.get("logit_weight")),
    )
    made = build(
        HOSTED,
        enhancer,
        step,
        class_names,
        text=text,
        clip=clip,
        student=host.student,
        teacher=host.teacher,
        mean=mean,
        std=std,
        seed=seed,
        **settings,
    )
    host.add_module(enhancer, made.train(host.training))
    host.enhanced_by, host.enhanced_add_to = enhancer, add_to
    # `isinstance` of the original class holds.
    name = f"{type(host).__name__}With{made.TITLE}"
    host.__class__ = type(name, (EnhancedDistiller, type(host)), {"__module__": __name__})
    return distiller


if TYPE_CHECKING:

    class _Contract(nn.Module):
        """What mdistiller's ``Distiller`` is to a type checker."""

        def forward_train(self, **kwargs: Any) -> tuple[Tensor, dict[str, Any]]: ...
        def get_learnable_parameters(self) -> list[nn.Parameter]: ...
        def get_extra_parameters(self) -> int: ...
else:
    _Contract = nn.Module


class EnhancedDistiller(_Contract):
    """What :func:`enhance` puts in front of a distiller's class; its child ``tmkd`` or ``richkd`` is the enhancer."""

    enhanced_by: str
    enhanced_add_to: str | None

    @property
    def enhancer(self) -> Hosted:
        """The enhancer, which holds the heads."""
        enhancer: Hosted = getattr(self, self.enhanced_by)
        return enhancer

    def forward_train(self, *args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, Any]]:
        """Runs the distiller's own step with the enhanced teacher and adds the enhancer's terms.

        Args:
            *args: Image (B, 3, H, W) and target (B,), where they are not given by name.
            **kwargs: What the trainer gives: image, target, epoch, index, contrastive_index, ...

        Returns:
            What the distiller returned, with the enhancer's weighted terms in the dict.
        """
        given = dict(zip(("image", "target"), args, strict=False)) | kwargs
        image, target, teacher_labels = _batch_of(given)
        own_step = super().forward_train
        returned: list[Any] = []

        def step() -> Any:
            returned.append(own_step(**given))
            return returned[0]

        ids = _ids_of(given, self.enhancer)
        out = self.enhancer.enhanced_step(step, image, target, ids=ids, teacher_labels=teacher_labels)
        logits, terms = returned[0]
        added = {name: value for name, value in out.items() if name not in ("loss", "output", *terms)}
        return logits, self._with(dict(terms), added)

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        """Returns the distiller's own parameters to learn and those of the heads."""
        return [*super().get_learnable_parameters(), *self.enhancer.trainable_parameters()]

    def get_extra_parameters(self) -> int:
        """Counts what is trained beside the student, the heads included."""
        return super().get_extra_parameters() + sum(p.numel() for p in self.enhancer.trainable_parameters())

    def _with(self, terms: dict[str, Any], added: dict[str, Tensor]) -> dict[str, Any]:
        if self.enhanced_add_to is None or not added:
            return terms | added
        if self.enhanced_add_to not in terms:
            raise InputError(
                f"add_to='{self.enhanced_add_to}', but the terms of {type(self).__name__} are {', '.join(terms)}. Name one of "
                "them."
            )
        terms[self.enhanced_add_to] = sum(added.values(), start=terms[self.enhanced_add_to])
        return terms

    def _replicate_for_data_parallel(self) -> Any:
        raise InputError(
            f"{self.enhancer.TITLE} runs on one GPU for each process, but DataParallel was about to spread the distiller over "
            "several. Set CUDA_VISIBLE_DEVICES to one of them, or wrap it with DataParallel(distiller, device_ids=[0])."
        )


def _check(distiller: nn.Module) -> None:
    if isinstance(distiller, EnhancedDistiller):
        raise InputError("This distiller is enhanced already; call enhance() once.")
    needed = ("student", "teacher", "forward_train", "get_learnable_parameters", "get_extra_parameters")
    missing = [name for name in needed if not hasattr(distiller, name)]
    if not isinstance(distiller, nn.Module) or missing:
        inner = " Enhance it before DataParallel wraps it." if hasattr(distiller, "module") else ""
        raise InputError(
            f"{type(distiller).__name__} is no mdistiller distiller with a teacher: it has no {', '.join(missing)}.{inner} "
            "Another kind of distiller goes into tmkd_plugin.TMKDEnhancer or RichKDEnhancer."
        )


def _has_logit_kl(distiller: nn.Module, given_weight: float | None) -> bool:
    """Says whether the distiller has a logit KL of its own, or does not say, so that none may be added."""
    known = [HAS_LOGIT_KL[base.__name__] for base in type(distiller).__mro__ if base.__name__ in HAS_LOGIT_KL]
    has_one = getattr(distiller, "has_logit_kl", known[0] if known else None)
    if has_one is None and given_weight is None:
        warnings.warn(
            f"{type(distiller).__name__} is not one of mdistiller's own distillers and does not say whether it has a KL "
            "divergence of logits (attribute has_logit_kl), so none is added. Pass logit_weight=1.0 to add one, "
            "logit_weight=0.0 to silence this.",
            TmkdNotice,
            stacklevel=3,
        )
    return has_one is not False


def _batch_of(given: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns images, labels and, where a step has several tensors of images, the labels of all of them.

    Forks that give a weak and a strong augmentation (``image_weak``, ``image_strong``) keep the order of the rows.
    """
    images = [value for name, value in given.items() if name.startswith("image") and isinstance(value, Tensor)]
    if not images or "target" not in given:
        raise InputError(
            f"forward_train was called with {', '.join(given) or 'nothing'}, but the enhancer needs the images as image= and "
            "their labels as target=."
        )
    target: Tensor = given["target"]
    return images[0], target, target if len(images) > 1 else None


def _ids_of(given: dict[str, Any], enhancer: Hosted) -> Tensor | None:
    """Returns which training samples a batch holds, where the trainer says so."""
    ids = given.get("index")
    if ids is None and wants_ids(enhancer):
        raise InputError(
            "clip= is ClipAnswers, or CRD's memory bank was asked for: both go by the numbers of the training images, but the "
            "trainer did not call forward_train with index=. Pass the third part of their batches as index=, as their trainer "
            "'crd' does, or give clip= a CLIP that runs on every batch."
        )
    return ids if isinstance(ids, Tensor) else None
