"""TMKD or RichKD inside timm's training tasks (``timm.task``): logit, feature and token distillation."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tmkd_plugin.adapters.hosted import HOSTED, Hosted, HostStep, build
from tmkd_plugin.errors import InputError

try:
    from timm.task import FeatureDistillationTask, TrainingTask

    if not hasattr(TrainingTask, "get_checkpoint_state"):
        raise ImportError("timm.task is older than timm 1.0.27")
except ImportError as error:
    raise ImportError(
        f"timm's training tasks can't be used ({error}). Install a newer timm: pip install 'tmkd-plugin[timm]'."
    ) from error

if TYPE_CHECKING:

    class _Task(nn.Module):
        """What timm's ``TrainingTask`` is to a type checker."""

        def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]: ...
        def load_task_state(
            self, state: Any, strict: bool = True, module: nn.Module | None = None, ema: bool = False
        ) -> None: ...
        def get_clip_parameters(self, exclude_head: bool = False) -> Any: ...
        def setup_ema(self, *args: Any, **kwargs: Any) -> Any: ...
else:
    _Task = TrainingTask

_WEIGHTS = {"task_loss": "task_loss_weight", "kd_loss": "distill_loss_weight", "distill_loss": "distill_loss_weight"}


def enhance(
    task: nn.Module,
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
    """Gives a distillation task a better teacher; call it before the optimiser is made, before EMA, compile and DDP.

    The same task comes back, as an instance of a subclass of its class. Its ``get_trainable_module()`` holds student and
    heads; checkpoints keep the student's keys, and the heads are in ``task_state``.

    Args:
        task: A ``LogitDistillationTask``, ``FeatureDistillationTask`` or ``TokenDistillationTask``.
        class_names: The K class names in the order of the labels, in words.
        enhancer: ``"tmkd"`` or ``"richkd"``.
        text: Of TMKD: where the text embeddings come from; see :class:`~tmkd_plugin.TMKDEnhancer`. None: its default.
        clip: Of RichKD: the CLIP to run on every batch; see
            :class:`~tmkd_plugin.RichKDEnhancer`. None: its default.
        mean: Mean of the normalisation of the images that the task gets; None: that of the student's ``pretrained_cfg``.
        std: Standard deviation, likewise. The teacher's own normalisation is the task's affair.
        seed: The initialisation of the heads and all draws are functions of it.
        enabled: False gives the task back untouched.
        **settings: More arguments of the enhancer: ``input_size``, weights, temperatures, TMKD's ``views``.

    Returns:
        The task. Its ``forward(input, target)`` returns ``loss``, ``output`` and the *weighted* terms, which add up.

    Raises:
        InputError: It is no distillation task, is compiled, distributed or enhanced already, or an argument can't be used.
    """
    if not enabled:
        return task
    _check(task)
    host: Any = task
    has_logit_kl = getattr(host, "has_logit_kl", not isinstance(host, FeatureDistillationTask))
    step = HostStep("The enhancer inside a timm task runs through the task: call task(input, target).", has_logit_kl)
    teacher_mean, teacher_std = _normalisation_of_the_teacher(host, mean, std)
    made = build(
        HOSTED,
        enhancer,
        step,
        class_names,
        text=text,
        clip=clip,
        without_ids="a task of timm",
        student=host.get_eval_model(),
        teacher=host.teacher.model,
        mean=teacher_mean,
        std=teacher_std,
        seed=seed,
        **settings,
    ).train(task.training)
    # A child of the trainable module alone, so that the heads are in one place.
    host.__dict__[enhancer] = made
    host.enhanced_by = enhancer
    host.trainable_module = TrainableModule(host.trainable_module, enhancer, made)
    host.__class__ = _enhanced_class(host.__class__, made.TITLE)
    return task


class TrainableModule(nn.Module):
    """What a task trains, and the heads: one module for the optimiser and for DistributedDataParallel.

    The attribute's name ``module`` lets timm unwrap it as it unwraps DistributedDataParallel.

    Args:
        module: The task's own trainable module.
        name: Name of the child that holds the heads.
        enhancer: That child.
    """

    def __init__(self, module: nn.Module, name: str, enhancer: Hosted) -> None:
        super().__init__()
        self.module = module
        self.add_module(name, enhancer)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the task's own trainable module."""
        return self.module(*args, **kwargs)

    @property
    def student(self) -> nn.Module:
        """The student inside the trainable module of feature distillation."""
        own: Any = self.module
        student: nn.Module = own.student
        return student

    def no_weight_decay(self) -> set[str]:
        """Names the student's parameters without weight decay, for timm's optimiser factory."""
        own: Any = getattr(self.module, "no_weight_decay", set)
        return {f"module.{name}" for name in own()}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int] | dict[str, Any]:
        """Sorts parameters into layers, for timm's layer decay; the heads go with the last layer."""
        if not hasattr(self.module, "group_matcher"):
            return {}
        from timm.models import group_parameters

        own: Any = self.module
        layers = group_parameters(own, own.group_matcher(coarse=coarse), reverse=True)
        last = max(layers.values(), default=0)
        return lambda name: int(layers.get(name.removeprefix("module."), last))


