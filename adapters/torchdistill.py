"""TMKD or RichKD inside torchdistill: a better teacher for its distillation boxes, and for loops with a ``ForwardHookManager``.

Hooks by module path catch what inner modules of the teacher say. They see no labels, so the teacher runs once for each view,
what the hooks caught of each is kept, and the I/O dict gets the fused tensors when the labels arrive. The enhancer's own
terms are the registered mid-level loss ``TMKDLoss``, which a YAML file may name and weigh.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from tmkd_plugin.adapters.hosted import LATE_LABELS, HostStep, LateLabels, build
from tmkd_plugin.errors import InputError

try:
    from torchdistill.common.constant import SELF_MODULE_PATH
    from torchdistill.common.module_util import check_if_wrapped
    from torchdistill.core.distillation import DistillationBox
    from torchdistill.core.forward_hook import ForwardHookManager
    from torchdistill.core.interfaces.pre_epoch_proc import default_pre_epoch_process_with_teacher
    from torchdistill.core.interfaces.registry import register_pre_epoch_proc_func
    from torchdistill.losses.registry import register_mid_level_loss
except ImportError as error:
    raise ImportError(
        f"torchdistill can't be imported ({error}). Install it: pip install 'tmkd-plugin[torchdistill]'."
    ) from error

NAME = "tmkd"
"""Our term in a criterion without one gets this name, and so does our I/O path, whichever the enhancer is."""

PRE_EPOCH = "tmkd_pre_epoch_process"
"""Key under which :func:`enhance_before_the_first_epoch` is registered."""


def enhance(
    host: Any,
    class_names: Sequence[str],
    *,
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
    enhancer: str = "tmkd",
    text: Any = None,
    clip: Any = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    enabled: bool = True,
    **settings: Any,
) -> Any:
    """Gives a distillation box a better teacher; call it right after ``get_distillation_box``.

    The same box comes back. Its teacher's output and I/O dict are the fused ones from then on. The heads are a child of
    the student (``student.tmkd``, ``student.richkd``): the box's optimiser trains them and ``save_ckpt`` saves them.

    For a loop of one's own, a ``ForwardHookManager`` with hooks on the teacher takes the box's place: its
    ``pop_io_dict(labels)`` gives the fused tensors, ``manager.enhancer.late_terms(labels)`` the enhancer's own terms, and
    ``manager.enhancer.trainable_parameters()`` what the optimiser gets besides.

    Args:
        host: The box, whose teacher is frozen (``requires_grad: False``), or the hook manager.
        class_names: The K class names in the order of the labels, in words.
        student: The student, for a hook manager.
        teacher: The teacher, for a hook manager.
        enhancer: ``"tmkd"`` or ``"richkd"``.
        text: Of TMKD: where the text embeddings come from; see :class:`~tmkd_plugin.TMKDEnhancer`. None: its default.
        clip: Of RichKD: the CLIP to run on every batch; see
            :class:`~tmkd_plugin.RichKDEnhancer`. None: its default.
        mean: Mean of the images' normalisation, three floats for pixels in [0, 1]; None: images are in [0, 1].
        std: Standard deviation, likewise.
        seed: The initialisation of the heads and all draws are functions of it.
        enabled: False gives the host back untouched.
        **settings: More arguments of the enhancer: ``input_size``, weights, temperatures, TMKD's ``views``.

    Returns:
        The host.

    Raises:
        InputError: It is no such host, runs on several devices, trains its teacher, or an argument can't be used.
    """
    if not enabled:
        return host
    is_box = not isinstance(host, ForwardHookManager)
    has_logit_kl = None
    if is_box:
        _check_box(host)
        student, teacher = host.org_student_model, host.org_teacher_model
        has_logit_kl = _has_logit_kl(host.criterion)
    elif isinstance(host, EnhancedHookManager) or student is None or teacher is None:
        raise InputError("A ForwardHookManager is enhanced once, with student= and teacher=.")
    made = build(
        LATE_LABELS,
        enhancer,
        HostStep("The enhancer runs through its host: forward_process of the box, or the hook manager.", has_logit_kl),
        class_names,
        text=text,
        clip=clip,
        without_ids="torchdistill",
        student=student,
        teacher=teacher,
        mean=mean,
        std=std,
        seed=seed,
        **settings,
    )
    if is_box:
        _put_into_box(host, enhancer, made)
    else:
        _put_into_manager(host, enhancer, made)
    return host


@register_mid_level_loss(key="TMKDLoss")
class TMKDLoss(nn.Module):
    """The own terms of TMKD or RichKD (a logit KL where none is there, feature KL, contrast), summed up, of an enhanced box.

    In YAML, among the ``sub_terms`` of ``WeightedSumLoss``: ``tmkd: {criterion: {key: TMKDLoss, kwargs: {}}, weight: 1.0}``.
    Without it, :func:`enhance` adds it with weight 1.

    Args:
        **options: Arguments of :func:`enhance`, for :func:`enhance_before_the_first_epoch`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, student_io_dict: Any, teacher_io_dict: Any, targets: Tensor, *_: Any, **__: Any) -> Tensor:
        """Computes the terms of the step.

        Args:
            student_io_dict: Not used; the student's tensors were recorded in its forward pass.
            teacher_io_dict: The one that the enhanced box made.
            targets: (B,) integers or (B, K) probabilities.

        Raises:
            InputError: The box is not enhanced.
        """
        if NAME not in teacher_io_dict:
            raise InputError(
                "TMKDLoss is among the terms of the criterion, but the box is not enhanced. Call "
                "tmkd_plugin.adapters.torchdistill.enhance(box, class_names=...) right after get_distillation_box(...), or "
                f"set `pre_epoch_process: {PRE_EPOCH}` in the training configuration."
            )
        enhancer: LateLabels = teacher_io_dict[NAME]["output"]
        terms = list(enhancer.late_terms(targets).values())
        return sum(terms, start=targets.new_zeros(()).float())


