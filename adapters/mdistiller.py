"""TMKD inside mdistiller (megvii-research) and its forks: their own trainer trains the enhanced distiller.

Nothing of mdistiller is imported: a distiller is known by its contract, a module with ``student``, ``teacher``,
``forward_train(image, target, **kwargs) -> (logits, losses_dict)``, ``get_learnable_parameters`` and
``get_extra_parameters``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tmkd_plugin.adapters.hosted import HostedEnhancer
from tmkd_plugin.errors import InputError, TmkdNotice
from tmkd_plugin.text_encoder import DEFAULT_TEXT_MODEL

HAS_LOGIT_KL = {"KD": True, "DKD": True} | dict.fromkeys(
    ("AT", "CRD", "FitNet", "KDSVD", "NST", "OFD", "PKT", "RKD", "ReviewKD", "SP", "VID"), False
)
"""Whether a distiller of the repository has a KL divergence of logits of its own, by the name of its class."""


def enhance(
    distiller: nn.Module,
    class_names: Sequence[str],
    *,
    text: Any = DEFAULT_TEXT_MODEL,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    add_to: str | None = None,
    enabled: bool = True,
    **settings: Any,
) -> nn.Module:
    """Gives an mdistiller ``Distiller`` a better teacher; call it before ``DataParallel`` and the trainer.

    The same object comes back, as an instance of a subclass of its class: its attributes, its checkpoint keys and what it
    does at test time stay; the keys ``tmkd.*`` and the terms of TMKD in ``losses_dict`` are new.

    Args:
        distiller: The instance that mdistiller's ``tools/train.py`` makes.
        class_names: The K class names in the order of the labels, in words.
        text: Where the text embeddings come from; see :class:`~tmkd_plugin.TMKDEnhancer`.
        mean: Mean of the images' normalisation, three floats for pixels in [0, 1]; None: images are in [0, 1].
        std: Standard deviation, likewise.
        seed: The initialisation of the heads and the noise are functions of it.
        add_to: Name of the term in ``losses_dict`` to which TMKD's terms are added, for trainers that read their terms by
            name (the DOT trainers: ``"loss_kd"``); None: each keeps its own name.
        enabled: False gives the distiller back untouched.
        **settings: More arguments of :class:`~tmkd_plugin.TMKDEnhancer`: ``views``, ``input_size``, weights, temperatures.

    Returns:
        The distiller.

    Raises:
        InputError: It is no distiller of that contract, or an argument can't be used.
    """
    if not enabled:
        return distiller
    _check(distiller)
    if settings.get("logit_weight") is None:
        settings["logit_weight"] = _logit_weight(distiller)
    host: Any = distiller
    networks = {"student": host.student, "teacher": host.teacher}
    host.tmkd = HostedEnhancer(
        _no_step, class_names, text=text, mean=mean, std=std, seed=seed, **networks, **settings
    ).train(host.training)
    host.tmkd_add_to = add_to
    # `isinstance` of the original class holds.
    host.__class__ = type(f"{type(host).__name__}WithTMKD", (EnhancedDistiller, type(host)), {"__module__": __name__})
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
    """What :func:`enhance` puts in front of a distiller's class; ``tmkd`` is the :class:`~tmkd_plugin.TMKDEnhancer`."""

    tmkd: HostedEnhancer
    tmkd_add_to: str | None

    def forward_train(self, *args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, Any]]:
        """Runs the distiller's own step with the enhanced teacher and adds TMKD's terms.

        Args:
            *args: Image (B, 3, H, W) and target (B,), where they are not given by name.
            **kwargs: What the trainer gives: image, target, epoch, index, contrastive_index, ...

        Returns:
            What the distiller returned, with TMKD's weighted terms in the dict.
        """
        given = dict(zip(("image", "target"), args, strict=False)) | kwargs
        image, target, teacher_labels = _batch_of(given)
        own_step = super().forward_train
        returned: list[Any] = []

        def step(images: Tensor, labels: Tensor) -> Any:
            returned.append(own_step(**given))
            return returned[0]

        out = self.tmkd.around(step, image, target, teacher_labels=teacher_labels)
        logits, terms = returned[0]
        added = {name: value for name, value in out.items() if name not in ("loss", "output", *terms)}
        return logits, self._with(dict(terms), added)

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        """Returns the distiller's own parameters to learn and those of the heads."""
        return [*super().get_learnable_parameters(), *self._head_parameters()]

    def get_extra_parameters(self) -> int:
        """Counts what is trained beside the student, the heads included."""
        return super().get_extra_parameters() + sum(parameter.numel() for parameter in self._head_parameters())

    def _head_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.tmkd.heads.parameters() if parameter.requires_grad]

    def _with(self, terms: dict[str, Any], added: dict[str, Tensor]) -> dict[str, Any]:
        if self.tmkd_add_to is None or not added:
            return terms | added
        if self.tmkd_add_to not in terms:
            raise InputError(
                f"add_to='{self.tmkd_add_to}', but the terms of {type(self).__name__} are {', '.join(terms)}. Name one of them."
            )
        terms[self.tmkd_add_to] = sum(added.values(), start=terms[self.tmkd_add_to])
        return terms

    def _replicate_for_data_parallel(self) -> Any:
        raise InputError(
            "TMKD runs on one GPU for each process, but DataParallel was about to spread the distiller over several. Set "
            "CUDA_VISIBLE_DEVICES to one of them, or wrap it with DataParallel(distiller, device_ids=[0])."
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
            "Another kind of distiller goes into tmkd_plugin.TMKDEnhancer."
        )


def _logit_weight(distiller: nn.Module) -> float:
    """Returns 1 where Eq 8 has to be added, 0 where the distiller has a logit KL or does not say."""
    known = [HAS_LOGIT_KL[base.__name__] for base in type(distiller).__mro__ if base.__name__ in HAS_LOGIT_KL]
    has_one = getattr(distiller, "has_logit_kl", known[0] if known else None)
    if has_one is None:
        warnings.warn(
            f"{type(distiller).__name__} is not one of mdistiller's own distillers and does not say whether it has a KL "
            "divergence of logits (attribute has_logit_kl), so none is added. Pass logit_weight=1.0 to add one, "
            "logit_weight=0.0 to silence this.",
            TmkdNotice,
            stacklevel=3,
        )
    return 1.0 if has_one is False else 0.0


def _batch_of(given: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns images, labels and, where a step has several tensors of images, the labels of all of them.

    Forks that give a weak and a strong augmentation (``image_weak``, ``image_strong``) keep the order of the rows.
    """
    images = [value for name, value in given.items() if name.startswith("image") and isinstance(value, Tensor)]
    if not images or "target" not in given:
        raise InputError(
            f"forward_train was called with {', '.join(given) or 'nothing'}, but TMKD needs the images as image= and their "
            "labels as target=."
        )
    target: Tensor = given["target"]
    return images[0], target, target if len(images) > 1 else None


def _no_step(*_: Any, **__: Any) -> Any:
    raise InputError(
        "The enhancer inside an mdistiller distiller runs through the distiller: call forward_train of that."
    )
