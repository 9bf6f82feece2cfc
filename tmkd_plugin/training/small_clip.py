"""A small CLIP of our own: a real open_clip model of tiny configuration, trained on the images at hand.

It is the text teacher of the embedded data set, for which no download may be needed: a ModifiedResNet image tower, a text
transformer, open_clip's tokenizer and contrastive loss; every view of an image is paired with that view's own prompt. The
result is a local open_clip checkpoint like any other.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from tmkd_plugin.errors import InputError, NonFiniteLossError
from tmkd_plugin.prompts import PROMPTS, check_class_names, prompts_for
from tmkd_plugin.randomness import forked_random_state, generator_for
from tmkd_plugin.text_cache import default_cache_dir, digest_of
from tmkd_plugin.text_encoder import load_clip, local_checkpoint
from tmkd_plugin.training.small_clip_cache import digest_of_tensors, library_versions, read_record, write_checkpoint
from tmkd_plugin.training.small_clip_images import IMAGE_SIZE as IMAGE_SIZE
from tmkd_plugin.training.small_clip_images import check_images
from tmkd_plugin.views import ViewSettings, make_views

if TYPE_CHECKING:
    from open_clip import CLIP

#: open_clip's configuration of both towers; the vocabulary is that of open_clip's tokenizer.
MODEL_CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": IMAGE_SIZE, "layers": [1, 1, 1, 1], "width": 12},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
#: Chosen on the digits for run time and for clearing 90 % zero-shot accuracy; every variant tried stayed above 95 %.
RECIPE: dict[str, float] = {
    "pairs_per_step": 120,
    "learning_rate": 3e-3,
    "warm_up_fraction": 0.1,
    "weight_decay": 0.05,
    "shift_pixels": 2,
    "largest_logit_scale": 100.0,  # as in CLIP
}
_PREPROCESSING = {"size": IMAGE_SIZE, "mean": [0.5] * 3, "std": [0.5] * 3}


@dataclass(frozen=True)
class SmallClip:
    """A trained small CLIP.

    Attributes:
        folder: The local open_clip checkpoint, a text source for ``text_embeddings``.
        validation_accuracy: Zero-shot accuracy of the chosen epoch on the validation images, percent.
        epoch: The chosen epoch, counted from 1.
    """

    folder: Path
    validation_accuracy: float
    epoch: int


def train_small_clip(
    train_images: torch.Tensor,
    train_labels: torch.Tensor,
    validation_images: torch.Tensor,
    validation_labels: torch.Tensor,
    class_names: Sequence[str],
    *,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    epochs: int = 8,
    view_settings: ViewSettings | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> SmallClip:
    """Trains a small CLIP once and keeps it; the same arguments find it again without training.

    The epoch is chosen by zero-shot accuracy on the validation images (of equal ones the last). The training runs on one
    thread, so that the same seed gives the same bits whatever the thread count, and leaves the global random state alone.

    Args:
        train_images: (N, 3, 32, 32) uint8; see :func:`~tmkd_plugin.training.small_clip_images.images_of`.
        train_labels: (N,) int64 in [0, K); every class must occur.
        validation_images: (M, 3, 32, 32) uint8.
        validation_labels: (M,) int64 in [0, K).
        class_names: K names, in the order of the labels.
        seed: Decides initialisation, order and shifts.
        cache_dir: Where the checkpoint's folder is kept; default: ``$TMKD_CACHE``, else ``~/.cache/tmkd``.
        epochs: Passes over the training images, at least 1.
        view_settings: How the views of the training images are made; None for the defaults.
        progress: Called after each epoch with its number, counted from 1, and its validation accuracy in percent.

    Raises:
        InputError: For images, labels or names that can't be used, and for a damaged checkpoint in the cache.
        NonFiniteLossError: If the training diverges.
    """
    names = check_class_names(class_names)
    check_images(train_images, train_labels, names, "training", every_class=True)
    check_images(validation_images, validation_labels, names, "validation", every_class=False)
    if epochs < 1:
        raise InputError(f"The number of epochs must be at least 1; given: {epochs}.")
    data = (train_images, train_labels, validation_images, validation_labels)
    key = {"data": digest_of_tensors(data), "class_names": names, "prompts": PROMPTS, "seed": seed, "epochs": epochs}
    settings = view_settings or ViewSettings()
    key |= {"model": MODEL_CONFIG, "recipe": RECIPE, "views": asdict(settings), "libraries": library_versions()}
    cache = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
    folder = cache / f"small-clip-{digest_of(key)[:32]}"
    if not folder.is_dir():
        with _one_thread():
            weights, history = _train(*data, names, seed, epochs, settings, progress)
        write_checkpoint(folder, weights, {"model_cfg": MODEL_CONFIG, "preprocess_cfg": _PREPROCESSING}, history, key)
    record = read_record(folder)
    return SmallClip(folder, record.validation_accuracy, record.epoch)


def zero_shot_accuracy(
    model: str | Path | CLIP, images: torch.Tensor, labels: torch.Tensor, class_names: Sequence[str]
) -> float:
    """Returns how many images are nearest, by cosine, to the RGB view's prompt of their class, in percent.

    Args:
        model: The folder of a checkpoint that ``train_small_clip`` wrote, or the model itself.
        images: (N, 3, 32, 32) uint8.
        labels: (N,) int64 in [0, K).
        class_names: K names, in the order of the labels.

    Raises:
        InputError: For images, labels, names or a folder that can't be used.
    """
    names = check_class_names(class_names)
    check_images(images, labels, names, "test", every_class=False)
    network = load_clip(local_checkpoint(Path(model)))[0] if isinstance(model, (str, Path)) else model
    was_training = network.training
    network.eval()
    with torch.no_grad():
        text = network.encode_text(_tokens(names, ["rgb"]), normalize=True)
        parts = [network.encode_image(part, normalize=True) for part in torch.split(_normalised(images.float()), 512)]
    network.train(was_training)
    correct = (torch.cat(parts) @ text.T).argmax(dim=1) == labels
    return 100.0 * float(correct.double().mean())


def _train(
    train_images: torch.Tensor,
    train_labels: torch.Tensor,
    validation_images: torch.Tensor,
    validation_labels: torch.Tensor,
    class_names: list[str],
    seed: int,
    epochs: int,
    view_settings: ViewSettings,
    progress: Callable[[int, float], None] | None,
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Returns the weights of the best epoch and the validation accuracy of every epoch, percent."""
    import open_clip

    with forked_random_state(seed, "small CLIP initialisation"):
        model = open_clip.CLIP(**MODEL_CONFIG)
    views = _views_of(train_images, view_settings)
    tokens = _tokens(class_names, list(PROMPTS))
    contrast = open_clip.ClipLoss()
    groups_per_step = max(1, int(RECIPE["pairs_per_step"]) // len(tokens))
    steps = -(-_groups_per_epoch(train_labels, class_names) // groups_per_step)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RECIPE["learning_rate"], weight_decay=RECIPE["weight_decay"], fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, functools.partial(_rate, total=epochs * steps))
    history: list[float] = []
    best: dict[str, torch.Tensor] = {}
    for epoch in range(1, epochs + 1):
        model.train()
        generator = generator_for(seed, "small CLIP batches", epoch)
        order = _balanced_groups(train_labels, len(class_names), len(PROMPTS), generator)
        for groups in torch.split(order, groups_per_step):
            loss = _contrastive_loss(model, contrast, _pixels_of(views, groups, generator), tokens)
            if not loss.isfinite():
                raise NonFiniteLossError(f"The loss of the small CLIP became {loss.item()} in epoch {epoch}.")
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=torch.tensor(RECIPE["largest_logit_scale"]).log().item())
        history.append(zero_shot_accuracy(model, validation_images, validation_labels, class_names))
        if history[-1] == max(history):
            best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if progress is not None:
            progress(epoch, history[-1])
    return best, history


def _rate(step: int, total: int) -> float:
    """Returns the factor of the learning rate: linear warm-up, then half a cosine down to nearly 0."""
    warm_up = max(1, round(RECIPE["warm_up_fraction"] * total))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 + 0.5 * math.cos(math.pi * (step + 1 - warm_up) / (total + 1 - warm_up))


def _contrastive_loss(
    model: CLIP, contrast: Callable[..., torch.Tensor], images: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """Returns CLIP's loss, averaged over the groups: ``images`` (G * P, 3, H, W) belong to ``tokens`` (P, L), G times."""
    text = model.encode_text(tokens, normalize=True)
    groups = model.encode_image(images, normalize=True).split(len(tokens))
    scale = model.logit_scale.exp()
    return torch.stack([contrast(group, text, scale) for group in groups]).mean()


def _balanced_groups(
    labels: torch.Tensor, num_classes: int, num_views: int, generator: torch.Generator
) -> torch.Tensor:
    """Draws an epoch's images as groups which hold every (view, class) once: (G, V, K) indices into the images.

    All prompts of a group differ, so no image meets its own prompt as a negative, as it would in a plain batch, where
    images of one class are each other's negatives.
    """
    num_groups = -(-len(labels) // num_classes)
    columns = []
    for _ in range(num_views):
        for label in range(num_classes):
            members = (labels == label).nonzero()[:, 0]
            rounds = -(-num_groups // len(members))
            shuffled = [members[torch.randperm(len(members), generator=generator)] for _ in range(rounds)]
            columns.append(torch.cat(shuffled)[:num_groups])
    return torch.stack(columns, dim=1).view(num_groups, num_views, num_classes)


def _groups_per_epoch(labels: torch.Tensor, class_names: Sequence[str]) -> int:
    return -(-len(labels) // len(class_names))


def _pixels_of(views: torch.Tensor, groups: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gathers (G, V, K) images from (V, N, 3, H, W), each moved by a few pixels: (G * V * K, 3, H, W)."""
    images = views[torch.arange(len(views))[None, :, None], groups].flatten(0, 2)
    limit, size = int(RECIPE["shift_pixels"]), images.shape[-1]
    padded = F.pad(images, (limit,) * 4, mode="replicate")
    offsets = torch.randint(0, 2 * limit + 1, (2, len(images), 1), generator=generator) + torch.arange(size)
    moved = padded[torch.arange(len(images))[:, None, None], :, offsets[0][:, :, None], offsets[1][:, None, :]]
    return moved.permute(0, 3, 1, 2).contiguous()


def _views_of(images: torch.Tensor, settings: ViewSettings) -> torch.Tensor:
    """Returns (V, N, 3, H, W) normalised pixels of every view, in the order of the prompts."""
    parts = [torch.stack(make_views(part, list(PROMPTS), settings)) for part in torch.split(images, 512)]
    return _normalised(torch.cat(parts, dim=1))


def _normalised(pixels: torch.Tensor) -> torch.Tensor:
    return pixels / 127.5 - 1  # mean and standard deviation 0.5, as the checkpoint's configuration says


def _tokens(class_names: Sequence[str], views: Sequence[str]) -> torch.Tensor:
    """Returns (V * K, L) token numbers of open_clip's tokenizer."""
    import open_clip

    prompts = [prompt for view in views for prompt in prompts_for(class_names, view)]
    tokens: torch.Tensor = open_clip.tokenize(prompts, context_length=MODEL_CONFIG["text_cfg"]["context_length"])
    return tokens


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
