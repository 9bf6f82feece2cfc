"""TMKD inside RepDistiller (HobbitLong) and its forks, TeKAP's among them: around their function ``train_distill``.

Their loop calls student and teacher as ``model(x, is_feat=True, preact=...)`` and shows the labels to its criteria only
later, so the enhanced loop notes the labels of each batch as it leaves the loader: when the teacher is called, they are
known. TMKD's terms join the loss through the first criterion, the one of the classification loss. Nothing of
RepDistiller is imported.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tmkd_plugin.adapters.hosted import HostedEnhancer
from tmkd_plugin.errors import InputError
from tmkd_plugin.interception import TeacherInterception
from tmkd_plugin.labels import check_labels
from tmkd_plugin.text_encoder import DEFAULT_TEXT_MODEL

Loop = Callable[..., Any]
"""``train_distill(epoch, train_loader, module_list, criterion_list, optimizer, opt)``."""


def enhance(
    train_distill: Loop,
    module_list: Sequence[nn.Module],
    optimizer: torch.optim.Optimizer,
    opt: Any,
    class_names: Sequence[str],
    *,
    text: Any = DEFAULT_TEXT_MODEL,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    enabled: bool = True,
    **settings: Any,
) -> Loop:
    """Gives RepDistiller's loop a better teacher; call it once, after the teacher was appended and before the first epoch.

    Args:
        train_distill: Their function of one epoch.
        module_list: Their list: the student first, the teacher last.
        optimizer: Their optimiser, which gets the heads as one more parameter group with its default values.
        opt: Their options, of which ``gamma`` (weight of the classification loss) and ``alpha`` (weight of the logit KL)
            are read.
        class_names: The K class names in the order of the labels, in words.
        text: Where the text embeddings come from; see :class:`~tmkd_plugin.TMKDEnhancer`.
        mean: Mean of the images' normalisation, three floats for pixels in [0, 1]; None: images are in [0, 1].
        std: Standard deviation, likewise.
        seed: The initialisation of the heads and the noise are functions of it.
        enabled: False gives ``train_distill`` back untouched.
        **settings: More arguments of :class:`~tmkd_plugin.TMKDEnhancer`: ``views``, ``input_size``, weights, temperatures.

    Returns:
        A function with the arguments and the return value of ``train_distill``; its attribute ``enhancer`` holds the heads.

    Raises:
        InputError: Something given can't be used.
    """
    if not enabled:
        return train_distill
    if len(module_list) < 2:
        raise InputError(
            f"module_list holds {len(module_list)} module(s), but the student is expected first and the teacher last. Call "
            "enhance() after module_list.append(model_t)."
        )
    if settings.get("logit_weight") is None:
        settings["logit_weight"] = 0.0 if getattr(opt, "alpha", None) else 1.0
    student, teacher = module_list[0], module_list[-1]
    enhancer = StepwiseEnhancer(
        _no_step, class_names, text=text, student=student, teacher=teacher, mean=mean, std=std, seed=seed, **settings
    )
    heads = [parameter for parameter in enhancer.heads.parameters() if parameter.requires_grad]
    if heads:
        optimizer.add_param_group({"params": heads})
    return EnhancedLoop(train_distill, enhancer)


class StepwiseEnhancer(HostedEnhancer):
    """The enhancer for a step that is spread over somebody else's loop: :meth:`step` opens it, :meth:`step_terms` ends it."""

    _open: tuple[TeacherInterception, Tensor, Tensor] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for reader in (self.student_reader, self.multi_view.reader):
            # Their networks return the logits alone or after a list of features: last in any case.
            reader.plan = dataclasses.replace(reader.plan, logits_index=-1)

    @contextlib.contextmanager
    def step(self, images: Tensor, labels: Tensor) -> Iterator[None]:
        """Answers for the teacher and watches the student inside the block, which holds one step of the loop.

        Args:
            images: (B, 3, H, W), those that student and teacher will be called with.
            labels: (B,) integers or (B, K) probabilities.
        """
        self.multi_view.check(images)
        check_labels(labels, images.shape[0], self.num_classes)
        self._watch.look()
        self.keep_teacher_in_eval()
        table = self.fusion_table()
        answers = TeacherInterception(self.multi_view, table.detach(), images, labels)
        with self.student_reader.recording(), answers.active():
            self._open = answers, labels, table
            try:
                yield
            finally:
                self._open = None

    def step_terms(self) -> dict[str, Tensor]:
        """Returns TMKD's weighted terms once student and teacher have run; nothing when called again in the same step."""
        if self._open is None:
            return {}
        answers, labels, table = self._open
        self._open = None
        per_view, _ = answers.first_call()
        student = self.student_reader.recorded()
        self.check_student(student, labels)
        return self.added_terms(student, per_view, labels, table)


