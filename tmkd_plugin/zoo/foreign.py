"""Networks of timm, of torchvision, and of the user's own code."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from torch import Tensor, nn

from tmkd_plugin.errors import InputError

# torchvision's networks with auxiliary classifiers return a tuple while training unless these are left out.
AUXILIARY_HEADS = ("googlenet", "inception_v3")


def build_timm(name: str, num_classes: int, pretrained: bool, image_size: int | None) -> nn.Module:
    """Builds ``timm.create_model(name)`` with a classifier for ``num_classes``.

    Args:
        name: timm's name, with or without the tag of its weights: ``resnet50.a1_in1k``.
        num_classes: K.
        pretrained: Load timm's weights for that tag, or its default ones.
        image_size: For networks of a fixed input size, in pixels; ignored by the others.

    Returns:
        timm's network.

    Raises:
        InputError: No such name or tag, no weights, or the weights can't be downloaded.
    """
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(name) or (tag and name not in timm.list_models(architecture + ".*", pretrained=True)):
        names = (
            timm.list_models(architecture + ".*", pretrained=True)
            if timm.is_model(architecture)
            else timm.list_models()
        )
        raise _unknown("timm", name, names, "timm.list_models(pretrained=True)")
    config = timm.get_pretrained_cfg(name)
    if pretrained and not config.has_weights:
        raise InputError(
            f"timm publishes no pretrained weights for '{name}'. Leave out pretrained, or give a checkpoint."
        )
    fixed_size = {"img_size": image_size} if image_size is not None and config.fixed_input_size else {}
    try:
        network: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **fixed_size)
    except Exception as error:
        if not pretrained:
            raise
        raise _not_downloaded(f"timm/{name}", _hub_folder(), error) from error
    return network


def build_torchvision(name: str, num_classes: int, pretrained: bool, image_size: int | None) -> nn.Module:
    """Builds one of torchvision's classification networks with a classifier for ``num_classes``.

    Args:
        name: torchvision's name, with or without the name of its weights: ``resnet50.IMAGENET1K_V1``.
        num_classes: K.
        pretrained: Load these weights, or torchvision's default ones.
        image_size: For vision transformers, in pixels; ignored by the others.

    Returns:
        torchvision's network, without auxiliary classifiers.

    Raises:
        InputError: No such name or weights, or the weights can't be downloaded or don't fit ``image_size``.
    """
    from torchvision import models

    architecture, _, tag = name.partition(".")
    known = models.list_models(module=models)
    if architecture not in known:
        raise _unknown("torchvision", name, known, "torchvision.models.list_models(module=torchvision.models)")
    published = models.get_model_weights(architecture)
    if tag and tag not in published.__members__:
        names = [f"{architecture}.{member}" for member in published.__members__]
        raise _unknown("torchvision", name, names, f"torchvision.models.get_model_weights('{architecture}')")
    options: dict[str, Any] = {"aux_logits": False} if architecture in AUXILIARY_HEADS else {}
    if image_size is not None and architecture.startswith("vit_"):
        options["image_size"] = image_size
    if not pretrained:
        if architecture in AUXILIARY_HEADS:
            options["init_weights"] = True
        return _torchvision_model(architecture, num_classes=num_classes, **options)
    try:
        network = _torchvision_model(architecture, weights=published[tag or "DEFAULT"], **options)
    except ValueError as error:
        # torchvision checks its arguments against the weights before it downloads them.
        raise InputError(f"The pretrained weights of 'torchvision/{name}' fix an argument: {error}") from error
    except Exception as error:
        raise _not_downloaded(f"torchvision/{name}", _torch_folder(), error) from error
    _replace_classifier(network, num_classes)
    return network


def _torchvision_model(architecture: str, **options: Any) -> nn.Module:
    from torchvision import models

    network: nn.Module = models.get_model(architecture, **options)
    return network


def torchvision_weights(architecture: str, weights: str) -> dict[str, Tensor]:
    """Returns the state dict that torchvision publishes, from its cache or by a download.

    Raises:
        InputError: The weights can't be downloaded.
    """
    from torchvision import models

    try:
        published = models.get_model_weights(architecture)[weights]
        return dict(published.get_state_dict(progress=False, check_hash=True))
    except Exception as error:
        raise _not_downloaded(architecture, _torch_folder(), error) from error


def build_users(path: str, num_classes: int) -> nn.Module:
    """Builds a network by calling ``package.module:callable`` with ``num_classes=``.

    Raises:
        InputError: The module or the callable does not exist, can't be called like that, or returns no ``nn.Module``.
    """
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"Network '{path}': the module '{module_name}' can't be imported ({error}). "
            "Install it, or put its folder into PYTHONPATH."
        ) from error
    constructor = getattr(module, attribute, None)
    if not callable(constructor):
        near = difflib.get_close_matches(attribute, dir(module), n=1, cutoff=0.5)
        suggestion = f" Did you mean '{near[0]}'?" if near else ""
        raise InputError(f"Network '{path}': '{module_name}' has no callable '{attribute}'.{suggestion}")
    try:
        network = constructor(num_classes=num_classes)
    except TypeError as error:
        raise InputError(
            f"Network '{path}' can't be called as {attribute}(num_classes={num_classes}): {error}."
        ) from error
    if not isinstance(network, nn.Module):
        raise InputError(f"Network '{path}' returned a {type(network).__name__}, expected a torch.nn.Module.")
    return network


def _replace_classifier(network: nn.Module, num_classes: int) -> None:
    """Puts a new last layer in place of torchvision's (a linear layer; a 1x1 convolution in SqueezeNet)."""
    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    name, old = layers[-1]
    bias = old.bias is not None
    new: nn.Module
    if isinstance(old, nn.Linear):
        if old.out_features == num_classes:
            return
        new = nn.Linear(old.in_features, num_classes, bias=bias)
    else:
        if old.out_channels == num_classes:
            return
        new = nn.Conv2d(old.in_channels, num_classes, kernel_size=1, bias=bias)
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, new)


def _unknown(library: str, name: str, known: list[str], listing: str) -> InputError:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    quoted = " or ".join(f"'{library}/{match}'" for match in near)
    suggestion = f" Did you mean {quoted}?" if near else ""
    return InputError(f"Unknown network '{library}/{name}'.{suggestion} {listing} lists all.")


def _not_downloaded(name: str, folder: str, error: Exception) -> InputError:
    cause = f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__
    return InputError(
        f"The pretrained weights of '{name}' could not be loaded ({cause}). They are downloaded once and kept in "
        f"{folder}: run this once with a network connection, or copy that folder from a machine that has them; "
        "or leave out pretrained and give a file with weights as checkpoint."
    )


def _torch_folder() -> str:
    import torch.hub

    return f"{torch.hub.get_dir()}/checkpoints"


def _hub_folder() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)
