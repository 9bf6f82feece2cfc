"""Prompts -> text embeddings with open_clip, from a named model, a local checkpoint folder or a weights file.

open_clip takes seconds to import and its text towers hundreds of megabytes: it is imported here alone, when embeddings have
to be computed, and the model is dropped afterwards.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.metadata
import json
import logging
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tmkd_plugin.errors import InputError, unknown_name
from tmkd_plugin.prompts import shortened
from tmkd_plugin.randomness import forked_random_state

if TYPE_CHECKING:
    from open_clip import CLIP

#: The paper's text encoder (CLIP ViT-B/32) with the activation that OpenAI's weights were trained with.
DEFAULT_TEXT_MODEL = "ViT-B-32-quickgelu/openai"

_CONFIG_NAME = "open_clip_config.json"
_WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pth")
# The order in which open_clip chooses where a folder has several.
_WEIGHTS_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
_PROMPTS_AT_ONCE = 256
_PROBE_SECONDS = 5.0


@dataclass(frozen=True)
class ClipSource:
    """Where a CLIP model comes from; exactly one of ``tag``, ``weights`` or a folder as ``model``.

    Attributes:
        label: What the user wrote.
        model: open_clip's name of the configuration, or ``local-dir:FOLDER``.
        tag: The pretrained tag of open_clip, downloaded where it is not in the hub's own cache.
        weights: A file of weights on this machine.
    """

    label: str
    model: str
    tag: str | None = None
    weights: Path | None = None

    def key(self) -> dict[str, str]:
        """Returns what identifies the weights: the tag, or the sha256 of the file (and of a folder's configuration)."""
        key = {"open_clip": importlib.metadata.version("open_clip_torch")}
        if self.tag is not None:
            return key | {"model": self.model, "pretrained": self.tag}
        folder = self.model.removeprefix("local-dir:")
        model = self.model if folder == self.model else _sha256(Path(folder) / _CONFIG_NAME)
        return key | {"model": model, "weights": _sha256(self.weights) if self.weights else ""}


def parse_model_and_tag(text: str) -> ClipSource:
    """Reads ``MODEL/PRETRAINED`` or ``MODEL=/path/to/weights``.

    Raises:
        InputError: If there is neither ``/`` nor ``=``, or the weights file does not exist.
    """
    model, equals, path = text.partition("=")
    if equals:
        weights = Path(path).expanduser()
        if not weights.is_file():
            raise InputError(f"The weights file of the text source '{text}' does not exist: {weights}.")
        return ClipSource(text, model, weights=weights)
    model, _, tag = text.rpartition("/")
    # The same spellings that open_clip takes for one model: ViT-B/32 and ViT-B-32, laion2b-e16 and laion2b_e16.
    return ClipSource(text, model.replace("/", "-"), tag=tag.lower().replace("-", "_"))


def local_checkpoint(folder: Path) -> ClipSource:
    """Reads a local open_clip checkpoint: a folder with ``open_clip_config.json`` and weights beside it.

    Raises:
        InputError: If the configuration is missing or not open_clip's, or there are no weights (open_clip would go on with
            random ones).
    """
    there = sorted(path.name for path in folder.iterdir())
    if _CONFIG_NAME not in there:
        raise InputError(
            f"The text source {folder} is no open_clip checkpoint: it has no {_CONFIG_NAME}."
            f" There: {shortened(there) or 'nothing'}."
        )
    try:
        model_config = json.loads((folder / _CONFIG_NAME).read_text(encoding="utf-8"))["model_cfg"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / _CONFIG_NAME} is no configuration of open_clip: expected JSON with the entry 'model_cfg' ({error!r})."
        ) from error
    if not isinstance(model_config, dict):
        raise InputError(f"{folder / _CONFIG_NAME} is no configuration of open_clip: 'model_cfg' is no mapping.")
    candidates = [name for name in there if name.endswith(_WEIGHTS_SUFFIXES)]
    chosen = [name for name in _WEIGHTS_NAMES if name in candidates] or candidates
    if not chosen or (len(chosen) > 1 and chosen[0] not in _WEIGHTS_NAMES):
        raise InputError(
            f"The text source {folder} has {', '.join(chosen) or 'no weights'} beside {_CONFIG_NAME}:"
            f" expected one file of weights, {_WEIGHTS_NAMES[0]}."
        )
    return ClipSource(str(folder), f"local-dir:{folder}", weights=folder / chosen[0])


def encode_prompts(source: ClipSource, prompts: Sequence[str]) -> torch.Tensor:
    """Encodes prompts with the text tower of a CLIP model; the global random state is left as it is.

    Returns:
        (N, D) float32 on the CPU, not normalised.

    Raises:
        InputError: As ``load_clip`` does.
    """
    model, tokenizer = load_clip(source)
    with torch.no_grad():
        tokens = tokenizer(list(prompts))
        return torch.cat([model.encode_text(part).float() for part in torch.split(tokens, _PROMPTS_AT_ONCE)])


