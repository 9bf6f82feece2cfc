"""Stands in for mdistiller: its contract of networks, distillers, trainer and checkpoints, and none of its code."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from tiny_networks import logit_kl
from torch import Tensor, nn


class Network(nn.Module):
    """Returns (logits, {"feats": [...], "preact_feats": [...], "pooled_feat": (B, D)}), shallow to deep."""

    def __init__(self, num_classes: int = 4, width: int = 6, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv1 = nn.Conv2d(3, width, 3, padding=1)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
            self.bn2 = nn.BatchNorm2d(2 * width)
            self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, image: Tensor) -> tuple[Tensor, dict[str, object]]:
        first = self.bn1(self.conv1(image))
        second = self.bn2(self.conv2(F.relu(first)))
        last = F.relu(second)
        pooled = last.mean(dim=(2, 3))
        features = {"feats": [F.relu(first), last], "preact_feats": [first, second], "pooled_feat": pooled}
        return self.fc(pooled), features


class Distiller(nn.Module):
    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher

    def train(self, mode: bool = True) -> Distiller:
        self.training = mode
        for child in self.children():
            child.train(mode)
        self.teacher.eval()
        return self

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        return list(self.student.parameters())

    def get_extra_parameters(self) -> int:
        return 0

    def forward_train(self, **kwargs: object) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError

    def forward_test(self, image: Tensor) -> Tensor:
        return self.student(image)[0]

    def forward(self, **kwargs: Tensor) -> object:
        if self.training:
            return self.forward_train(**kwargs)
        return self.forward_test(kwargs["image"])


class Vanilla(nn.Module):
    """Has no teacher."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: object) -> tuple[Tensor, dict[str, Tensor]]:
        logits, _ = self.student(image)
        return logits, {"ce": F.cross_entropy(logits, target)}

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        return list(self.student.parameters())


class _TwoTerms(Distiller):
    """Cross-entropy and one term of what the teacher said under no_grad; notes what it heard."""

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: object = None) -> None:
        super().__init__(student, teacher)
        self.cfg = cfg
        self.heard: list[tuple[Tensor, dict[str, object]]] = []

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: object) -> tuple[Tensor, dict[str, Tensor]]:
        student = self.student(image)
        with torch.no_grad():
            teacher = self.teacher(image)
        self.heard.append(teacher)
        loss_kd = self.term(student, teacher, **kwargs)
        return student[0], {"loss_ce": F.cross_entropy(student[0], target), "loss_kd": loss_kd}


class KD(_TwoTerms):
    def term(self, student: tuple, teacher: tuple, **_: object) -> Tensor:
        return 0.9 * logit_kl(student[0], teacher[0])


class DKD(_TwoTerms):
    """Takes `epoch` for its warm-up."""

    def term(self, student: tuple, teacher: tuple, epoch: int, **_: object) -> Tensor:
        return min(epoch / 20, 1.0) * logit_kl(student[0], teacher[0])


class FitNet(_TwoTerms):
    """Trains a regressor of its own on the deepest map."""

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: object = None) -> None:
        super().__init__(student, teacher, cfg)
        self.conv_reg = nn.Conv2d(student.fc.in_features, teacher.fc.in_features, 1)

    def term(self, student: tuple, teacher: tuple, **_: object) -> Tensor:
        return F.mse_loss(self.conv_reg(student[1]["feats"][-1]), teacher[1]["feats"][-1])

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        return [*super().get_learnable_parameters(), *self.conv_reg.parameters()]

    def get_extra_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.conv_reg.parameters())


class OFD(_TwoTerms):
    """Reads maps before the ReLU; its own train() does not put the teacher in eval mode."""

    def train(self, mode: bool = True) -> OFD:
        self.training = mode
        for child in self.children():
            child.train(mode)
        return self

    def term(self, student: tuple, teacher: tuple, **_: object) -> Tensor:
        pairs = zip(student[1]["preact_feats"], teacher[1]["preact_feats"], strict=True)
        return sum(F.mse_loss(s.mean(1), t.mean(1)) for s, t in pairs)


class SP(_TwoTerms):
    def term(self, student: tuple, teacher: tuple, **_: object) -> Tensor:
        s, t = (F.normalize(nest[1]["feats"][-1].flatten(1)) for nest in (student, teacher))
        return (s @ s.T - t @ t.T).square().mean()


