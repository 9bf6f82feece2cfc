"""A network by its name, ready to train: seeded, pretrained or from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tmkd_plugin.errors import InputError, unknown_name
from tmkd_plugin.randomness import forked_random_state
from tmkd_plugin.zoo import foreign
from tmkd_plugin.zoo.checkpoint import load_checkpoint
from tmkd_plugin.zoo.registry import NETWORKS, list_networks

# Those of our names for which torchvision publishes weights.
PRETRAINED = ("resnet18", "resnet34", "resnet50")


def build_network(
    name: str,
    num_classes: int,
    *,
    pretrained: bool = False,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    image_size: int | None = None,
) -> nn.Module:
    """Builds a network on the CPU, in training mode.

    Args:
        name: One of ``list_networks()``; ``timm/<name>`` or ``timm/<name>.<tag>``; ``torchvision/<name>`` or
            ``torchvision/<name>.<weights>``; ``package.module:callable``, which is called with ``num_classes=``.
        num_classes: The width of the classifier, K >= 1.
        pretrained: Load ImageNet weights (a download, once) under a new classifier where K differs from theirs.
            ``resnet18``, ``resnet34`` and ``resnet50`` get torchvision's IMAGENET1K_V1, the plain recipe that
            distillation papers start from; ``torchvision/<name>`` gets torchvision's default ones.
        seed: The initial weights are a function of it, of the name and of ``num_classes``, never of the global
            generator, which is not touched.
        checkpoint: A file with weights to load, see ``load_checkpoint``.
        image_size: Height and width of the images in pixels. Only networks that are built for one size use it (ViT,
            Swin, MLP-Mixer); without it they take the size of their pretrained weights.

    Returns:
        The network; ours have ``forward_features`` and ``forward_head`` (``ConvNet``).

    Raises:
        InputError: The name is unknown, the number of classes is impossible, pretrained weights don't exist or can't be
            downloaded, or the checkpoint doesn't fit.
    """
    _check_arguments(name, num_classes, pretrained, checkpoint)
    # A default device of the caller's would draw from another generator than the one that is seeded here.
    with forked_random_state(seed, "network initialisation"), torch.device("cpu"):
        network = _build(name, num_classes, pretrained, image_size)
    if checkpoint is not None:
        load_checkpoint(network, checkpoint, name=name)
    return network


def _build(name: str, num_classes: int, pretrained: bool, image_size: int | None) -> nn.Module:
    if name in NETWORKS:
        network = NETWORKS[name](num_classes)
        if pretrained:
            _load_imagenet_weights(name, network)
        return network
    if ":" in name and "/" not in name:
        if pretrained:
            raise _no_weights(name)
        return foreign.build_users(name, num_classes)
    library, _, foreign_name = name.partition("/")
    if library == "timm":
        return foreign.build_timm(foreign_name, num_classes, pretrained, image_size)
    if library == "torchvision":
        return foreign.build_torchvision(foreign_name, num_classes, pretrained, image_size)
    raise InputError(
        f"{unknown_name('network', name, list_networks())} Networks of other libraries are written timm/<name> and "
        "torchvision/<name>, your own ones package.module:callable."
    )


def _load_imagenet_weights(name: str, network: nn.Module) -> None:
    if name not in PRETRAINED:
        raise _no_weights(name)
    weights = foreign.torchvision_weights(name, "IMAGENET1K_V1")
    own = network.state_dict()
    if weights["fc.weight"].shape != own["fc.weight"].shape:
        weights |= {"fc.weight": own["fc.weight"], "fc.bias": own["fc.bias"]}
    network.load_state_dict(weights)


def _no_weights(name: str) -> InputError:
    return InputError(
        f"There are no pretrained weights for '{name}', only for {', '.join(PRETRAINED)}, torchvision/<name> and "
        "timm/<name>. Leave out pretrained, or give a file with weights as checkpoint."
    )


def _check_arguments(name: str, num_classes: int, pretrained: bool, checkpoint: str | Path | None) -> None:
    if not isinstance(name, str) or not name:
        raise InputError(f"The network's name must be a non-empty string such as 'resnet8x4', got {name!r}.")
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 1:
        raise InputError(f"num_classes must be an integer of at least 1, got {num_classes!r}.")
    if pretrained and checkpoint is not None:
        raise InputError(
            f"Network '{name}': pretrained weights and the checkpoint '{checkpoint}' were both asked for; the second "
            "would overwrite the first. Give one of them."
        )