class EnhancedTask(_Task):
    """What :func:`enhance` puts in front of a task's class; its attribute ``tmkd`` or ``richkd`` is the enhancer."""

    enhanced_by: str
    trainable_module: Any
    teacher: Any

    @property
    def enhancer(self) -> Hosted:
        """The enhancer, which holds the heads."""
        enhancer: Hosted = self.__dict__[self.enhanced_by]
        return enhancer

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Runs the task's own step with the enhanced teacher and adds the enhancer's terms.

        Args:
            input: (B, 3, H, W), normalised for the student.
            target: (B,) integers or (B, K) probabilities.

        Returns:
            ``loss``, ``output`` and every weighted term; the terms add up to the loss.
        """
        own_step = super().forward

        def step() -> dict[str, Tensor]:
            return _weighted(self, own_step(input, target))

        # With another normalisation the teacher sees other tensors of the same images in the same order.
        teacher_labels = target if _renormalises(self) else None
        return self.enhancer.enhanced_step(step, input, target, teacher_labels=teacher_labels)

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """Returns the task's own state and, except of the moving average, which has none, the heads'."""
        state = super().get_task_state(module=module, ema=ema)
        return state if ema else {**state, self.enhanced_by: self.enhancer.state_dict()}

    def load_task_state(
        self, state: dict[str, Any] | None, strict: bool = True, module: nn.Module | None = None, ema: bool = False
    ) -> None:
        """Loads what :meth:`get_task_state` returned; without the heads' state they stay as they are, with a notice."""
        super().load_task_state(state, strict=strict, module=module, ema=ema)
        if not ema:
            self.enhancer.load_state_dict((state or {}).get(self.enhanced_by, {}), strict=strict)

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """Returns the parameters whose gradient is clipped: the task's own and the heads'."""
        with self._bare():
            own = list(super().get_clip_parameters(exclude_head=exclude_head))
        return own + self.enhancer.trainable_parameters()

    def setup_ema(self, *args: Any, **kwargs: Any) -> Any:
        """Makes the moving average of what the task itself trains; the heads need none."""
        with self._bare():
            return super().setup_ema(*args, **kwargs)

    def compile(self, backend: str = "inductor", mode: str | None = None, **kwargs: Any) -> Any:
        """Compiles the trainable module as the task does, and the teacher in place, so that it can be answered for."""
        teacher = self.teacher.model
        compiled = super().compile(backend=backend, mode=mode, **kwargs)
        self.teacher.model, self.teacher._compiled_forward_features = teacher, None
        teacher.compile(backend=backend, mode=mode, **kwargs)
        return compiled

    @contextlib.contextmanager
    def _bare(self) -> Iterator[None]:
        """Lets the task see its own trainable module, without heads, inside the block."""
        whole = self.trainable_module
        bare = whole
        while not isinstance(bare, TrainableModule):
            bare = getattr(bare, "_orig_mod", None) or bare.module
        self.trainable_module = bare.module
        try:
            yield
        finally:
            self.trainable_module = whole


@functools.cache
def _enhanced_class(base: type[nn.Module], title: str) -> type[nn.Module]:
    return type(f"{base.__name__}With{title}", (EnhancedTask, base), {"__module__": base.__module__})


def _check(task: Any) -> None:
    if isinstance(task, EnhancedTask):
        raise InputError("This task is enhanced already; call enhance() once.")
    if not isinstance(task, TrainingTask) or not isinstance(getattr(task, "teacher", None), nn.Module):
        raise InputError(
            f"Expected a distillation task of timm.task, with a student and a teacher, but got {type(task).__name__}."
        )
    if hasattr(task.trainable_module, "_orig_mod") or hasattr(task.trainable_module, "module") or task.has_ema():
        raise InputError(
            "The task is compiled, distributed or averaged already. Call enhance() first, then make the optimiser, then "
            "setup_ema(), compile() and prepare_distributed()."
        )


def _weighted(task: Any, returned: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weighs the parts, which a task returns bare; parts of unknown weight are left out."""
    parts = {name: part for name, part in returned.items() if name not in ("loss", "output")}
    if not parts.keys() <= _WEIGHTS.keys():
        parts = {}
    weighted = {name: part * getattr(task, _WEIGHTS[name], 1.0) for name, part in parts.items()}
    return {"loss": returned["loss"], "output": returned["output"], **weighted}


def _renormalises(task: Any) -> bool:
    mean, std = getattr(task, "student_mean", None), getattr(task, "student_std", None)
    if mean is None or std is None:
        return False
    return not (torch.equal(mean, task.teacher.mean_kd) and torch.equal(std, task.teacher.std_kd))


def _normalisation_of_the_teacher(
    task: Any, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[list[float], list[float]]:
    """Returns mean and std, in units of pixels in [0, 1], of the images that the teacher is given.

    The task maps x to ``(x student_std + student_mean - teacher_mean) / teacher_std``. For images of the student's
    normalisation that is the teacher's; for images of another one, x = (p - mean) / std, it is put into one step.
    """
    teacher_mean, teacher_std = task.teacher.mean_kd.flatten().tolist(), task.teacher.std_kd.flatten().tolist()
    if mean is None and std is None and hasattr(task, "student_mean"):
        return teacher_mean, teacher_std
    student_mean = task.student_mean.flatten().tolist() if hasattr(task, "student_mean") else teacher_mean
    student_std = task.student_std.flatten().tolist() if hasattr(task, "student_std") else teacher_std
    means, stds = list(mean or student_mean), list(std or student_std)
    if not _renormalises(task):
        return means, stds
    scales = [given / own for given, own in zip(stds, student_std, strict=True)]
    return (
        [m - (s - t) * k for m, s, t, k in zip(means, student_mean, teacher_mean, scales, strict=True)],
        [t * k for t, k in zip(teacher_std, scales, strict=True)],
    )
