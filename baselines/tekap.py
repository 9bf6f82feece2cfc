"""TeKAP: teacher knowledge augmentation by perturbation, of logits and of features (github.com/mdimtiazh/TeKAP)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from tmkd_plugin.baselines.checks import check_weights, present
from tmkd_plugin.baselines.tekap_features import ContrastSettings, TeKAPFeatures
from tmkd_plugin.contrastive import classes_of
from tmkd_plugin.distiller import Distiller, cross_entropy, total
from tmkd_plugin.errors import InputError, unknown_name
from tmkd_plugin.losses import at_least_float32, kd_loss
from tmkd_plugin.randomness import generator_for
from tmkd_plugin.settings import Setting, check_number

REDUCTIONS = ("sum", "mean")
_PURPOSE = "tekap noise"
_SOURCE = "official code (TeKAP distiller_zoo/Ours_TeKAP_L.py)"
_CRD = "official code (TeKAP train_student.py, as CRD)"


def tekap_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    noise: Tensor | None = None,
    n_augmented: int = 3,
    noise_mix: float = 0.1,
    augmented_weight: float = 0.8,
    *,
    generator: torch.Generator | None = None,
    reduce: str = "sum",
) -> Tensor:
    """KD from a teacher and from N copies of it whose logits are mixed with noise.

    ``KL_T(z_t, z_s) + w · Σ_n KL_T((1-m) z_t + m ε_n, z_s)`` with ``KL_T`` = :func:`kd_loss` (T² included). With the
    default sum, w = 0.8 and N = 3 this weighs 3.4 times as much as KD. Equal to TeKAP's ``Ours_TeKAP_L.py``.

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K).
        temperature: T > 0.
        noise: ε (N, B, K), drawn from N(0, 1); None draws it.
        n_augmented: N, used where the noise is drawn; 0 gives :func:`kd_loss`.
        noise_mix: m in [0, 1].
        augmented_weight: w.
        generator: Where the noise is drawn from, on its own device. Without it the draw is a function of the shape alone,
            the same at every call: in training give one, or the noise.
        reduce: ``"sum"`` over the copies as in the official code, or ``"mean"``, which does not grow with N.

    Returns:
        The loss, a scalar of at least float32.

    Raises:
        InputError: A shape does not fit, or a value is out of its range.
    """
    _check(n_augmented, noise_mix, reduce)
    loss = kd_loss(student_logits, teacher_logits, temperature)
    if noise is None:
        noise = _draw(n_augmented, teacher_logits, generator)
    if noise.ndim != 3 or noise.shape[1:] != teacher_logits.shape:
        raise InputError(
            f"TeKAP's noise must be (N, B, K) where the logits are {tuple(teacher_logits.shape)}, but is "
            f"{tuple(noise.shape)}."
        )
    copies = len(noise)
    if copies == 0:
        return loss
    clean = at_least_float32(teacher_logits)
    augmented = (1 - noise_mix) * clean + noise_mix * noise.to(clean)
    # The mean over N·B rows is the mean over the copies of their losses.
    mean_loss = kd_loss(student_logits.repeat(copies, 1), augmented.flatten(0, 1), temperature)
    return loss + augmented_weight * (mean_loss * copies if reduce == "sum" else mean_loss)


class TeKAP(Distiller):
    """``ce_weight · CE + tekap_weight · tekap_loss``; terms ``"cross_entropy"`` and ``"tekap"``.

    With a ``feature_weight`` there is a third term, ``"tekap_features"``: the feature level on CRD. The official TeKAP-F has
    the weights ce 1, tekap 0, feature 0.8, its TeKAP-F+L has ce 1, tekap 1, feature 0.8.

    The noise of a training step is a function of the seed and the number of steps before it, which ``state_dict`` has.

    Args:
        student: See :class:`Distiller`.
        teacher: See :class:`Distiller`.
        input_size: See :class:`Distiller`.
        temperature: See ``SETTINGS``, as for all that follow.
        ce_weight: Weight of the cross-entropy.
        tekap_weight: Weight of the distillation loss; 0 leaves it out.
        n_augmented: Number of augmented teachers.
        noise_mix: Share of the noise.
        augmented_weight: Weight of an augmented teacher.
        reduce: Sum or mean over the augmented teachers.
        feature_weight: Weight of the feature level; 0 leaves it out.
        projection_width: Of the feature level's contrast, as all that follow but the seed.
        negatives: Number K of negatives.
        contrast_temperature: tau.
        memory_momentum: Of the bank.
        bank_limit: The most training samples for which the exact bank is kept.
        queue_size: Entries of the queue that stands in for it.
        seed: Seed of the noise, and of the feature level's projections and negatives.
    """

    has_logit_kl = True
    LOGIT_KL_WEIGHT = "tekap_weight"
    SETTINGS: ClassVar[dict[str, Setting]] = {
        "temperature": Setting(
            4.0, "official code (TeKAP train_student.py --kd_T)", "T > 0 that softens all distributions"
        ),
        "ce_weight": Setting(0.1, "official code (TeKAP README -r)", "weight of the cross-entropy"),
        "tekap_weight": Setting(0.9, "official code (TeKAP README -a)", "weight of the distillation loss"),
        "n_augmented": Setting(3, _SOURCE, "number of augmented teachers, at least 0"),
        "noise_mix": Setting(0.1, _SOURCE, "share of N(0, 1) noise in an augmented teacher's logits, 0 to 1"),
        "augmented_weight": Setting(
            0.8, _SOURCE, "weight of each augmented teacher (of their mean with reduce='mean')"
        ),
        "reduce": Setting("sum", _SOURCE, "'sum' or 'mean' over the augmented teachers"),
        "feature_weight": Setting(
            0.0, "ours; the official code's TeKAP-F has 0.8", "weight of the feature level, >= 0"
        ),
        "projection_width": Setting(128, _CRD, "width of the feature level's contrast, at least 1"),
        "negatives": Setting(16384, _CRD, "number of negatives of the feature level's contrast, at least 1"),
        "contrast_temperature": Setting(0.07, _CRD, "temperature of the feature level's contrast, >= 0.015"),
        "memory_momentum": Setting(0.5, _CRD, "share of the old entry when the memory bank is updated, 0 to 1"),
        "bank_limit": Setting(
            65536, "ours", "most training samples with the exact memory bank; with more it is a queue"
        ),
        "queue_size": Setting(4096, "ours", "entries of the queue that stands in for the memory bank, at least 2"),
        "seed": Setting(0, "ours", "seed of the noise"),
    }

    step: int

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        input_size: int | None = None,
        temperature: float = 4.0,
        ce_weight: float = 0.1,
        tekap_weight: float = 0.9,
        n_augmented: int = 3,
        noise_mix: float = 0.1,
        augmented_weight: float = 0.8,
        reduce: str = "sum",
        feature_weight: float = 0.0,
        projection_width: int = 128,
        negatives: int = 16384,
        contrast_temperature: float = 0.07,
        memory_momentum: float = 0.5,
        bank_limit: int = 65536,
        queue_size: int = 4096,
        seed: int = 0,
    ) -> None:
        check_number("temperature", temperature, above=0)
        check_weights(
            ce_weight=ce_weight,
            tekap_weight=tekap_weight,
            augmented_weight=augmented_weight,
            feature_weight=feature_weight,
        )
        contrast = ContrastSettings(
            projection_width, negatives, contrast_temperature, memory_momentum, bank_limit, queue_size
        )
        check_number("seed", seed, whole=True)
        _check(n_augmented, noise_mix, reduce)
        super().__init__(student, teacher, input_size=input_size)
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.tekap_weight = tekap_weight
        self.has_logit_kl = tekap_weight > 0
        self.n_augmented = n_augmented
        self.noise_mix = noise_mix
        self.augmented_weight = augmented_weight
        self.reduce = reduce
        self.feature_weight = feature_weight
        self.features: TeKAPFeatures | None = None
        if feature_weight:
            widths = self.student_reader.pooled_width, self.teacher_reader.pooled_width
            self.features = TeKAPFeatures(*widths, contrast, noise_mix=noise_mix, seed=seed)
        self.seed = seed
        self.step = 0

    def forward(self, images: Tensor, labels: Tensor, ids: Tensor | None = None) -> dict[str, Tensor]:
        """See :meth:`Distiller.forward`; a call in training mode counts as a step.

        Args:
            images: (B, 3, H, W), normalised as the networks expect them.
            labels: (B,) integers or (B, K) probabilities.
            ids: (B,) int64, which training samples these are; needed by the feature level once it knows the samples.
        """
        student = self.read_student(images)
        teacher = self.read_teacher(images)
        terms = {"cross_entropy": self.ce_weight * cross_entropy(student.logits, labels)}
        if self.tekap_weight:
            terms["tekap"] = self.tekap_weight * tekap_loss(
                student.logits,
                teacher.logits,
                self.temperature,
                n_augmented=self.n_augmented,
                noise_mix=self.noise_mix,
                augmented_weight=self.augmented_weight,
                generator=generator_for(self.seed, _PURPOSE, self.step),
                reduce=self.reduce,
            )
        if self.features is not None:
            of_student = present(student.pooled_features, "the student's pooled features")
            of_teacher = present(teacher.pooled_features, "the teacher's pooled features")
            batch, noise = self.features.draw(classes_of(labels), ids, of_teacher, self.seed, self.step)
            terms["tekap_features"] = self.feature_weight * self.features(of_student, of_teacher, batch, noise)
        if self.training:
            self.step += 1
        return total(student.logits, terms)

    def get_extra_state(self) -> Tensor:
        """Returns the number of steps so far, a 0-d int64 tensor, for ``state_dict``."""
        return torch.tensor(self.step)

    def set_extra_state(self, state: Tensor) -> None:
        """Takes the number of steps from ``state_dict``."""
        self.step = int(state)


def _draw(copies: int, logits: Tensor, generator: torch.Generator | None) -> Tensor:
    generator = generator or generator_for(0, _PURPOSE)
    # Always float32 on the generator's device: the same draws whatever the logits' type and device.
    return torch.randn(copies, *logits.shape, generator=generator, device=generator.device, dtype=torch.float32)


def _check(n_augmented: int, noise_mix: float, reduce: str) -> None:
    check_number("n_augmented", n_augmented, at_least=0, whole=True)
    check_number("noise_mix", noise_mix, at_least=0, at_most=1)
    if reduce not in REDUCTIONS:
        raise unknown_name("reduce", reduce, REDUCTIONS)
