"""Every network of ours: shapes at all sizes, parameter counts, seeds, and the official implementations' answers."""

import json
import math
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from torch import nn

from tmkd_plugin.errors import InputError
from tmkd_plugin.zoo import build_network, list_networks

# With 100 classes, as published (CRD, mdistiller).
PUBLISHED_COUNTS = {
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg11": 9_277_284,
    "vgg13": 9_462_180,
    "vgg16": 14_774_436,
    "vgg19": 20_086_692,
    "mobilenetv2": 812_836,
    "shufflenetv1": 949_258,
    "shufflenetv2": 1_355_528,
    "resnet18_cifar": 11_220_132,
    "resnet34_cifar": 21_328_292,
    "resnet50_cifar": 23_705_252,
}

# With 1000 classes, as in torchvision's documentation.
TORCHVISION_COUNTS = {"resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032}

# Channels of the tensor that is pooled, and its height and width at 32, 64 and 224 px.
CHANNELS = {"resnet8x4": 256, "resnet32x4": 256, "wrn_16_2": 128, "wrn_40_2": 128}
CHANNELS |= {"mobilenetv2": 1280, "shufflenetv1": 960, "shufflenetv2": 1024, "resnet50": 2048, "resnet50_cifar": 2048}
SIDES = {
    "resnet_cifar": (8, 16, 56),
    "wrn": (8, 16, 56),
    "vgg": (4, 4, 14),
    "shufflenet": (4, 8, 28),
    "mobilenet": (2, 4, 14),
    "imagenet": (1, 2, 7),
    "cifar": (4, 8, 28),
}

SMALL_AND_ONE_OF_EACH_FAMILY = (
    "resnet8",
    "resnet8x4",
    "wrn_16_1",
    "vgg8",
    "mobilenetv2",
    "shufflenetv1",
    "shufflenetv2",
    "resnet18",
    "resnet18_cifar",
)


@pytest.fixture(scope="module", params=list_networks())
def named_network(request):
    """Each network of ours once, in eval mode, with the number of classes of its published count."""
    return request.param, build_network(request.param, 1000 if request.param in TORCHVISION_COUNTS else 100).eval()


def family(name):
    if name.endswith("_cifar"):
        return "cifar"
    if name in TORCHVISION_COUNTS:
        return "imagenet"
    prefix = name.rstrip("0123456789x_v").split("_")[0]
    return {"resnet": "resnet_cifar", "wrn": "wrn", "vgg": "vgg"}.get(prefix, prefix)


def expected_map(name, size):
    kind = family(name)
    channels = CHANNELS.get(name, 64 if kind in ("resnet_cifar", "wrn") else 512)
    side = SIDES[kind][(32, 64, 224).index(size)]
    return channels, side, side


def check_network(name, network, size, batch):
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        feature_map = network.forward_features(images)
        pooled = network.forward_head(feature_map, pre_logits=True)
        logits = network(images)
        assert feature_map.shape == (batch, *expected_map(name, size))
        assert pooled.shape == (batch, network.fc.in_features)
        assert logits.shape == (batch, network.fc.out_features)
        assert torch.equal(logits, network.forward_head(feature_map))
    # The contract of the class activation maps: what is pooled is the map itself, and the head is its mean, weighted.
    assert isinstance(network.pool, nn.AdaptiveAvgPool2d)
    assert isinstance(network.fc, nn.Linear)
    torch.testing.assert_close(pooled, feature_map.mean(dim=(2, 3)), rtol=1e-4, atol=1e-6)
    maps = torch.einsum("bchw,kc->bkhw", feature_map, network.fc.weight)
    from_maps = maps.mean(dim=(2, 3)) + network.fc.bias
    torch.testing.assert_close(from_maps, logits, rtol=0, atol=1e-4 * logits.abs().max().item())
    # Every network pools what comes out of a ReLU.
    assert feature_map.min() >= 0
    assert feature_map.max() > 0


def test_the_lists_in_this_file_are_complete():
    assert set(list_networks()) == PUBLISHED_COUNTS.keys() | TORCHVISION_COUNTS.keys()
    assert list_networks() == sorted(list_networks())


def test_parameter_counts_are_the_published_ones(named_network):
    name, network = named_network
    published = PUBLISHED_COUNTS | TORCHVISION_COUNTS
    assert sum(parameter.numel() for parameter in network.parameters()) == published[name]


def test_shapes_at_32_px(named_network):
    check_network(*named_network, 32, batch=3)


def test_shapes_at_64_px(named_network):
    check_network(*named_network, 64, batch=2)


@pytest.mark.parametrize("name", SMALL_AND_ONE_OF_EACH_FAMILY)
def test_shapes_at_224_px(name):
    check_network(name, build_network(name, 7).eval(), 224, batch=1)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "mobilenetv2", "shufflenetv2", "resnet18_cifar"])
def test_images_need_not_be_square_nor_powers_of_two(name):
    network = build_network(name, 5).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 40, 56)).shape == (2, 5)
        assert network(torch.zeros(1, 3, 33, 47)).shape == (1, 5)


