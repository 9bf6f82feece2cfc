"""Checkpoints as the world writes them, and the errors for those that can't be used."""

import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tmkd_plugin.errors import InputError
from tmkd_plugin.zoo import build_network, load_checkpoint


class Trained:
    """A network with weights that no seed gives, in a file of any layout."""

    def __init__(self, name="resnet8", num_classes=5):
        self.name, self.num_classes = name, num_classes
        self.weights = build_network(name, num_classes, seed=99).state_dict()

    def check(self, path):
        network = build_network(self.name, self.num_classes, checkpoint=path)
        for key, tensor in network.state_dict().items():
            assert torch.equal(tensor, self.weights[key]), key


@pytest.fixture(scope="module")
def trained():
    return Trained()


def prefixed(weights, prefix):
    return {prefix + key: value for key, value in weights.items()}


@pytest.mark.parametrize("container", [None, "state_dict", "model", "net", "student", "model_state_dict"])
def test_where_the_weights_lie(container, trained, tmp_path):
    path = tmp_path / "weights.pth"
    content = {container: trained.weights, "epoch": 3, "optimizer": {"lr": 0.1}} if container else trained.weights
    torch.save(content, path)
    trained.check(path)


def test_containers_may_be_nested(trained, tmp_path):
    torch.save({"state_dict": {"student": trained.weights, "teacher": {}}, "epoch": 1}, tmp_path / "a.pt")
    trained.check(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "_orig_mod.",
        "student.",
        "module.student.",
        "student.module.",
        "_orig_mod.module.student.",
        "module.student._orig_mod.",
        "module.module.",
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_prefixes(prefix, suffix, trained, tmp_path):
    path = tmp_path / f"weights{suffix}"
    weights = prefixed(trained.weights, prefix)
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    trained.check(path)


def test_compiled_children(trained, tmp_path):
    weights = {
        re.sub(r"^(student\.layer\d)\.", r"\1._orig_mod.", key): v
        for key, v in prefixed(trained.weights, "student.").items()
    }
    assert any("layer1._orig_mod.0" in key for key in weights)
    torch.save(weights, tmp_path / "a.pth")
    trained.check(tmp_path / "a.pth")


def test_of_a_distiller_only_the_student_is_taken(trained, tmp_path):
    teacher = build_network("resnet8x4", 5).state_dict()
    heads = {"module.weight_net.weight": torch.zeros(3)}
    content = prefixed(trained.weights, "module.student.") | prefixed(teacher, "module.teacher.") | heads
    torch.save({"model": content}, tmp_path / "a.pth")
    trained.check(tmp_path / "a.pth")


def test_a_network_with_a_child_called_student_keeps_its_names(tmp_path):
    network = nn.ModuleDict({"student": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    other = nn.ModuleDict({"student": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    torch.save(other.state_dict(), tmp_path / "a.pth")
    load_checkpoint(network, tmp_path / "a.pth")
    assert torch.equal(network["student"].weight, other["student"].weight)
    assert torch.equal(network["other"].weight, other["other"].weight)


def official_spelling(name, key):
    """Returns CRD's name of one of our tensors."""
    if name.startswith("wrn"):
        return re.sub(r"^(block\d)\.", r"\1.layer.", key).replace(".shortcut.", ".convShortcut.")
    if name.startswith("vgg"):
        return re.sub(r"^blocks\.", "block", key).replace("fc.", "classifier.")
    if name.startswith("mobile"):
        return key.replace("fc.", "classifier.0.")
    return key.replace("fc.", "linear.").replace(".downsample.", ".shortcut.")


@pytest.mark.parametrize("name", ["wrn_16_1", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2", "resnet18_cifar"])
def test_checkpoints_of_the_official_networks(name, tmp_path):
    trained = Trained(name)
    renamed = {f"module.{official_spelling(name, key)}": value for key, value in trained.weights.items()}
    assert prefixed(trained.weights, "module.").keys() != renamed.keys()
    torch.save({"model": renamed, "epoch": 240}, tmp_path / "ckpt_epoch_240.pth")
    trained.check(tmp_path / "ckpt_epoch_240.pth")


def test_files_from_before_batch_counters(trained, tmp_path):
    old = {key: value for key, value in trained.weights.items() if not key.endswith("num_batches_tracked")}
    assert len(old) < len(trained.weights)
    torch.save(old, tmp_path / "old.pth")
    trained.check(tmp_path / "old.pth")


def test_half_precision_weights_are_converted(trained, tmp_path):
    torch.save(
        {key: v.half() if v.is_floating_point() else v for key, v in trained.weights.items()}, tmp_path / "a.pth"
    )
    network = build_network("resnet8", 5, checkpoint=tmp_path / "a.pth")
    assert network.fc.weight.dtype == torch.float32
    torch.testing.assert_close(network.fc.weight, trained.weights["fc.weight"], rtol=1e-3, atol=1e-3)


def refused(name, num_classes, path):
    """Returns the message, after checking that it names the file and that the network is unchanged."""
    network = build_network(name, num_classes)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_checkpoint(network, path, name=name)
    assert str(path) in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    return str(caught.value)


def test_another_number_of_classes(trained, tmp_path):
    torch.save(prefixed(trained.weights, "module."), tmp_path / "a.pth")
    message = refused("resnet8", 7, tmp_path / "a.pth")
    assert message.splitlines() == [
        f"Checkpoint '{tmp_path / 'a.pth'}' does not fit the network 'resnet8':",
        "  tensor     in the file  in the network",
        "  fc.weight  5x64         7x64",
        "  fc.bias    5            7",
        "Hint: the file is for 5 classes, the network for 7; build it with num_classes=5.",
    ]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("resnet50_cifar", "resnet50"), ("resnet18", "resnet18_cifar"), ("wrn_16_1", "wrn_16_2"), ("vgg8", "resnet8x4")],
)
def test_weights_of_another_network_of_ours_are_recognised(given, wanted, tmp_path):
    weights = {official_spelling(given, key): value for key, value in build_network(given, 3).state_dict().items()}
    torch.save(weights, tmp_path / "a.pth")
    message = refused(wanted, 4, tmp_path / "a.pth")
    assert message.endswith(f"Hint: the file's tensors are those of '{given}'.")
    assert message.count("those of") == 1
    if wanted == "resnet50":
        assert re.search(r"conv1\.weight +64x3x3x3 +64x3x7x7\n", message)


def test_building_with_a_checkpoint_that_does_not_fit_names_the_network(trained, tmp_path):
    torch.save(trained.weights, tmp_path / "a.pth")
    with pytest.raises(InputError, match="does not fit the network 'resnet14'"):
        build_network("resnet14", 5, checkpoint=tmp_path / "a.pth")


def test_missing_and_unexpected_names(trained, tmp_path):
    weights = dict(trained.weights)
    del weights["conv1.weight"]
    weights["head.extra"] = torch.zeros(3, 4)
    torch.save(weights, tmp_path / "a.pth")
    message = refused("resnet8", 5, tmp_path / "a.pth")
    assert re.search(r"conv1\.weight +missing +16x3x3x3\n", message)
    assert re.search(r"head\.extra +3x4 +unknown", message)
    assert len(message.splitlines()) == 4


def test_a_long_table_is_cut(tmp_path):
    torch.save(build_network("vgg8", 5).state_dict(), tmp_path / "a.pth")
    message = refused("resnet110", 5, tmp_path / "a.pth")
    assert re.search(r"\.\.\. and \d{3} more", message)
    assert len(message.splitlines()) < 20


def test_weights_that_are_not_finite(trained, tmp_path):
    weights = {key: value.clone() for key, value in trained.weights.items()}
    weights["layer2.0.conv1.weight"][0, 0, 0, 0] = torch.nan
    torch.save(weights, tmp_path / "a.pth")
    assert "'layer2.0.conv1.weight' holds NaN or infinite values" in refused("resnet8", 5, tmp_path / "a.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 100, -50])
def test_files_that_were_cut_short(suffix, keep, trained, tmp_path):
    path = tmp_path / f"a{suffix}"
    save_file(trained.weights, path) if suffix == ".safetensors" else torch.save(trained.weights, path)
    path.write_bytes(path.read_bytes()[:keep])
    assert "can't be read: it is damaged, cut short, or not written by" in refused("resnet8", 5, path)


def test_a_text_file(tmp_path):
    (tmp_path / "a.pth").write_text("hello, these are no weights\n")
    assert "can't be read" in refused("resnet8", 5, tmp_path / "a.pth")


class Malicious:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def test_a_pickle_that_runs_code(trained, tmp_path, capsys):
    torch.save({"state_dict": trained.weights, "payload": Malicious()}, tmp_path / "a.pth")
    message = refused("resnet8", 5, tmp_path / "a.pth")
    assert re.search(
        r"holds a Python object \(\S*print\).*refused.*torch\.save\(model\.state_dict\(\), path\)", message
    )
    assert "this must never be printed" not in capsys.readouterr().out


def test_a_whole_pickled_network(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "a.pth")
    assert "holds a Python object (torch.nn.modules.linear.Linear)" in refused("resnet8", 5, tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, expected a state dict"),
        (torch.zeros(3), "holds a Tensor, expected a state dict"),
        ({"epoch": 3, "weights": {}}, "holds no weights .*it has: epoch, weights"),
        ({}, "it has: nothing"),
    ],
)
def test_files_without_a_state_dict(content, message, tmp_path):
    torch.save(content, tmp_path / "a.pth")
    assert re.search(message, refused("resnet8", 5, tmp_path / "a.pth"))


def test_no_such_file(tmp_path):
    assert "There is no checkpoint file" in refused("resnet8", 5, tmp_path / "nothing.pth")
    assert "(it is a folder)" in refused("resnet8", 5, tmp_path)


def test_messages_name_the_networks_class_when_no_name_is_given(trained, tmp_path):
    torch.save(trained.weights, tmp_path / "a.pth")
    with pytest.raises(InputError, match="does not fit the network 'Linear'"):
        load_checkpoint(nn.Linear(2, 2), str(tmp_path / "a.pth"))