def load_clip(source: ClipSource) -> tuple[CLIP, Callable[[list[str]], torch.Tensor]]:
    """Loads a CLIP model in eval mode, on the CPU, in float32, and its tokenizer.

    Raises:
        InputError: For an unknown model or tag (nearest match suggested), a configuration without the QuickGELU that the
            weights were trained with, or weights that do not fit; a ``DownloadError`` if they can't be had.
    """
    import open_clip

    in_folder = source.model.startswith("local-dir:")
    if not in_folder:
        _check_names(source.model, source.tag)
    offline = source.tag is not None and not _hub_is_reachable()
    pretrained = source.tag or (None if in_folder else str(source.weights))
    try:
        with (
            forked_random_state(0, "weights that the checkpoint replaces"),
            _no_root_logging(),
            _hub_offline() if offline else contextlib.nullcontext(),
        ):
            model = open_clip.create_model(source.model, pretrained=pretrained)
            tokenizer = open_clip.get_tokenizer(source.model)
    except (
        Exception
    ) as error:  # open_clip, torch, safetensors and the hub raise anything from OSError to AssertionError
        if source.tag is not None:
            reason = "there is no network" if offline else f"they could not be downloaded or loaded ({error})"
            raise DownloadError(f"The weights of '{source.label}' are not on this machine and {reason}.") from error
        raise InputError(
            f"The weights {source.weights} can't be loaded into '{source.model}': expected a state dict of that very"
            f" configuration, as safetensors or torch.save. {type(error).__name__}: {str(error)[:500]}"
        ) from error
    return model.eval().requires_grad_(False), tokenizer


class DownloadError(InputError):
    """The weights are not on this machine and can't be downloaded."""


def command_for_another_machine(label: str, class_names: Sequence[str]) -> str:
    """Returns what to do where a model can't be downloaded: the command to run, and where."""
    names = " ".join(map(shlex.quote, class_names)) if len(class_names) <= 30 else "NAME_1 NAME_2 ..."
    model = shlex.quote(label)
    return (
        "On a machine with network and this package run\n"
        f"    printf '%s\\n' {names} > classes.txt  # the {len(class_names)} class names, one a line, in order\n"
        f"    python -m tmkd_plugin.text_teacher --classes classes.txt --model {model} --output text.safetensors\n"
        "bring text.safetensors here and give it as the text source (TEXT=/path/to/text.safetensors). Other text sources:"
        " a folder with an open_clip checkpoint, MODEL=/path/to/weights, or a .npz file of embeddings."
    )


def _check_names(model: str, tag: str | None) -> None:
    """Tells a misspelt model or tag from a missing network, and refuses the wrong activation function."""
    import open_clip

    if model not in open_clip.list_models():
        raise _unknown_model(model)
    if tag is None:
        return
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not tags:
        raise InputError(f"open_clip knows no pretrained weights for '{model}'; give a file: {model}=/path/to/weights.")
    if tag not in tags:
        raise unknown_name(f"pretrained tag of {model}", tag, tags)
    trained_with_quickgelu = open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False)
    has_quickgelu = open_clip.get_model_config(model).get("quick_gelu", False)
    right = f"{model}-quickgelu"
    # https://github.com/mlfoundations/open_clip/issues/771: loads without complaint and gives other embeddings.
    if trained_with_quickgelu and not has_quickgelu and right in open_clip.list_models():
        raise InputError(
            f"The weights '{tag}' were trained with QuickGELU, which the configuration '{model}' does not have, so that its"
            f" embeddings would be wrong. Use '{right}/{tag}'."
        )


def _unknown_model(model: str) -> InputError:
    import open_clip

    known = open_clip.list_models()
    lower = {name.lower(): name for name in known}
    near = [lower[name] for name in difflib.get_close_matches(model.lower(), lower, n=5, cutoff=0.4)]
    suggestion = f" Did you mean '{near[0]}'? Near it: {', '.join(near)}." if near else ""
    return InputError(
        f"Unknown open_clip model '{model}'.{suggestion} A text source is MODEL/PRETRAINED, such as"
        f" '{DEFAULT_TEXT_MODEL}', or a path; all {len(known)} models: python -c 'import open_clip;"
        " print(open_clip.list_pretrained())'."
    )


def _hub_is_reachable() -> bool:
    """Asks once, for at most a few seconds: the hub's own retries take three quarters of a minute to give up."""
    import ssl
    import urllib.error
    import urllib.request

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=_PROBE_SECONDS).close()
    except urllib.error.HTTPError as error:
        return error.code not in (502, 503, 504)  # those are a proxy's words for "not reachable"
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # certificates are the hub client's business
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _hub_offline() -> Iterator[None]:
    """Lets the hub's client use what it has cached and fail at once otherwise."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def _no_root_logging() -> Iterator[None]:
    """Keeps open_clip's calls of ``logging.info`` from installing a handler on the root logger."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()