class EnhancedLoop:
    """Runs one epoch of their loop with the enhanced teacher.

    Args:
        train_distill: Their function of one epoch.
        enhancer: Built around the student and the teacher of its module list.
    """

    def __init__(self, train_distill: Loop, enhancer: StepwiseEnhancer) -> None:
        self.train_distill = train_distill
        self.enhancer = enhancer

    def __call__(
        self,
        epoch: int,
        train_loader: Iterable[Any],
        module_list: Sequence[nn.Module],
        criterion_list: Sequence[nn.Module],
        optimizer: torch.optim.Optimizer,
        opt: Any,
    ) -> Any:
        """Trains one epoch; arguments and return value are those of ``train_distill``.

        Raises:
            InputError: The networks are not those that were enhanced, or a batch can't be used.
        """
        if module_list[0] is not self.enhancer.student or module_list[-1] is not self.enhancer.teacher:
            raise InputError(
                "The first and last module of module_list are not the student and the teacher that enhance() was given. "
                "Call enhance() again for these."
            )
        device = next(self.enhancer.student.parameters()).device
        self.enhancer.train().heads.to(device)
        # The loop multiplies its classification loss by gamma; what TMKD adds to it has weights of its own.
        gamma = getattr(opt, "gamma", 1)
        opt = copy.copy(opt)
        opt.gamma = 1
        criterion = _with_added_terms(criterion_list[0], gamma, self.enhancer)
        batches = _NotedBatches(train_loader, self.enhancer, device)
        try:
            return self.train_distill(epoch, batches, module_list, [criterion, *criterion_list[1:]], optimizer, opt)
        finally:
            batches.close()


class _NotedBatches:
    """A loader that opens a step of the enhancer for each batch: (images, labels, *rest), moved to the student's device."""

    def __init__(self, loader: Any, enhancer: StepwiseEnhancer, device: torch.device) -> None:
        self.loader, self.enhancer, self.device = loader, enhancer, device
        self._running: Generator[list[Any], None, None] | None = None

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["loader"], name)

    def __iter__(self) -> Iterator[list[Any]]:
        self.close()
        self._running = self._steps()
        return self._running

    def close(self) -> None:
        """Ends the open step, if the loop left in the middle of one."""
        if self._running is not None:
            self._running.close()

    def _steps(self) -> Generator[list[Any], None, None]:
        for images, labels, *rest in self.loader:
            # As their loop would do next: the very tensors that the networks see are the ones that have been noted.
            images = images.float().to(self.device, non_blocking=True)
            labels = labels.to(self.device, non_blocking=True)
            with self.enhancer.step(images, labels):
                yield [images, labels, *rest]


def _with_added_terms(criterion: Callable[..., Tensor], gamma: float, enhancer: StepwiseEnhancer) -> Loop:
    def classification_loss(*args: Any, **kwargs: Any) -> Tensor:
        own = gamma * criterion(*args, **kwargs)
        return sum(enhancer.step_terms().values(), start=own)

    return classification_loss


def _no_step(*_: Any, **__: Any) -> Any:
    raise InputError("This enhancer runs inside RepDistiller's loop: call the function that enhance() returned.")
