"""Networks by name: ours, timm's, torchvision's and the user's own."""

from tmkd_plugin.zoo.build import build_network
from tmkd_plugin.zoo.checkpoint import load_checkpoint
from tmkd_plugin.zoo.registry import list_networks

__all__ = ["build_network", "list_networks", "load_checkpoint"]
