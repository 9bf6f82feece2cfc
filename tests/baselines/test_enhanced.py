"""Every baseline with TMKD: what is fed to it, what is added, and every baseline x network for one step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tmkd_plugin import TMKDEnhancer
from tmkd_plugin.baselines import BASELINES, build_baseline
from tmkd_plugin.baselines.catkd import cat_loss, class_activation_maps
from tmkd_plugin.errors import InputError
from tmkd_plugin.fusion import fuse
from tmkd_plugin.losses import kd_loss
from tmkd_plugin.zoo import build_network

CLASSES = ["heron", "tern", "wren", "jay", "crow"]
TEXT = F.normalize(torch.rand(3, 5, 8, generator=torch.Generator().manual_seed(0)), dim=2)
LABELS = torch.tensor([0, 4, 2, 2])
OWN_TERMS = {
    "kd": {"cross_entropy", "logit_kl"},
    "rkd": {"cross_entropy", "rkd"},
    "sp": {"cross_entropy", "sp"},
    "catkd": {"cross_entropy", "cat"},
    "tekap": {"cross_entropy", "tekap"},
}


def images(size: int = 32, batch: int = 4) -> torch.Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def enhanced(name: str, student: str = "resnet8", teacher: str = "resnet14", **settings: object) -> TMKDEnhancer:
    distiller = build_baseline(name, build_network(student, 5, seed=1), build_network(teacher, 5, seed=2))
    return TMKDEnhancer(distiller, CLASSES, text=TEXT, **settings)


@pytest.mark.parametrize("name", BASELINES)
def test_terms_are_those_of_the_table(name: str) -> None:
    out = enhanced(name)(images(), LABELS)
    added = {"feature_kl", "text_contrast"} | (set() if name in ("kd", "tekap") else {"logit_kl"})
    assert set(out) == {"loss", "output"} | OWN_TERMS[name] | added
    terms = [value for key, value in out.items() if key not in ("loss", "output")]
    torch.testing.assert_close(out["loss"], torch.stack(terms).sum())


@pytest.mark.parametrize("name", BASELINES)
def test_own_terms_are_those_of_the_baseline_on_the_fused_teacher(name: str) -> None:
    enhancer = enhanced(name)
    weights = enhancer.fusion_table().detach()[LABELS]
    per_view = enhancer.views_forward(images())
    teacher = enhancer.teacher

    class Fused(torch.nn.Module):
        """A network that says what the fused teacher says, without any interception."""

        def __init__(self) -> None:
            super().__init__()
            self.pool, self.fc = teacher.pool, teacher.fc

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            if batch.shape != images().shape:  # the probe
                return self.fc(self.pool(teacher.forward_features(batch)).flatten(1))
            return self.fc(self.pool(fuse([o.feature_map for o in per_view.outputs], weights)).flatten(1))

    out = enhancer(images(), LABELS)
    # CAT-KD decides by the networks' classes whether to normalise.
    settings = {"normalize": enhancer.distiller.normalize} if name == "catkd" else {}
    expected = build_baseline(name, build_network("resnet8", 5, seed=1), Fused(), **settings)(images(), LABELS)
    for term in OWN_TERMS[name]:
        torch.testing.assert_close(out[term], expected[term], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["rkd", "sp", "catkd"])
def test_added_logit_kl_is_that_of_the_fused_logits(name: str) -> None:
    enhancer = enhanced(name)
    out = enhancer(images(), LABELS)
    fused = enhancer.fuse(enhancer.views_forward(images()), LABELS)
    torch.testing.assert_close(out["logit_kl"], kd_loss(out["output"], fused, 4.0))
    weight_net = list(enhancer.heads.weight_net.parameters())
    assert all(
        grad is None or not grad.any()
        for term in set(out) - {"loss", "output", "feature_kl"}
        for grad in torch.autograd.grad(out[term], weight_net, allow_unused=True, retain_graph=True)
    )


def test_fused_class_activation_maps_are_those_of_the_fused_map() -> None:
    enhancer = enhanced("catkd")
    out = enhancer(images(), LABELS)
    weights = enhancer.fusion_table().detach()[LABELS]
    maps = [
        class_activation_maps(output.feature_map, enhancer.teacher.fc.weight)
        for output in enhancer.views_forward(images()).outputs
    ]
    student = enhancer.student
    student_maps = class_activation_maps(student.forward_features(images()), student.fc.weight)
    distiller = enhancer.distiller
    expected = cat_loss(student_maps, fuse(maps, weights), distiller.cam_resolution, distiller.normalize)
    torch.testing.assert_close(out["cat"], distiller.cat_weight * expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", BASELINES)
def test_mixed_labels(name: str) -> None:
    soft = 0.6 * F.one_hot(LABELS, 5).float() + 0.4 * F.one_hot(LABELS.flip(0), 5).float()
    enhancer = enhanced(name)
    enhancer(images(), soft)["loss"].backward()
    assert all(parameter.grad is not None for parameter in enhancer.trainable_parameters())


# Students of the paper and of the CIFAR family, at both small sizes, under one small teacher.
NETWORKS = [
    "vgg8", "vgg13", "resnet18", "resnet50", "resnet18_cifar", "resnet50_cifar", "shufflenetv2", "shufflenetv1", "mobilenetv2",
    "wrn_40_2", "wrn_16_2", "wrn_40_1", "resnet8x4", "resnet32x4", "resnet20", "resnet56",
]  # fmt: skip


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_baseline_with_every_network_makes_one_step(network: str, size: int) -> None:
    student = build_network(network, 5, seed=1)
    teacher = build_network("resnet8", 5, seed=2)
    batch, labels = images(size, batch=2), LABELS[:2]
    for name in BASELINES:
        enhancer = TMKDEnhancer(build_baseline(name, student, teacher), CLASSES, text=TEXT)
        student.zero_grad()
        out = enhancer(batch, labels)
        out["loss"].backward()
        assert out["output"].shape == (2, 5)
        assert torch.isfinite(out["loss"])
        assert all(parameter.grad is not None for parameter in enhancer.trainable_parameters())


@pytest.mark.parametrize("name", ["timm/vit_tiny_patch16_224", "timm/convnext_atto"])
def test_networks_without_maps_are_refused_by_the_methods_that_need_them(name: str) -> None:
    network, resnet = build_network(name, 5), build_network("resnet8", 5)
    refused = {"vit": {"sp", "catkd"}, "convnext": {"catkd"}}[name.removeprefix("timm/").split("_")[0]]
    for baseline in BASELINES:
        for student, teacher, role in ((network, resnet, "student"), (resnet, network, "teacher")):
            if baseline in refused:
                with pytest.raises(InputError, match=role):
                    build_baseline(baseline, student, teacher)
            else:
                build_baseline(baseline, student, teacher)
    images_224 = images(224, batch=2)
    out = enhanced("rkd", "resnet8", name)(images_224, LABELS[:2])
    out["loss"].backward()
    assert torch.isfinite(out["loss"])
