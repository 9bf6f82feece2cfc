"""TMKD or RichKD inside RepDistiller (HobbitLong) and its forks, TeKAP's among them: around their function ``train_distill``.

Their loop calls student and teacher as ``model(x, is_feat=True, preact=...)`` and shows the labels to its criteria only
later, so the enhanced loop notes the labels of each batch as it leaves the loader: when the teacher is called, they are
known. The enhancer's terms join the loss through the first criterion, the one of the classification loss. Nothing of
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

from tmkd_plugin.adapters.hosted import Hosted, HostStep, build
from tmkd_plugin.enhancer import TMKDEnhancer
from tmkd_plugin.enhancer_base import EnhancedStep
from tmkd_plugin.errors import InputError
from tmkd_plugin.richkd import RichKDEnhancer
from tmkd_plugin.sample_ids import wants_ids

Loop = Callable[..., Any]
"""``train_distill(epoch, train_loader, module_list, criterion_list, optimizer, opt)``."""


def enhance(
    train_distill: Loop,
    module_list: Sequence[nn.Module],
    optimizer: torch.optim.Optimizer,
    opt: Any,
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
) -> Loop:
    """Gives RepDistiller's loop a better teacher; call it once, after the teacher was appended and before the first epoch.

    Args:
        train_distill: Their function of one epoch.
        module_list: Their list: the student first, the teacher last.
        optimizer: Their optimiser, which gets the heads as one more parameter group with its default values.
        opt: Their options, of which ``gamma`` (weight of the classification loss) and ``alpha`` (weight of the logit KL)
            are read.
        class_names: The K class names in the order of the labels, in words.
        enhancer: ``"tmkd"`` or ``"richkd"``.
        text: Of TMKD: where the text embeddings come from; see :class:`~tmkd_plugin.TMKDEnhancer`. None: its default.
        clip: Of RichKD: the CLIP to run on every batch, or ``ClipAnswers``; see
            :class:`~tmkd_plugin.RichKDEnhancer`. None: its default.
        mean: Mean of the images' normalisation, three floats for pixels in [0, 1]; None: images are in [0, 1].
        std: Standard deviation, likewise.
        seed: The initialisation of the heads and all draws are functions of it.
        enabled: False gives ``train_distill`` back untouched.
        **settings: More arguments of the enhancer: ``input_size``, weights, temperatures, TMKD's ``views``.

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
    step = HostStep(
        "This enhancer runs inside RepDistiller's loop: call the function that enhance() returned.",
        bool(getattr(opt, "alpha", None)),
    )
    made = build(
        STEPWISE,
        enhancer,
        step,
        class_names,
        text=text,
        clip=clip,
        student=module_list[0],
        teacher=module_list[-1],
        mean=mean,
        std=std,
        seed=seed,
        **settings,
    )
    heads = made.trainable_parameters()
    if heads:
        optimizer.add_param_group({"params": heads})
    return EnhancedLoop(train_distill, made)


class Stepwise(Hosted):
    """What makes an enhancer run in a step that is spread over somebody else's loop.

    :meth:`step` opens the step and :meth:`step_terms` ends it.
    """

    _open: EnhancedStep | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for reader in (self.student_reader, self.multi_view.reader):
            # Their networks return the logits alone or after a list of features: last in any case.
            reader.plan = dataclasses.replace(reader.plan, logits_index=-1)

    @contextlib.contextmanager
    def step(self, images: Tensor, labels: Tensor, ids: Tensor | None = None) -> Iterator[None]:
        """Answers for the teacher and watches the student inside the block, which holds one step of the loop.

        Args:
            images: (B, 3, H, W), those that student and teacher will be called with.
            labels: (B,) integers or (B, K) probabilities.
            ids: (B,) int64, which training samples these are, where the loader says so.
        """
        if ids is None and wants_ids(self):
            raise InputError(
                "clip= is ClipAnswers, or CRD's memory bank was asked for: both go by the numbers of the training images, but "
                "the loader gives none. Use one that gives (image, label, index), such as theirs with is_instance=True, or "
                "give clip= a CLIP that runs on every batch."
            )
        step = self.begin_step(images, labels, ids=ids)
        with self.student_reader.recording(), step.answers.active():
            self._open = step
            try:
                yield
            finally:
                self._open = None

    def step_terms(self) -> dict[str, Tensor]:
        """Returns the weighted terms once student and teacher have run; nothing when called again in the same step."""
        step, self._open = self._open, None
        return {} if step is None else self.end_step(step)[1]


class StepwiseTMKD(Stepwise, TMKDEnhancer):
    """TMKD in somebody else's loop."""


class StepwiseRichKD(Stepwise, RichKDEnhancer):
    """RichKD in somebody else's loop."""


STEPWISE: dict[str, type[Stepwise]] = {"tmkd": StepwiseTMKD, "richkd": StepwiseRichKD}


class EnhancedLoop:
    """Runs one epoch of their loop with the enhanced teacher.

    Args:
        train_distill: Their function of one epoch.
        enhancer: Built around the student and the teacher of its module list.
    """

    def __init__(self, train_distill: Loop, enhancer: Stepwise) -> None:
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
        # The loop multiplies its classification loss by gamma; what the enhancer adds to it has weights of its own.
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

    def __init__(self, loader: Any, enhancer: Stepwise, device: torch.device) -> None:
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
            with self.enhancer.step(images, labels, _ids_in(rest, len(images), self.device)):
                yield [images, labels, *rest]


def _with_added_terms(criterion: Callable[..., Tensor], gamma: float, enhancer: Stepwise) -> Loop:
    def classification_loss(*args: Any, **kwargs: Any) -> Tensor:
        own = gamma * criterion(*args, **kwargs)
        return sum(enhancer.step_terms().values(), start=own)

    return classification_loss


def _ids_in(rest: Sequence[Any], count: int, device: torch.device) -> Tensor | None:
    """Returns the numbers of the images, which their loaders give after the labels."""
    ids = rest[0] if rest else None
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.shape != (count,):
        return None
    return ids.to(device, non_blocking=True)
