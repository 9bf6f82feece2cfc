"""Logits, pooled features and the last feature map of many kinds of networks."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torchvision
from tiny_networks import FeaturePairNet, FunctionalPoolNet, LogitsAndFeaturesNet, TinyConvNet
from torch import nn

from tmkd_plugin.errors import InputError
from tmkd_plugin.model_output import OutputReader


def images(size: int = 16, batch: int = 3) -> torch.Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("network", [TinyConvNet, FeaturePairNet, LogitsAndFeaturesNet])
def test_small_networks_of_every_form(network: type[TinyConvNet]) -> None:
    model = network().eval()
    output = OutputReader(model)(images())
    features = model.forward_features(images())
    torch.testing.assert_close(output.feature_map, features)
    torch.testing.assert_close(output.pooled_features, features.mean(dim=(2, 3)))
    torch.testing.assert_close(output.logits, model.fc(features.mean(dim=(2, 3))))


def test_a_map_that_no_module_sees_is_not_guessed() -> None:
    model = FunctionalPoolNet().eval()
    output = OutputReader(model)(images())
    torch.testing.assert_close(output.pooled_features, model.forward_features(images()).mean(dim=(2, 3)))
    assert output.feature_map is None


def foreign(name: str) -> nn.Module:
    library, _, model = name.partition("/")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if library == "torchvision":
            return torchvision.models.get_model(model, weights=None, num_classes=5)
        return timm.create_model(model, num_classes=5)


# name, channels of the map (None: there is no map), has class activation maps
FOREIGN = [
    ("torchvision/resnet18", 512, True),
    ("torchvision/vgg11_bn", 512, False),  # an MLP head
    ("torchvision/shufflenet_v2_x0_5", 1024, True),  # pools in forward()
    ("torchvision/mobilenet_v3_small", 576, False),  # an MLP head, squeeze-and-excite pools inside
    ("torchvision/efficientnet_b0", 1280, True),
    ("torchvision/squeezenet1_1", 5, False),  # its classifier is a convolution
    ("timm/resnet18", 512, True),
    ("timm/convnext_atto", 320, False),  # normalises after pooling
    ("timm/vit_tiny_patch16_224", None, False),
    ("timm/swin_tiny_patch4_window7_224", 768, True),  # (B, h, w, C)
    ("timm/mobilenetv3_small_050", 288, False),
    ("timm/resnetv2_50", 2048, False),  # its classifier is a convolution
]


@pytest.mark.parametrize(("name", "channels", "has_maps"), FOREIGN)
def test_foreign_networks(name: str, channels: int | None, has_maps: bool) -> None:
    model = foreign(name).eval()
    reader = OutputReader(model)
    size = reader.plan.input_size
    with torch.no_grad():
        output = reader(images(size, batch=2))
        torch.testing.assert_close(output.logits, model(images(size, batch=2)))
    if output.pooled_features is not None and isinstance(reader.plan.classifier, nn.Linear):
        torch.testing.assert_close(reader.plan.classifier(output.pooled_features), output.logits)
    if channels is None:
        assert output.feature_map is None
        with pytest.raises(InputError, match="SP needs the last feature map"):
            reader.require_feature_map("SP")
    else:
        assert output.feature_map is not None
        assert output.feature_map.shape[:2] == (2, channels)
        assert output.feature_map.shape[2] == output.feature_map.shape[3]
    if has_maps:
        weight, bias = reader.class_map_weights()
        maps = torch.einsum("kc,bchw->bkhw", weight, output.feature_map)
        torch.testing.assert_close(maps.mean(dim=(2, 3)) + bias, output.logits, rtol=1e-4, atol=1e-4)
    else:
        with pytest.raises(InputError, match=f"Class activation maps need .* \\({type(model).__name__}\\) is not one"):
            reader.class_map_weights()


def test_the_probe_leaves_the_network_and_the_random_state_alone() -> None:
    model = TinyConvNet()
    model.bn.eval()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    OutputReader(model)
    assert model.training
    assert not model.bn.training
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_a_call_that_somebody_else_makes_is_recorded_and_no_hook_stays() -> None:
    model = TinyConvNet().eval()
    reader = OutputReader(model)
    with reader.recording():
        logits = model(images())
        model(images() * 0.5)
        recorded = reader.recorded()
    assert recorded.logits is logits
    torch.testing.assert_close(recorded.feature_map, model.forward_features(images()))
    assert all(not module._forward_hooks for module in model.modules())


def test_a_network_that_was_not_called_is_reported() -> None:
    reader = OutputReader(TinyConvNet(), "student")
    with reader.recording(), pytest.raises(InputError, match=r"student \(TinyConvNet\) was not called"):
        reader.recorded()


def test_gradients_go_through_what_was_read() -> None:
    model = TinyConvNet()
    output = OutputReader(model)(images())
    (output.logits.sum() + output.pooled_features.sum() + output.feature_map.sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_compiled_networks_give_the_same() -> None:
    model = TinyConvNet().eval()
    expected = OutputReader(model)(images())
    compiled = torch.compile(copy.deepcopy(model))
    reader = OutputReader(compiled)
    for _ in range(2):
        output = reader(images())
        torch.testing.assert_close(output.logits, expected.logits)
        torch.testing.assert_close(output.pooled_features, expected.pooled_features)
        torch.testing.assert_close(output.feature_map, expected.feature_map)


def test_the_probe_leaves_buffers_that_forward_changes_as_they_were() -> None:
    class Counts(TinyConvNet):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().forward(images)

    model = Counts()
    OutputReader(model)
    assert model.calls == 0


def test_a_classifier_called_with_a_keyword() -> None:
    class Keyword(TinyConvNet):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.fc(input=self.pool(self.forward_features(images)).flatten(1))

    model = Keyword().eval()
    output = OutputReader(model)(images())
    torch.testing.assert_close(model.fc(output.pooled_features), output.logits)


def test_logits_are_told_from_features_by_the_classifiers_width() -> None:
    class Scaled(TinyConvNet):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            pooled = self.pool(self.forward_features(images)).flatten(1)
            return pooled, 10 * self.fc(pooled)

    assert OutputReader(Scaled(num_classes=4, width=6)).num_classes == 4


def test_a_call_with_gradient_counts_more_than_an_earlier_one_without() -> None:
    model = TinyConvNet().eval()
    reader = OutputReader(model)
    with reader.recording():
        with torch.no_grad():
            model(images() * 0.5)
        trained = model(images())
        recorded = reader.recorded()
    assert recorded.logits is trained
    torch.testing.assert_close(recorded.feature_map, model.forward_features(images()))


def test_networks_that_cannot_be_read_are_refused() -> None:
    class NoLogits(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3 * 48 * 48, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.flatten(1))

    with pytest.raises(InputError, match=r"could be logits \(B, K\).*\(2, 3, 32, 32\)"):
        OutputReader(NoLogits(), "teacher")
    with pytest.raises(InputError, match=r"The student \(Fixed\) does not run .* 32 px: .* 224 px: .* input_size="):
        OutputReader(Fixed(), "student")
    assert OutputReader(Fixed(), input_size=48).num_classes == 5
