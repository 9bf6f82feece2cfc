"""Networks of timm, torchvision and the user's own code, and pretrained weights with and without a network connection."""

import urllib.error

import pytest
import torch
from torch import nn

from tmkd_plugin.errors import InputError
from tmkd_plugin.zoo import build_network


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Empty caches and no network, whatever the machine has; returns the folder of torch's downloads."""
    from huggingface_hub import constants

    def refuse(*_args, **_kwargs):
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    downloads = tmp_path / "hub" / "checkpoints"
    downloads.mkdir(parents=True)
    return downloads


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timm/resnet10t", None),
        ("timm/resnet18.a1_in1k", None),
        ("timm/vit_tiny_patch16_224", 32),
        ("timm/resnet10t", 64),
        ("torchvision/squeezenet1_1", None),
        ("torchvision/shufflenet_v2_x0_5", 64),
        ("torchvision/googlenet", None),
        ("torchvision/resnet18.IMAGENET1K_V1", None),
    ],
)
def test_networks_of_other_libraries(name, size):
    network = build_network(name, 7, image_size=size)
    assert network.training
    logits = network(torch.zeros(2, 3, size or 64, size or 64))
    assert logits.shape == (2, 7)


def test_a_fixed_size_network_takes_its_own_size_by_default():
    network = build_network("timm/vit_tiny_patch16_224", 3)
    assert network.patch_embed.img_size == (224, 224)
    # The size is part of the architecture, so is what a file must fit.
    assert build_network("timm/vit_tiny_patch16_224", 3, image_size=64).pos_embed.shape[1] == 4 * 4 + 1


@pytest.mark.parametrize("name", ["timm/resnet10t", "torchvision/squeezenet1_1"])
def test_their_weights_are_a_function_of_the_seed_too(name):
    torch.manual_seed(1)
    first = build_network(name, 4, seed=1).state_dict()
    torch.manual_seed(2)
    again, other = build_network(name, 4, seed=1).state_dict(), build_network(name, 4, seed=2).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("timm/resnt50", r"Did you mean 'timm/resnet50'.*timm\.list_models"),
        ("timm/resnet50.a1in1k", r"Did you mean 'timm/resnet50\.a1_in1k'"),
        ("torchvision/vgg13bn", r"Did you mean 'torchvision/vgg13_bn'.*torchvision\.models\.list_models"),
        ("torchvision/resnet50.IMAGENET_V1", r"Did you mean 'torchvision/resnet50\.IMAGENET1K_V1'"),
        ("torchvision/fasterrcnn_resnet50_fpn", "torchvision.models.list_models"),
        ("timm/", r"timm\.list_models"),
    ],
)
def test_unknown_foreign_names(name, suggestion):
    with pytest.raises(InputError, match=f"Unknown network '{name}'.*{suggestion}"):
        build_network(name, 10)


def test_pretrained_weights_come_under_a_new_classifier(offline):
    import torchvision

    published = torchvision.models.resnet18().state_dict()
    file = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    torch.save(published, offline / file)
    for name in ("resnet18", "torchvision/resnet18"):
        network = build_network(name, 10, pretrained=True, seed=3)
        state = network.state_dict()
        assert all(torch.equal(state[key], published[key]) for key in published if not key.startswith("fc."))
        assert network.fc.weight.shape == (10, 512)
        assert torch.equal(network.fc.weight, build_network(name, 10, pretrained=True, seed=3).fc.weight)
        assert not torch.equal(network.fc.weight, build_network(name, 10, pretrained=True, seed=4).fc.weight)
    assert torch.equal(build_network("resnet18", 1000, pretrained=True).fc.weight, published["fc.weight"])
    assert torch.equal(build_network("torchvision/resnet18", 1000, pretrained=True).fc.weight, published["fc.weight"])


def test_a_convolution_can_be_the_classifier(offline):
    import torchvision

    published = torchvision.models.squeezenet1_1().state_dict()
    file = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url.rpartition("/")[2]
    torch.save(published, offline / file)
    network = build_network("torchvision/squeezenet1_1", 6, pretrained=True)
    assert torch.equal(network.state_dict()["features.0.weight"], published["features.0.weight"])
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 6)


@pytest.mark.parametrize("name", ["resnet18", "torchvision/squeezenet1_1", "timm/resnet10t"])
def test_no_network_connection(name, offline):
    cause = rf"pretrained weights of '{name}' could not be loaded \(\w+Error: "
    advice = "run this once with a network connection.*as checkpoint"
    with pytest.raises(InputError, match=f"(?s){cause}.*{advice}"):
        build_network(name, 10, pretrained=True)


def test_weights_of_another_image_size(offline):
    with pytest.raises(InputError, match=r"'torchvision/vit_b_16' fix an argument: .*image_size"):
        build_network("torchvision/vit_b_16", 10, pretrained=True, image_size=32)


@pytest.mark.parametrize("name", ["resnet20", "resnet50_cifar", "vgg8"])
def test_networks_without_pretrained_weights(name):
    with pytest.raises(InputError, match=f"no pretrained weights for '{name}', only for resnet18, resnet34, resnet50"):
        build_network(name, 10, pretrained=True)


@pytest.mark.usefixtures("offline")
def test_timm_network_without_pretrained_weights():
    with pytest.raises(InputError, match="timm publishes no pretrained weights for 'botnet50ts_256'"):
        build_network("timm/botnet50ts_256", 10, pretrained=True)


def test_pretrained_and_a_checkpoint_exclude_each_other():
    with pytest.raises(InputError, match=r"pretrained weights and the checkpoint 'a\.pth' were both asked for"):
        build_network("resnet18", 10, pretrained=True, checkpoint="a.pth")


USERS_CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)

def not_a_network(num_classes):
    return [num_classes]

def other_arguments(classes):
    return Net(classes)

NUMBER = 3
"""


@pytest.fixture
def importable(monkeypatch, tmp_path):
    (tmp_path / "users_zoo_networks.py").write_text(USERS_CODE)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("importable")
def test_a_users_network():
    network = build_network("users_zoo_networks:Net", 5, seed=1)
    assert isinstance(network, nn.Module)
    assert network.fc.weight.shape == (5, 3)
    assert torch.equal(network.fc.weight, build_network("users_zoo_networks:Net", 5, seed=1).fc.weight)
    assert not torch.equal(network.fc.weight, build_network("users_zoo_networks:Net", 5, seed=2).fc.weight)


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_package.module:Net", "module 'no_such_package.module' can't be imported.*PYTHONPATH"),
        ("users_zoo_networks:Ned", r"has no callable 'Ned'\. Did you mean 'Net'\?"),
        ("users_zoo_networks:NUMBER", "has no callable 'NUMBER'"),
        ("users_zoo_networks:not_a_network", r"returned a list, expected a torch\.nn\.Module"),
        ("users_zoo_networks:other_arguments", r"can't be called as other_arguments\(num_classes=5\)"),
        (":Net", "module '' can't be imported"),
    ],
)
def test_a_users_network_that_cannot_be_built(name, message):
    with pytest.raises(InputError, match=message):
        build_network(name, 5)


@pytest.mark.usefixtures("importable")
def test_a_users_network_has_no_pretrained_weights():
    with pytest.raises(InputError, match="no pretrained weights for 'users_zoo_networks:Net'"):
        build_network("users_zoo_networks:Net", 5, pretrained=True)
