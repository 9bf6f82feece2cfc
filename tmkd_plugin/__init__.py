"""Text-guided multi-view knowledge distillation (TMKD, arXiv 2603.24208) for any distiller.

Three lines wrap a distiller::

    from tmkd_plugin import TMKDEnhancer
    distiller = TMKDEnhancer(distiller, class_names=dataset.classes)
    loss = distiller(images, labels)["loss"]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tmkd_plugin.errors import InputError, NonFiniteLossError, RunError, TmkdError, TmkdNotice
from tmkd_plugin.version import __version__

if TYPE_CHECKING:
    from tmkd_plugin.distiller import Distiller
    from tmkd_plugin.enhancer import TMKDEnhancer
    from tmkd_plugin.richkd import RichKDEnhancer
    from tmkd_plugin.text_teacher import TextEmbeddings, text_embeddings

__all__ = [
    "Distiller",
    "InputError",
    "NonFiniteLossError",
    "RichKDEnhancer",
    "RunError",
    "TMKDEnhancer",
    "TextEmbeddings",
    "TmkdError",
    "TmkdNotice",
    "__version__",
    "text_embeddings",
]

# What needs torch is imported when it is asked for, so that `tmkd --help` need not wait for torch.
_HOMES = {
    "Distiller": "tmkd_plugin.distiller",
    "RichKDEnhancer": "tmkd_plugin.richkd",
    "TMKDEnhancer": "tmkd_plugin.enhancer",
    "TextEmbeddings": "tmkd_plugin.text_teacher",
    "text_embeddings": "tmkd_plugin.text_teacher",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tmkd_plugin' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
