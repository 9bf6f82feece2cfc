"""The forms of distillers that people have, and what holds for each of them once it is wrapped."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from tiny_networks import FeaturePairNet, LogitsAndFeaturesNet, TinyConvNet, logit_kl
from torch import Tensor, nn

from tmkd_plugin import TMKDEnhancer
from tmkd_plugin.nested import leaves

NAMES = ["heron", "tern", "wren", "jay"]
TEXT = F.normalize(torch.randn(3, 4, 10, generator=torch.Generator().manual_seed(5)), dim=2)
LABELS = torch.tensor([0, 1, 2, 3, 1])


def images(seed: int = 0) -> Tensor:
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


class Base(nn.Module):
    """A user's distiller: any module with a student and a teacher. Notes what its teacher told it."""

    network: type[nn.Module] = TinyConvNet
    has_logit_kl = True

    def __init__(self) -> None:
        super().__init__()
        self.student = self.network(width=5, seed=1)
        self.teacher = self.network(width=7, seed=2)
        self.heard: list[Tensor] = []

    def losses(self, student: Tensor, teacher: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.heard.append(teacher)
        return {"ce": F.cross_entropy(student, labels), "kl": logit_kl(student, teacher)}


class OurDict(Base):
    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        student = self.student(images)
        terms = self.losses(student, self.teacher(images), labels)
        return {"loss": sum(terms.values()), "output": student, **terms}


class LogitsAndTerms(Base):
    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        student = self.student(images)
        with torch.no_grad():
            teacher = self.teacher(images)
        return student, self.losses(student, teacher, labels)


class Scalar(Base):
    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return sum(self.losses(self.student(images), self.teacher(images), labels).values())


class InferenceMode(Base):
    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.inference_mode():
            teacher = self.teacher(images)
        return sum(self.losses(self.student(images), teacher.clone(), labels).values())


class CallsTwice(Base):
    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        first, second = self.teacher(images), self.teacher(images)
        self.heard.append(second)
        return sum(self.losses(self.student(images), first, labels).values())


class UnpacksFeatures(Base):
    network = LogitsAndFeaturesNet

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        student, _ = self.student(images)
        teacher, features = self.teacher(images)
        assert features.shape[:2] == (5, 7)
        return sum(self.losses(student, teacher, labels).values())


class UnpacksFeatureDict(Base):
    network = FeaturePairNet

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        student, _ = self.student(images)
        teacher, extras = self.teacher(images)
        # Fusing pooled features and fusing logits agree, since the classifier is affine.
        torch.testing.assert_close(self.teacher.fc(extras["pooled_feat"]), teacher)
        torch.testing.assert_close(extras["feats"][-1].mean((2, 3)), extras["pooled_feat"])
        return student, self.losses(student, teacher, labels)


class OtherNames(nn.Module):
    has_logit_kl = True

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleDict({"small": TinyConvNet(width=5, seed=1), "big": TinyConvNet(width=7, seed=2)})
        self.heard: list[Tensor] = []

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        teacher = self.nets["big"](images)
        self.heard.append(teacher)
        return F.cross_entropy(self.nets["small"](images), labels) + logit_kl(self.nets["small"](images), teacher)


class CallsForwardFeatures(Base):
    """As timm's feature distillation does."""

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.teacher.forward_features(images)
            pooled = self.teacher.forward_head(features, pre_logits=True)
        student_features = self.student.forward_features(images)
        student = self.student.forward_head(student_features)
        self.heard.append(self.teacher.fc(pooled))
        return F.cross_entropy(student, labels) + 0.1 * student_features.square().mean()


FORMS = [OurDict, LogitsAndTerms, Scalar, InferenceMode, CallsTwice, UnpacksFeatures, UnpacksFeatureDict]


def wrap(distiller: object, **arguments: object) -> TMKDEnhancer:
    return TMKDEnhancer(distiller, class_names=NAMES, text=TEXT, **arguments)


def check(enhancer: TMKDEnhancer, heard: list[Tensor], labels: Tensor = LABELS) -> None:
    """What holds for every wrapped distiller."""
    enhancer.train()
    student, teacher = enhancer.student, enhancer.teacher
    before = copy.deepcopy(teacher.state_dict())
    out = enhancer(images(), labels)

    # the fused teacher really was used
    per_view = enhancer.views_forward(images())
    table = enhancer.fusion_table().detach()
    weights = table[labels] if labels.ndim == 1 else labels @ table
    fused = sum(per_view.outputs[v].logits * weights[:, v, None] for v in range(3))
    assert heard
    for logits in heard:
        torch.testing.assert_close(logits, fused)
        assert not logits.requires_grad
    assert not torch.allclose(fused, per_view.outputs[0].logits)

    # the terms add up; the output is the student's
    terms = [value for name, value in out.items() if name not in ("loss", "output")]
    torch.testing.assert_close(out["loss"], sum(terms))
    assert out["output"].shape == (5, 4)

    # WeightNet learns from the feature KL alone, the student from the loss, the teacher from nothing
    weight_net = list(enhancer.heads.weight_net.parameters())
    own = sum(value for name, value in out.items() if name not in ("loss", "output", "feature_kl"))
    assert all(g is None for g in torch.autograd.grad(own, weight_net, allow_unused=True, retain_graph=True))
    out["loss"].backward()
    assert all(p.grad is not None and p.grad.any() for p in weight_net)
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())

    # at test time the student is the bare network with these weights
    bare = type(student)(width=5)
    bare.load_state_dict(student.state_dict())
    with torch.no_grad():
        answers = [leaves(network.eval()(images())) for network in (student, bare)]
    assert all(torch.equal(*pair) for pair in zip(*answers, strict=True))

    # the teacher is as it was; the checkpoint does without it; nothing stays on the networks
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    teacher_tensors = {value.data_ptr() for value in teacher.state_dict().values()}
    assert not any(value.data_ptr() in teacher_tensors for value in enhancer.state_dict().values())
    for network in (student, teacher):
        assert "forward" not in vars(network)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