@pytest.mark.parametrize(
    "name", ["resnet8", "wrn_16_1", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2", "resnet18_cifar"]
)
def test_each_image_is_classified_by_itself(name):
    network = build_network(name, 5).double().eval()
    fill(network)
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        together = network(images)
        alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(together[0], together[1])


def pseudo_random(key, shape):
    """A tensor of float64 in (-1, 1) that depends on its name and shape alone, on every machine."""
    count = math.prod(shape)
    return torch.sin(torch.arange(count, dtype=torch.float64) * 12.9898 + zlib.crc32(key.encode()) % 1000).reshape(
        shape
    )


def fill(network):
    """Gives a network weights and batch-norm statistics that depend on their names alone."""
    state = network.state_dict()
    for key, tensor in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        values = pseudo_random(key, tensor.shape)
        if tensor.dim() > 1:
            values = values * math.sqrt(2 / math.prod(tensor.shape[1:]))
        elif key.endswith(("weight", "running_var")):
            values = 1 + 0.5 * values
        state[key] = values
    network.load_state_dict(state)


OFFICIAL = json.loads((Path(__file__).parent / "official_logits.json").read_text())


@pytest.mark.parametrize("case", OFFICIAL["cases"], ids=lambda case: f"{case['name']}-{case['size']}px")
def test_logits_equal_the_official_implementation(case):
    network = build_network(case["name"], 10).double().eval()
    fill(network)
    with torch.no_grad():
        feature_map = network.forward_features(pseudo_random("images", (1, 3, case["size"], case["size"])))
        pooled = network.forward_head(feature_map, pre_logits=True)
        logits = network.forward_head(feature_map)
    torch.testing.assert_close(logits[0], torch.tensor(case["logits"], dtype=torch.float64), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(pooled[0, :10], torch.tensor(case["pooled"], dtype=torch.float64), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_imagenet_networks_equal_torchvisions(name):
    import torchvision

    theirs = torchvision.models.get_model(name, num_classes=9).eval()
    ours = build_network(name, 9).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize("name", [name for name in SMALL_AND_ONE_OF_EACH_FAMILY if name != "resnet18_cifar"])
def test_all_parameters_get_a_finite_gradient_in_training(name):
    network = build_network(name, 4)
    assert network.training
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    network(images).logsumexp(dim=1).sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize("name", SMALL_AND_ONE_OF_EACH_FAMILY)
def test_float64(name):
    network = build_network(name, 4).double().eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 32, 32, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("name", SMALL_AND_ONE_OF_EACH_FAMILY)
def test_initial_weights_are_a_function_of_the_seed_alone(name):
    torch.manual_seed(5)
    first = build_network(name, 4, seed=1).state_dict()
    torch.manual_seed(6)
    again = build_network(name, 4, seed=1).state_dict()
    other = build_network(name, 4, seed=2).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])
    convolutions = [key for key, tensor in first.items() if tensor.dim() == 4]
    assert not any(torch.equal(first[key], other[key]) for key in convolutions)


@pytest.mark.parametrize("name", ["resnet8", "vgg8", "resnet18", "torchvision/squeezenet1_1", "timm/resnet10t"])
def test_building_does_not_touch_the_global_generator(name):
    before = torch.get_rng_state()
    build_network(name, 4, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_default_device_does_not_change_the_initial_weights():
    with torch.device("meta"):
        network = build_network("resnet8", 4)
    assert network.fc.weight.device.type == "cpu"
    assert torch.equal(network.fc.weight, build_network("resnet8", 4).fc.weight)


@pytest.mark.parametrize("name", ["resnet8x4", "wrn_16_2", "vgg8", "mobilenetv2", "resnet18_cifar"])
def test_convolutions_start_with_kaiming_fan_out(name):
    for key, module in build_network(name, 10).named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 20_000:
            expected = math.sqrt(2 / (math.prod(module.kernel_size) * module.out_channels))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05), key


@pytest.mark.parametrize("count", [0, -3, 2.0, True, "10"])
def test_impossible_number_of_classes(count):
    with pytest.raises(InputError, match="num_classes must be an integer of at least 1, got"):
        build_network("resnet8", count)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("WRN-40-2", "wrn_40_2"),
        ("ResNet50", "resnet50"),
        ("resnet50cifar", "resnet50_cifar"),
        ("ShuffleV2", "shufflenetv2"),
    ],
)
def test_unknown_names_get_a_suggestion(name, near):
    with pytest.raises(InputError, match=rf"Unknown network '{name}'\. Did you mean '{near}'\?.*timm/<name>"):
        build_network(name, 10)


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_name_is_a_string(name):
    with pytest.raises(InputError, match="must be a non-empty string"):
        build_network(name, 10)


def test_importing_the_zoo_imports_no_other_library():
    code = "import sys, tmkd_plugin.zoo; print([m for m in ('torchvision', 'timm', 'safetensors') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