class CRD(_TwoTerms):
    """Takes `index` and `contrastive_index`, keeps a memory in buffers, and returns a term of shape (1,)."""

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: object, num_data: int) -> None:
        super().__init__(student, teacher, cfg)
        self.embed_s = nn.Linear(student.fc.in_features, 8)
        self.embed_t = nn.Linear(teacher.fc.in_features, 8)
        self.register_buffer("memory", torch.zeros(num_data, 8))

    def term(self, student: tuple, teacher: tuple, index: Tensor, contrastive_index: Tensor, **_: object) -> Tensor:
        s = F.normalize(self.embed_s(student[1]["pooled_feat"]))
        t = F.normalize(self.embed_t(teacher[1]["pooled_feat"]))
        negatives = torch.einsum("bd,bnd->bn", s, self.memory[contrastive_index])
        self.memory[index] = t.detach()
        return (negatives.logsumexp(1, keepdim=True) - (s * t).sum(1, keepdim=True)).sum(0) / len(s)

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        return [*super().get_learnable_parameters(), *self.embed_s.parameters(), *self.embed_t.parameters()]

    def get_extra_parameters(self) -> int:
        own = [*self.embed_s.parameters(), *self.embed_t.parameters(), self.memory]
        return sum(tensor.numel() for tensor in own)


class WeakAndStrong(Distiller):
    """A fork's distiller that is given two augmentations of each image, under names of its own."""

    def forward_train(
        self, image_weak: Tensor, image_strong: Tensor, target: Tensor, **_: object
    ) -> tuple[Tensor, dict[str, Tensor]]:
        weak, strong = self.student(image_weak)[0], self.student(image_strong)[0]
        with torch.no_grad():
            weak_teacher, strong_teacher = self.teacher(image_weak)[0], self.teacher(image_strong)[0]
        kl = logit_kl(weak, weak_teacher) + logit_kl(strong, strong_teacher)
        return weak, {"loss_ce": F.cross_entropy(weak, target), "loss_kd": kl}


METHODS = {"KD": KD, "DKD": DKD, "FITNET": FitNet, "OFD": OFD, "SP": SP, "CRD": CRD}


def build(name: str, num_data: int = 12, seed: int = 1) -> Distiller:
    student, teacher = Network(width=5, seed=seed), Network(width=7, seed=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if name == "CRD":
            return CRD(student, teacher, SimpleNamespace(NAME=name), num_data)
        return METHODS[name](student, teacher, SimpleNamespace(NAME=name))


class Trainer:
    """Reaches the distiller through `.module`; SGD on its learnable parameters; a checkpoint holds all of it."""

    def __init__(self, distiller: nn.DataParallel, train_loader: list, lr: float = 0.05) -> None:
        self.distiller = distiller
        self.train_loader = train_loader
        self.optimizer = torch.optim.SGD(
            distiller.module.get_learnable_parameters(), lr=lr, momentum=0.9, weight_decay=5e-4
        )
        self.losses: list[float] = []

    def train_epoch(self, epoch: int) -> None:
        self.distiller.train()
        for data in self.train_loader:
            self.train_iter(data, epoch)

    def train_iter(self, data: tuple[Tensor, ...], epoch: int) -> None:
        self.optimizer.zero_grad()
        image, target, index, *contrastive = data
        given = {"index": index, "contrastive_index": contrastive[0]} if contrastive else {"epoch": epoch}
        _, terms = self.distiller(image=image, target=target, **given)
        loss = sum([term.mean() for term in terms.values()])
        loss.backward()
        self.optimizer.step()
        self.losses.append(float(loss.detach()))

    def save(self, path: Path) -> None:
        torch.save({"model": self.distiller.state_dict(), "optimizer": self.optimizer.state_dict()}, path)

    def resume(self, path: Path) -> None:
        state = torch.load(path, map_location="cpu")
        self.distiller.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


class DOTTrainer(Trainer):
    """Reads `loss_ce` and `loss_kd` by name and back-propagates them one after the other."""

    def train_iter(self, data: tuple[Tensor, ...], epoch: int) -> None:
        image, target, _ = data
        _, terms = self.distiller(image=image, target=target, epoch=epoch)
        self.optimizer.zero_grad()
        terms["loss_kd"].mean().backward(retain_graph=True)
        terms["loss_ce"].mean().backward()
        self.optimizer.step()
        self.losses.append(float((terms["loss_ce"] + terms["loss_kd"]).detach()))


def batches(name: str, count: int = 2, num_data: int = 12) -> list[tuple[Tensor, ...]]:
    """The batches of a loader: (image, target, index), for CRD (image, target, index, contrastive_index)."""
    generator = torch.Generator().manual_seed(4)
    made = []
    for _ in range(count):
        image = torch.rand(5, 3, 16, 16, generator=generator)
        index = torch.randperm(num_data, generator=generator)[:5]
        contrastive = torch.randint(num_data, (5, 7), generator=generator)
        made.append((image, index % 4, index, contrastive)[: 4 if name == "CRD" else 3])
    return made
