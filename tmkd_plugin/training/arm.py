"""One distiller in training: its optimiser, its learning rate, its losses and its best weights."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from tmkd_plugin.data.batches import evaluation_batches
from tmkd_plugin.data.dataset import ImageDataset
from tmkd_plugin.errors import InputError, NonFiniteLossError, RunError
from tmkd_plugin.randomness import forked_random_state
from tmkd_plugin.training.acceleration import Acceleration
from tmkd_plugin.training.accumulation import accumulate
from tmkd_plugin.training.checkpoint import Checkpoint
from tmkd_plugin.training.distributed import Processes
from tmkd_plugin.training.meter import LossMeter, NonFinite
from tmkd_plugin.training.metrics import evaluate, evaluating, logits_of
from tmkd_plugin.training.precision import Precision
from tmkd_plugin.training.schedule import learning_rate
from tmkd_plugin.training.settings import TrainingSettings

Weights = dict[str, Tensor]
OUTSIDE = "student outside of its distiller/"


class Arm:
    """One distiller of a comparison. Several arms can train side by side on one stream of batches.

    An arm gives the same bits alone and beside others: it draws nothing that depends on them.

    Args:
        name: What messages call it.
        distiller: A module that maps (images, labels) to what ``read_return`` understands, with the network to train as
            ``.student``. It is moved to ``device``.
        settings: The recipe.
        seed: What the networks themselves draw (dropout) is a function of it, the epoch and the step.
        steps_per_epoch: Batches in an epoch.
        device: Where to train.
        acceleration: How a batch is computed; None for everything off.
        processes: Those that train the arm together, each with the same batches; the networks have to be divided with
            :func:`~tmkd_plugin.training.sharding.sharded_networks`. None for this process alone.

    Attributes:
        student: The network to train, without the wrapper that ``torch.compile`` puts around it.
        epoch: The current epoch, from 1.
        history: One record an epoch; see ``end_epoch``.
        best_epoch: The epoch with the highest validation accuracy so far, the earliest of equals; 0 before the first.
        steps_done: Steps made in the current epoch.
        seconds: Time spent in this arm's own steps and evaluations.
    """

    def __init__(
        self,
        name: str,
        distiller: nn.Module,
        settings: TrainingSettings,
        *,
        seed: int,
        steps_per_epoch: int,
        device: str | torch.device = "cpu",
        acceleration: Acceleration | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.name = name
        self.device = torch.device(device)
        self.distiller = distiller.to(device)
        self.student = _student_of(distiller).to(device)
        self.settings = settings
        self.seed = seed
        self.steps_per_epoch = steps_per_epoch
        self.epoch = 0
        self.steps_done = 0
        self.history: list[dict[str, Any]] = []
        self.best_epoch = 0
        self.best_student: Weights = {}
        self.best_heads: Weights = {}
        self.seconds = 0.0
        self.acceleration = acceleration or Acceleration()
        self.processes = processes
        self._check_processes = processes is not None
        self._precision = Precision(self.acceleration.precision, self.device)
        self._meter = LossMeter()
        self._parameters = _trainable_parameters(distiller)
        if processes is not None:
            processes.broadcast(value for value in self._own_state().values() if isinstance(value, Tensor))
        self._optimiser = torch.optim.SGD(
            self._parameters,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )

    def check(self, dataset: ImageDataset) -> None:
        """Refuses, before any training, a student whose outputs are not the data set's classes."""
        split = dataset.validation
        batch = next(iter(evaluation_batches(split, dataset.mean, dataset.std, batch_size=self.settings.batch_size)))
        with evaluating(self.student) as device:
            outputs = logits_of(self.student(batch.images.to(device))).shape[1]
        if outputs != dataset.num_classes:
            raise InputError(
                f"{self.name}: the student has {outputs} outputs, but the data set '{dataset.name}' has {dataset.num_classes} "
                f"classes. Build the student with num_classes={dataset.num_classes}."
            )

    def begin_epoch(self, epoch: int) -> None:
        """Goes on to an epoch: training mode (but for the teacher) and, unless it is in the middle of it, fresh sums."""
        if self.epoch != epoch:
            self.epoch, self.steps_done = epoch, 0
            self._meter = LossMeter()
        self._check_processes = self.processes is not None
        self.distiller.train()
        teacher = getattr(self.distiller, "teacher", None)
        if isinstance(teacher, nn.Module):
            teacher.eval()

    def step(self, images: Tensor, labels: Tensor, ids: Tensor | None = None) -> None:
        """Trains on one batch.

        Args:
            images: (B, 3, H, W), normalised, on the arm's device.
            labels: (B,) int64 or (B, K) probabilities.
            ids: (B,) int64, the place of each image in the data set's own order, for a distiller that asks for it.

        Raises:
            NonFiniteLossError: The loss is NaN or infinite; on a CPU no weight has been touched by it.
            InputError: Several processes train the arm, and its loss differs between them.
        """
        start = time.perf_counter()
        rate = learning_rate(self.settings, self.epoch, self.steps_done, self.steps_per_epoch)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        # Dropout knows only the global generator: fork it, so that it depends on no other arm and on nothing before.
        with forked_random_state(self.seed, "training step", self.epoch, self.steps_done):
            self._optimiser.zero_grad(set_to_none=True)
            result = accumulate(
                self.distiller, self._precision, images, labels, ids=ids, parts=self.acceleration.accumulation_steps
            )
        self._stop_if(self._meter.add(result, labels))
        if self.processes is not None:
            if self._check_processes:
                self.processes.check_same(self.name, result.loss, self._parameters)
                self._check_processes = False
            self.processes.average_gradients(self._parameters)
        if self.acceleration.clip_norm is not None:
            self._precision.unscale(self._optimiser)
            torch.nn.utils.clip_grad_norm_(self._parameters, self.acceleration.clip_norm)
        self._precision.step(self._optimiser)
        self.steps_done += 1
        self.seconds += time.perf_counter() - start

    def end_epoch(self, dataset: ImageDataset) -> dict[str, Any]:
        """Measures the student on the validation split and keeps its weights if they are the best so far.

        Returns:
            The epoch's record: ``epoch``, ``learning_rate`` (of the last step), ``losses`` (the mean of the total and of each
            term), ``train_top1`` and ``val_top1`` in percent, and what the distiller's ``epoch_report()`` returns.

        Raises:
            NonFiniteLossError: A loss of the epoch was NaN or infinite.
            RunError: The student's logits are.
        """
        start = time.perf_counter()
        self._stop_if(self._meter.flush())
        if self.processes is not None:
            # Batch norm's running statistics are each process's own: those that are saved are measured.
            self.processes.broadcast(self.student.buffers())
        report = getattr(self.distiller, "epoch_report", None)
        # Not from the optimiser, which knows no rate when the epoch's last step was made before a checkpoint.
        rate = learning_rate(self.settings, self.epoch, self.steps_done - 1, self.steps_per_epoch)
        record = {
            "epoch": self.epoch,
            "learning_rate": float(f"{rate:.6g}"),
            "losses": self._meter.means(),
            "train_top1": self._meter.top1(),
            "val_top1": self._validation_top1(dataset),
            **(report() if callable(report) else {}),
        }
        if not self.best_epoch or record["val_top1"] > self.history[self.best_epoch - 1]["val_top1"]:
            self.best_epoch = self.epoch
            self.best_student = _copy(self.student.state_dict())
            self.best_heads = _copy(head_weights(self.distiller, self.student))
        self.history.append(record)
        self.seconds += time.perf_counter() - start
        return record

    def snapshot(self) -> Checkpoint:
        """Returns all that training needs to go on from here, but for the teacher and what the arm was made with.

        Raises:
            NonFiniteLossError: A loss that was still on the device is NaN or infinite.
        """
        self._stop_if(self._meter.flush())
        own = self._own_state()
        tensors = {f"distiller/{name}": value for name, value in own.items() if isinstance(value, Tensor)}
        for index, state in self._optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{index}/{key}": value for key, value in state.items() if isinstance(value, Tensor)}
        tensors |= {f"best_student/{name}": value for name, value in self.best_student.items()}
        tensors |= {f"best_heads/{name}": value for name, value in self.best_heads.items()}
        state = {
            "epoch": self.epoch,
            "steps_done": self.steps_done,
            "history": self.history,
            "best_epoch": self.best_epoch,
            "seconds": self.seconds,
            "meter": self._meter.state(),
            "extra": {name: value for name, value in own.items() if not isinstance(value, Tensor)},
            "precision": self._precision.state(),
        }
        return Checkpoint(tensors, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes on from a snapshot of an arm that was made with the same arguments.

        Raises:
            InputError: The tensors are not those of this arm.
        """
        groups: dict[str, Weights] = {"distiller": {}, "optimiser": {}, "best_student": {}, "best_heads": {}}
        for path, tensor in checkpoint.tensors.items():
            group, _, name = path.partition("/")
            groups[group][name] = tensor
        state, found = checkpoint.state, groups["distiller"]
        expected = {name: value.shape for name, value in self._own_state().items() if isinstance(value, Tensor)}
        if expected != {name: value.shape for name, value in found.items()}:
            raise InputError(f"{self.name}: the checkpoint holds other tensors than this distiller has.")
        outside = {name.removeprefix(OUTSIDE): found.pop(name) for name in list(found) if name.startswith(OUTSIDE)}
        if outside:
            self.student.load_state_dict(outside)
        self.distiller.load_state_dict({**found, **state["extra"]}, strict=False)
        momenta: dict[int, Weights] = {}
        for path, tensor in groups["optimiser"].items():
            index, _, name = path.partition("/")
            momenta.setdefault(int(index), {})[name] = tensor
        recipe = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": momenta, "param_groups": recipe})
        device = next(self.student.parameters()).device
        self.best_student = {name: value.to(device) for name, value in groups["best_student"].items()}
        self.best_heads = {name: value.to(device) for name, value in groups["best_heads"].items()}
        self.epoch, self.steps_done = state["epoch"], state["steps_done"]
        self.history, self.best_epoch, self.seconds = list(state["history"]), state["best_epoch"], state["seconds"]
        self._meter.restore(state["meter"])
        self._precision.restore(state.get("precision"))

    def _own_state(self) -> dict[str, Any]:
        """Returns the distiller's state without the teacher's, which is known by identity under whatever name."""
        teacher = getattr(self.distiller, "teacher", None)
        of_teacher = teacher.state_dict(keep_vars=True) if isinstance(teacher, nn.Module) else {}
        frozen = {id(value) for value in of_teacher.values()}
        own = {
            name: value for name, value in self.distiller.state_dict(keep_vars=True).items() if id(value) not in frozen
        }
        if {id(parameter) for parameter in self.student.parameters()} - {id(value) for value in own.values()}:
            own |= {OUTSIDE + name: value for name, value in self.student.state_dict(keep_vars=True).items()}
        return own

    def restore_best(self) -> None:
        """Puts the weights of the best epoch back into the student and the heads."""
        self.student.load_state_dict(self.best_student)
        self.distiller.load_state_dict(self.best_heads, strict=False)

    def _validation_top1(self, dataset: ImageDataset) -> float:
        try:
            scores, _ = evaluate(self.student, dataset.validation, dataset.mean, dataset.std, self.settings.batch_size)
        except RunError as error:
            raise RunError(f"{self.name}, validation after epoch {self.epoch}: {error} {self._what_stays()}") from error
        return scores.top1

    def _stop_if(self, found: NonFinite | None) -> None:
        if found is None:
            return
        terms = ", ".join(f"{name}={value:g}" for name, value in found.terms.items())
        rate = learning_rate(self.settings, self.epoch, found.step - 1, self.steps_per_epoch)
        raise NonFiniteLossError(
            f"{self.name}, epoch {self.epoch}, step {found.step} of {self.steps_per_epoch}: the loss is {found.loss:g} "
            f"({terms}) at a learning rate of {rate:g}. Lower learning_rate, lengthen warmup_epochs, or lower the weight of "
            f"the term that is not finite. {self._what_stays()}"
        )

    def _what_stays(self) -> str:
        if not self.best_epoch:
            return "No epoch was finished before, so no weights were kept."
        return f"The best weights so far, of epoch {self.best_epoch}, stay."


def head_weights(distiller: nn.Module, student: nn.Module) -> Weights:
    """Returns every tensor of a distiller's state that is neither the student's nor the teacher's, by its name there."""
    # By identity, not by name: wrappers nest, and a distiller may keep its networks under any name.
    networks = [student, getattr(distiller, "teacher", None)]
    known = {
        id(tensor)
        for network in networks
        if isinstance(network, nn.Module)
        for tensor in network.state_dict(keep_vars=True).values()
    }
    state = distiller.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor) and id(value) not in known}


def _student_of(distiller: nn.Module) -> nn.Module:
    student = getattr(distiller, "student", None)
    if not isinstance(student, nn.Module):
        raise InputError(
            f"{type(distiller).__name__} has no network under the name 'student', so there is nothing to evaluate and to save. "
            "Set its attribute student to the network that it trains."
        )
    compiled = getattr(student, "_orig_mod", None)
    return compiled if isinstance(compiled, nn.Module) else student


def _trainable_parameters(distiller: nn.Module) -> list[nn.Parameter]:
    """Returns ``distiller.trainable_parameters()``, or for a distiller without it everything but the teacher."""
    own = getattr(distiller, "trainable_parameters", None)
    if callable(own):
        parameters = list(own())
    else:
        teacher = getattr(distiller, "teacher", None)
        frozen = {id(p) for p in teacher.parameters()} if isinstance(teacher, nn.Module) else set()
        parameters = [p for p in distiller.parameters() if p.requires_grad and id(p) not in frozen]
    if not parameters:
        raise InputError(f"{type(distiller).__name__} has no parameter to train: check requires_grad of its student.")
    return parameters


def _copy(weights: Weights) -> Weights:
    return {name: value.detach().clone() for name, value in weights.items() if isinstance(value, Tensor)}
