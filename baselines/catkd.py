"""CAT-KD: class attention transfer, by class activation maps (Guo et al., CVPR 2023)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmkd_plugin.baselines.checks import check_weights, present
from tmkd_plugin.baselines.tensors import unit_vectors, without_autocast
from tmkd_plugin.distiller import Distiller, cross_entropy, total
from tmkd_plugin.errors import InputError
from tmkd_plugin.losses import at_least_float32
from tmkd_plugin.model_output import ModelOutput, OutputReader
from tmkd_plugin.settings import Setting, check_number


def class_activation_maps(feature_map: Tensor, classifier_weight: Tensor) -> Tensor:
    """Applies the classifier to every cell of the last feature map: ``CAM_k(x, y) = Σ_c W_kc f_c(x, y)``.

    The classifier's bias stays out, as in the official conversion: the spatial mean of the maps is the logits minus the
    bias.

    Args:
        feature_map: (B, C, h, w), the tensor that enters global pooling.
        classifier_weight: (K, C).

    Returns:
        The maps (B, K, h, w), of at least float32.

    Raises:
        InputError: The ranks are others, or the channel counts differ.
    """
    if feature_map.ndim != 4 or classifier_weight.ndim != 2 or feature_map.shape[1] != classifier_weight.shape[1]:
        raise InputError(
            "Class activation maps need a feature map (B, C, h, w) and a classifier weight (K, C) with the same C, but "
            f"they are {tuple(feature_map.shape)} and {tuple(classifier_weight.shape)}."
        )
    with without_autocast(feature_map):
        return torch.einsum("kc,bchw->bkhw", at_least_float32(classifier_weight), at_least_float32(feature_map))


def cat_loss(
    student_cams: Tensor,
    teacher_cams: Tensor,
    resolution: int = 2,
    normalize: bool = True,
    classes: Tensor | None = None,
) -> Tensor:
    """Mean squared difference of pooled class activation maps.

    Both sides are average-pooled to R x R, each (sample, class) plane is divided by its L2 norm if asked for, and the
    squared differences are averaged over samples, classes and cells. Equal to CAT-KD's ``distillers/CAT_KD.py``, gradient
    included, except at a normalised plane that is all zero: it passes no gradient (theirs multiplies it by 1e12).

    Args:
        student_cams: (B, K, h, w).
        teacher_cams: (B, K, h', w'), constants.
        resolution: R; a map smaller than R is repeated.
        normalize: Divide each plane by its L2 norm.
        classes: (B, K) bool, the planes that count; None for all. See :func:`select_classes`.

    Returns:
        The loss, a scalar of at least float32.

    Raises:
        InputError: The shapes don't fit together, or R is not a whole number of at least 1.
    """
    check_number("resolution", resolution, at_least=1, whole=True)
    if student_cams.ndim != 4 or teacher_cams.ndim != 4 or student_cams.shape[:2] != teacher_cams.shape[:2]:
        raise InputError(
            "CAT-KD compares class activation maps (B, K, h, w) with the same samples and classes, but the student's "
            f"are {tuple(student_cams.shape)} and the teacher's {tuple(teacher_cams.shape)}."
        )
    student = F.adaptive_avg_pool2d(at_least_float32(student_cams), resolution)
    teacher = F.adaptive_avg_pool2d(at_least_float32(teacher_cams.detach()), resolution)
    if normalize:
        student, teacher = unit_vectors(student, dim=(2, 3)), unit_vectors(teacher, dim=(2, 3))
    differences = (student - teacher).square()
    return differences.mean() if classes is None else differences[classes].mean()


def binarize(cams: Tensor) -> Tensor:
    """Sets each cell of maps (B, K, h, w) to 1 where it is above the mean absolute value of its plane, else to 0."""
    return (cams > cams.abs().mean(dim=(2, 3), keepdim=True)).to(cams.dtype)


def select_classes(teacher_logits: Tensor, cams_nums: int, strategy: int) -> Tensor:
    """Chooses the classes whose maps are compared, with the official code's counts, which are off by one.

    Strategy 0 takes the classes above the n-th largest logit: the n-1 best. Strategy 1 takes those not above the logit
    at position K-1-n of the descending order: the n+1 worst (the official code fixes K at 100). If equal logits make the
    number of planes no multiple of B, all classes are taken, as there.

    Args:
        teacher_logits: (B, K).
        cams_nums: n; 2 to K for strategy 0, 0 to K-1 for strategy 1.
        strategy: 0 for the best classes, 1 for the worst.

    Returns:
        (B, K) bool.

    Raises:
        InputError: The strategy is another, or n leaves no class.
    """
    num_classes = teacher_logits.shape[1]
    if strategy not in (0, 1):
        raise InputError(f"strategy must be 0 (the best classes) or 1 (the worst), but is {strategy!r}.")
    lowest, highest = (2, num_classes) if strategy == 0 else (0, num_classes - 1)
    check_number(
        f"cams_nums, for strategy {strategy} and {num_classes} classes,",
        cams_nums,
        at_least=lowest,
        at_most=highest,
        whole=True,
    )
    position = cams_nums - 1 if strategy == 0 else num_classes - 1 - cams_nums
    threshold = teacher_logits.sort(dim=1, descending=True).values[:, position, None]
    selected = teacher_logits > threshold if strategy == 0 else teacher_logits <= threshold
    count = int(selected.sum())
    return selected if count and count % len(selected) == 0 else torch.ones_like(selected)


class CATKD(Distiller):
    """``ce_weight · CE + cat_weight · cat_loss``; terms ``"cross_entropy"`` and ``"cat"``.

    The maps come from the classifier's weight, so any network works whose logits are its classifier on the mean of its
    last feature map; others are refused by name. For published pairs ``catkd_pairs.published_settings`` has the values.

    Args:
        student: See :class:`Distiller`.
        teacher: See :class:`Distiller`.
        input_size: See :class:`Distiller`.
        ce_weight: See ``SETTINGS``, as for all that follow.
        cat_weight: Weight of the map loss.
        cam_resolution: Side to which the maps are pooled.
        normalize: Whether planes are normalised.
        binarize: Whether the teacher's maps are binarised.
        only_cat: Whether the cross-entropy is left out.
        cams_nums: How many classes are compared.
        strategy: Which classes are compared.
        drop_bias: Whether the student goes without its classifier's bias.

    Raises:
        InputError: A network has no class activation maps, or a value is out of its range.
    """

    SETTINGS: ClassVar[dict[str, Setting]] = {
        "ce_weight": Setting(1.0, "official code (CAT-KD engine/cfg.py)", "weight of the cross-entropy"),
        "cat_weight": Setting(
            5.0, "paper (TMKD)", "weight of the map loss; tuned for each pair in CAT-KD's configs (published_settings)"
        ),
        "cam_resolution": Setting(2, "official code (CAT-KD engine/cfg.py)", "maps are average-pooled to this side"),
        "normalize": Setting(
            None,
            "ours",
            "divide each plane by its L2 norm; None: if student and teacher are of different architectures",
        ),
        "binarize": Setting(False, "official code (CAT-KD engine/cfg.py)", "binarise the teacher's maps"),
        "only_cat": Setting(
            False, "official code (CAT-KD engine/cfg.py)", "leave the cross-entropy out (the paper's CAT)"
        ),
        "cams_nums": Setting(
            None, "official code (CAT-KD engine/cfg.py)", "compare some classes only; see select_classes"
        ),
        "strategy": Setting(
            0, "official code (CAT-KD engine/cfg.py)", "with cams_nums: 0 the best classes, 1 the worst"
        ),
        "drop_bias": Setting(
            False,
            "ours",
            "set the student's classifier bias to 0 for good, and choose classes by the teacher's logits without bias, "
            "as the official conversion does",
        ),
    }

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        input_size: int | None = None,
        ce_weight: float = 1.0,
        cat_weight: float = 5.0,
        cam_resolution: int = 2,
        normalize: bool | None = None,
        binarize: bool = False,
        only_cat: bool = False,
        cams_nums: int | None = None,
        strategy: int = 0,
        drop_bias: bool = False,
    ) -> None:
        check_weights(ce_weight=ce_weight, cat_weight=cat_weight)
        check_number("cam_resolution", cam_resolution, at_least=1, whole=True)
        super().__init__(student, teacher, input_size=input_size)
        _, student_bias = self.student_reader.class_map_weights()
        self.teacher_reader.class_map_weights()
        if cams_nums is not None:
            select_classes(torch.arange(self.teacher_reader.num_classes).unsqueeze(0), cams_nums, strategy)
        if drop_bias and student_bias is not None:
            student_bias.detach().zero_()
            student_bias.requires_grad_(False)
        self.ce_weight = ce_weight
        self.cat_weight = cat_weight
        self.cam_resolution = cam_resolution
        self.normalize = _architecture(student) is not _architecture(teacher) if normalize is None else normalize
        self.binarize = binarize
        self.only_cat = only_cat
        self.cams_nums = cams_nums
        self.strategy = strategy
        self.drop_bias = drop_bias

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """See :meth:`Distiller.forward`."""
        student = self.read_student(images)
        teacher = self.read_teacher(images)
        student_cams = _maps_of(student, self.student_reader, "the student's last feature map")
        teacher_cams = _maps_of(teacher, self.teacher_reader, "the teacher's last feature map")
        classes = None
        if self.cams_nums is not None:
            scores = teacher_cams.mean(dim=(2, 3)) if self.drop_bias else teacher.logits
            classes = select_classes(scores, self.cams_nums, self.strategy)
        if self.binarize:
            teacher_cams = binarize(teacher_cams)
        maps = cat_loss(student_cams, teacher_cams, self.cam_resolution, self.normalize, classes)
        terms = {} if self.only_cat else {"cross_entropy": self.ce_weight * cross_entropy(student.logits, labels)}
        terms["cat"] = self.cat_weight * maps
        return total(student.logits, terms)


def _maps_of(output: ModelOutput, reader: OutputReader, what: str) -> Tensor:
    weight, _ = reader.class_map_weights()
    return class_activation_maps(present(output.feature_map, what), weight)


def _architecture(network: nn.Module) -> type:
    return type(getattr(network, "_orig_mod", network))