def enhance_before_the_first_epoch(self: Any, epoch: int | None = None, **kwargs: Any) -> None:
    """Enhances a box from YAML alone (``pre_epoch_process: tmkd_pre_epoch_process``), with the ``kwargs`` of its TMKDLoss."""
    if not _is_enhanced(self):
        options: dict[str, Any] = next(
            (term.options for term in _terms(self.criterion) if isinstance(term, TMKDLoss)), {}
        )
        if "class_names" not in options:
            raise InputError(
                "Give TMKDLoss in the criterion `kwargs` with class_names, and mean and std of the images."
            )
        enhance(self, **options)
    default_pre_epoch_process_with_teacher(self, epoch=epoch, **kwargs)


register_pre_epoch_proc_func(key=PRE_EPOCH)(enhance_before_the_first_epoch)


class EnhancedHookManager(ForwardHookManager):  # type: ignore[misc]  # torchdistill has no types
    """What :func:`enhance` makes of a ``ForwardHookManager``; ``enhancer`` (also ``tmkd``, ``richkd``) holds the heads."""

    enhancer: LateLabels
    _caught_before: dict[str, Any]

    def pop_io_dict(self, labels: Tensor | None = None) -> dict[str, Any]:
        """Pops the I/O dict; what the teacher's hooks caught is fused, and so is its output, at the path ``"."``.

        Args:
            labels: (B,) integers or (B, K) probabilities; not needed where the teacher did not run.
        """
        caught = _merged(self.__dict__.pop("_caught_before", {}), super().pop_io_dict())
        if not self.enhancer.has_shown:
            return caught
        if labels is None:
            raise InputError(f"{self.enhancer.TITLE} needs the labels: call pop_io_dict(labels).")
        output, fused = self.enhancer.fused(labels)
        return _merged(caught, {**fused, SELF_MODULE_PATH: {"output": output}})

    def show(self, own_forward: Callable[..., Any], images: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Runs the teacher on each view and keeps what the hooks caught of each; answers with the RGB view's output."""
        own_pop = super().pop_io_dict
        before = own_pop()
        per_view = self.enhancer.show(images, run=lambda view: (own_forward(view, *args, **kwargs), own_pop()))
        self._caught_before = before
        return per_view.returned[self.enhancer.multi_view.rgb][0]


def _put_into_manager(manager: Any, name: str, enhancer: LateLabels) -> None:
    manager.pop_io_dict()  # what the probe left
    manager.__class__ = EnhancedHookManager
    manager.enhancer = enhancer
    setattr(manager, name, enhancer)
    teacher: Any = enhancer.teacher
    teacher.forward = functools.partial(manager.show, teacher.forward)


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return {path: {**first.get(path, {}), **second.get(path, {})} for path in {**first, **second}}


def _put_into_box(box: Any, name: str, enhancer: LateLabels) -> None:
    for io_dict in (box.teacher_io_dict, box.student_io_dict):  # what the probe left
        for caught in io_dict.values():
            caught.clear()
    student = box.org_student_model
    student.add_module(name, enhancer.train(student.training))
    # In the first group, and not as a group of their own: the scheduler has counted the groups already.
    box.optimizer.param_groups[0]["params"].extend(enhancer.trainable_parameters())
    _answer_for_the_teacher(box, enhancer)
    _add_loss_to_each_stage(box)


def _answer_for_the_teacher(box: Any, enhancer: LateLabels) -> None:
    own = box.get_teacher_output

    def get_teacher_output(sample_batch: Tensor, targets: Tensor, supp_dict: Any = None, **kwargs: Any) -> Any:
        enhancer.show(sample_batch, run=lambda view: own(view, targets, supp_dict, **kwargs))
        outputs, io_dict = enhancer.fused(targets)
        return outputs, {**io_dict, NAME: {"output": enhancer}}

    box.get_teacher_output = get_teacher_output


def _add_loss_to_each_stage(box: Any) -> None:
    own = box.setup_loss

    def setup_loss(train_config: Any) -> None:
        own(train_config)
        _add_loss(box.criterion)

    _add_loss(box.criterion)
    box.setup_loss = setup_loss


def _add_loss(criterion: Any) -> None:
    if not any(isinstance(term, TMKDLoss) for term in _terms(criterion)):
        criterion.term_dict[NAME] = TMKDLoss(), 1.0


def _check_box(box: Any) -> None:
    if not isinstance(box, DistillationBox):
        raise InputError(f"Expected what torchdistill's get_distillation_box returns, but got {type(box).__name__}.")
    if _is_enhanced(box):
        raise InputError("This box is enhanced already; call enhance() once.")
    models = (box.org_teacher_model, box.org_student_model, box.teacher_model, box.student_model)
    if any(map(_is_spread, models)):
        raise InputError(
            "An enhancer inside torchdistill runs on one device, but a model is wrapped for several. Leave `wrapper` out of "
            "the configuration of teacher and student."
        )
    if box.teacher_updatable:
        raise InputError(
            "The box trains its teacher, but an enhancer needs a frozen one. Set `requires_grad: False` under `teacher` in the "
            "training configuration."
        )
    if not isinstance(getattr(box.criterion, "term_dict", None), dict):
        raise InputError(
            f"The criterion ({type(box.criterion).__name__}) has no `sub_terms` to which the enhancer's term could be added. "
            "Use WeightedSumLoss."
        )


def _is_enhanced(box: Any) -> bool:
    return any(isinstance(child, LateLabels) for child in box.org_student_model.children())


def _is_spread(model: Any) -> bool:
    if isinstance(model, nn.DataParallel):  # over one device it is the bare model
        return len(model.device_ids) > 1
    return bool(check_if_wrapped(model))


def _terms(criterion: Any) -> list[nn.Module]:
    return [term for term, _ in criterion.term_dict.values()]


def _has_logit_kl(criterion: Any) -> bool:
    parts = [part for term in _terms(criterion) for part in term.modules()]
    return any(isinstance(part, nn.KLDivLoss) or type(part).__name__ == "SKDInstanceLoss" for part in parts)
