"""Stands in for RepDistiller and TeKAP's fork: its contract of networks, criteria and loops, and none of its code."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from tiny_networks import logit_kl
from torch import Tensor, nn


class Network(nn.Module):
    """`model(x)` -> logits; `model(x, is_feat=True)` -> ([maps, shallow to deep, and the pooled vector], logits)."""

    def __init__(self, num_classes: int = 4, width: int = 6, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv1 = nn.Conv2d(3, width, 3, padding=1)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
            self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor, is_feat: bool = False, preact: bool = False) -> object:
        first_pre = self.bn1(self.conv1(x))
        first = F.relu(first_pre)
        last_pre = self.conv2(first)
        last = F.relu(last_pre)
        pooled = last.mean(dim=(2, 3))
        logits = self.fc(pooled)
        if is_feat:
            return ([first_pre, last_pre, pooled] if preact else [first, last, pooled]), logits
        return logits


class DistillKL(nn.Module):
    def forward(self, y_s: Tensor, y_t: Tensor) -> Tensor:
        return logit_kl(y_s, y_t)


class LabelledDistillKL(nn.Module):
    """TeKAP's: takes the labels too."""

    def forward(self, y_s: Tensor, y_t: Tensor, target: Tensor) -> Tensor:
        assert target.shape == y_s.shape[:1]
        return 1.8 * logit_kl(y_s, y_t)


class Similarity(nn.Module):
    """Returns a list, one entry a map."""

    def forward(self, g_s: list[Tensor], g_t: list[Tensor]) -> list[Tensor]:
        pairs = [tuple(F.normalize(f.flatten(1)) for f in pair) for pair in zip(g_s, g_t, strict=True)]
        return [(s @ s.T - t @ t.T).square().mean() for s, t in pairs]


class Contrast(nn.Module):
    """CRD's: takes `index` and `contrast_idx`; its embeddings are in the module list too."""

    def __init__(self, s_dim: int, t_dim: int, n_data: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.embed_s, self.embed_t = nn.Linear(s_dim, 8), nn.Linear(t_dim, 8)
        self.register_buffer("memory", torch.zeros(n_data, 8))

    def forward(self, f_s: Tensor, f_t: Tensor, index: Tensor, contrast_idx: Tensor) -> Tensor:
        s, t = F.normalize(self.embed_s(f_s)), F.normalize(self.embed_t(f_t))
        negatives = torch.einsum("bd,bnd->bn", s, self.memory[contrast_idx])
        self.memory[index] = t.detach()
        return (negatives.logsumexp(1) - (s * t).sum(1)).mean()


HEARD: list[tuple[list[Tensor], Tensor]] = []
LOSSES: list[float] = []


def train_distill(
    epoch: int, train_loader: object, module_list: object, criterion_list: object, optimizer: object, opt: object
) -> tuple[float, float]:
    """One epoch; student and teacher run before the criteria see a label. Notes what the teacher said, and the losses."""
    for module in module_list:
        module.train()
    module_list[-1].eval()
    criterion_cls, criterion_div, criterion_kd = criterion_list[0], criterion_list[1], criterion_list[2]
    model_s, model_t = module_list[0], module_list[-1]
    assert len(train_loader) == 2
    for data in train_loader:
        x, target, index, *contrast = data
        x = x.float()
        preact = opt.distill == "abound"
        feat_s, logit_s = model_s(x, is_feat=True, preact=preact)
        with torch.no_grad():
            feat_t, logit_t = model_t(x, is_feat=True, preact=preact)
            feat_t = [f.detach() for f in feat_t]
        HEARD.append((feat_t, logit_t))
        loss_cls = criterion_cls(logit_s, target)
        loss_div = criterion_div(logit_s, logit_t, target) if opt.tekap else criterion_div(logit_s, logit_t)
        if opt.distill in ("kd", "abound"):
            loss_kd = 0
        elif opt.distill == "similarity":
            loss_kd = sum(criterion_kd([feat_s[-2]], [feat_t[-2]]))
        elif opt.distill == "crd":
            loss_kd = criterion_kd(feat_s[-1], feat_t[-1], index, contrast[0])
        elif opt.distill == "hint":
            loss_kd = criterion_kd(module_list[1](feat_s[1]), feat_t[1])
        loss = opt.gamma * loss_cls + opt.alpha * loss_div + opt.beta * loss_kd
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        LOSSES.append(float(loss.detach()))
    return 0.0, sum(LOSSES) / len(LOSSES)


METHODS = ("kd", "tekap", "similarity", "crd", "hint", "abound")


def build(name: str) -> SimpleNamespace:
    """What their main() holds when its epochs begin."""
    model_s, model_t = Network(width=5, seed=1), Network(width=7, seed=2)
    opt = SimpleNamespace(distill="kd" if name == "tekap" else name, gamma=1, alpha=0, beta=0.8, tekap=name == "tekap")
    if name in ("kd", "tekap"):
        opt.gamma, opt.alpha, opt.beta = 0.1, 0.9, 0
    modules, criterion_kd = [model_s], nn.Identity()
    if name == "similarity":
        criterion_kd = Similarity()
    elif name == "crd":
        criterion_kd = Contrast(model_s.fc.in_features, model_t.fc.in_features, 12)
        modules += [criterion_kd.embed_s, criterion_kd.embed_t]
    elif name == "hint":
        criterion_kd = nn.MSELoss()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            modules.append(nn.Conv2d(model_s.fc.in_features, model_t.fc.in_features, 1))
    optimizer = torch.optim.SGD(nn.ModuleList(modules).parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    criterion_div = LabelledDistillKL() if name == "tekap" else DistillKL()
    return SimpleNamespace(
        module_list=nn.ModuleList([*modules, model_t]),
        criterion_list=nn.ModuleList([nn.CrossEntropyLoss(), criterion_div, criterion_kd]),
        optimizer=optimizer,
        opt=opt,
        train_loader=batches(name),
    )


def batches(name: str) -> list[tuple[Tensor, ...]]:
    """(input, target, index), for CRD (input, target, index, contrast_idx)."""
    generator = torch.Generator().manual_seed(4)
    made = []
    for _ in range(2):
        x, index = torch.rand(5, 3, 16, 16, generator=generator), torch.randperm(12, generator=generator)[:5]
        contrast = torch.randint(12, (5, 7), generator=generator)
        made.append((x, index % 4, index, contrast)[: 4 if name == "crd" else 3])
    return made
