"""CLIP as a second teacher: its image encoder against text prototypes of several prompts a class (RichKD, arXiv 2511.09286)."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmkd_plugin.clip_cache import read_clip_cache, write_clip_cache
from tmkd_plugin.errors import InputError, TmkdNotice
from tmkd_plugin.pixels import to_pixels
from tmkd_plugin.prompts import check_class_names, readable
from tmkd_plugin.text_cache import default_cache_dir
from tmkd_plugin.text_encoder import ClipSource, load_clip, local_checkpoint, parse_model_and_tag

if TYPE_CHECKING:
    from tmkd_plugin.data.dataset import Split

#: RichKD's CLIP with the activation that OpenAI's weights were trained with.
DEFAULT_CLIP_MODEL = "ViT-L-14-quickgelu/openai"

#: The official code's templates; ``{class}`` stands for the class name.
TEMPLATES = (
    "a photo of a {class}",
    "a blurry photo of a {class}",
    "a cropped photo of a {class}",
    "a close-up photo of a {class}",
    "a low resolution photo of a {class}",
    "a bright photo of a {class}",
    "a picture of a {class}",
    "a detailed image of a {class}",
    "a sketch of a {class}",
    "a natural photo of a {class} in the wild",
    "a realistic image of a {class}",
    "a high quality photo of a {class}",
)
_IMAGES_AT_ONCE = 256
_OPENAI_MEAN, _OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ClipOutput:
    """What CLIP says of a batch.

    Attributes:
        features: (B, D), image features of length 1.
        cosines: (B, K), with the text prototype of each class; no logit scale is applied.
    """

    features: Tensor
    cosines: Tensor


@dataclass(frozen=True)
class ClipAnswers:
    """What CLIP says of the images of a split, without augmentation.

    Attributes:
        features: (N, D) float32, rows of length 1.
        cosines: (N, K) float32.
        ids: (N,) int64, the images' ids, in any order.
        source: The CLIP in words.
    """

    features: Tensor
    cosines: Tensor
    ids: Tensor
    source: str

    def __post_init__(self) -> None:
        counts = {len(self.features), len(self.cosines), len(self.ids)}
        if self.features.ndim != 2 or self.cosines.ndim != 2 or self.ids.ndim != 1 or len(counts) > 1 or 0 in counts:
            raise InputError(
                "CLIP's answers must be features (N, D), cosines (N, K) and ids (N,), N at least 1, but are "
                f"{tuple(self.features.shape)}, {tuple(self.cosines.shape)} and {tuple(self.ids.shape)}."
            )

    @property
    def width(self) -> int:
        """D."""
        return self.features.shape[1]

    @property
    def num_classes(self) -> int:
        """K."""
        return self.cosines.shape[1]

    def rows(self) -> Tensor:
        """Returns the row of each id, (max id + 1,) int64, -1 for an id without an answer."""
        table = torch.full((int(self.ids.max()) + 1,), -1, dtype=torch.int64)
        table[self.ids.cpu()] = torch.arange(len(self.ids))
        return table

    @classmethod
    def stand_in(cls, ids: Tensor, num_classes: int, width: int = 64) -> ClipAnswers:
        """Returns answers of the right shapes that say nothing, for a trial before the CLIP itself is there."""
        features = torch.full((len(ids), width), width**-0.5)
        return cls(features, torch.zeros(len(ids), num_classes), ids, "stand-in")


class ClipTeacher(nn.Module):
    """A frozen CLIP that classifies images by the nearest text prototype.

    Args:
        model: An open_clip model; what its image tower expects is read off ``model.visual.preprocess_cfg``.
        prototypes: (K, D), rows of length 1; see :func:`text_prototypes`.
        source: The CLIP in words.
    """

    prototypes: Tensor

    def __init__(self, model: Any, prototypes: Tensor, source: str) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.register_buffer("prototypes", prototypes)
        self.source = source
        self.preprocessing = Preprocessing.of(model)

    @property
    def width(self) -> int:
        """Width D of the image features."""
        return self.prototypes.shape[1]

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.prototypes.shape[0]

    def train(self, mode: bool = True) -> ClipTeacher:
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, pixels: Tensor) -> ClipOutput:
        """Classifies images, without gradient.

        Args:
            pixels: uint8 (B, 3, H, W) of any size.
        """
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            prepared = self.preprocessing(pixels).to(self.prototypes.dtype)
            features = F.normalize(self.model.encode_image(prepared), dim=1)
            return ClipOutput(features, features @ self.prototypes.T)


@dataclass(frozen=True)
class Preprocessing:
    """Pixels as the image tower expects them: resized with antialiasing, cropped to the centre, normalised.

    Attributes:
        size: Height and width in pixels.
        mean: By channel, on the scale 0..1.
        std: By channel, on the scale 0..1.
        interpolation: ``"bicubic"`` or ``"bilinear"``.
        squash: Whether both sides are resized at once, instead of the shorter one with the rest cropped off.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    squash: bool = False

    @classmethod
    def of(cls, model: Any) -> Preprocessing:
        """Reads what an open_clip model expects."""
        given = dict(getattr(model.visual, "preprocess_cfg", {}))
        size = given.get("size") or model.visual.image_size
        height, width = (size, size) if isinstance(size, int) else size
        mean, std = (
            given.get("mean", (0.48145466, 0.4578275, 0.40821073)),
            given.get("std", (0.26862954, 0.26130258, 0.27577711)),
        )
        interpolation = given.get("interpolation", "bicubic")
        return cls(
            (int(height), int(width)),
            tuple(mean),
            tuple(std),
            interpolation if interpolation in ("bicubic", "bilinear") else "bicubic",
            given.get("resize_mode", "shortest") != "shortest",
        )

    def __call__(self, pixels: Tensor) -> Tensor:
        """Turns uint8 (B, 3, H, W) into float32 (B, 3, *size)."""
        values = pixels.float()
        height, width = self.size
        if values.shape[2:] != self.size:
            scale = max(height / values.shape[2], width / values.shape[3])
            # Rounded down as torchvision does, but for what floating point takes off a whole number.
            sides = (
                max(int(side * scale + 1e-6), target) for side, target in zip(values.shape[2:], self.size, strict=True)
            )
            resized = self.size if self.squash else tuple(sides)
            values = F.interpolate(values, size=resized, mode=self.interpolation, antialias=True, align_corners=False)
            top, left = (values.shape[2] - height) // 2, (values.shape[3] - width) // 2
            # Whole grey levels, as the image libraries give that CLIP was trained with.
            values = values[:, :, top : top + height, left : left + width].round().clamp(0, 255)
        mean = torch.tensor(self.mean, device=values.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=values.device).view(3, 1, 1)
        return values.div(255).sub(mean).div(std)


def prompts_of(class_name: str, templates: Sequence[str] = TEMPLATES) -> list[str]:
    """Returns the prompts of a class; underscores in its name become spaces."""
    return [template.replace("{class}", readable(class_name)) for template in templates]


def text_prototypes(encode: Callable[[list[str]], Tensor], class_names: Sequence[str]) -> Tensor:
    """Returns one prototype a class: embeddings of all templates normalised, averaged, normalised again.

    Args:
        encode: P prompts -> (P, D).
        class_names: K names.

    Returns:
        (K, D), rows of length 1.
    """
    means = [F.normalize(encode(prompts_of(name)), dim=1).mean(dim=0) for name in class_names]
    return F.normalize(torch.stack(means), dim=1)


def load_clip_teacher(source: str | Path, class_names: Sequence[str]) -> ClipTeacher:
    """Loads a CLIP and encodes the class names.

    Args:
        source: ``"MODEL/PRETRAINED"`` of open_clip, ``"MODEL=/path/to/weights"``, or the folder of a local checkpoint.
        class_names: K names in the order of the labels.

    Raises:
        InputError: The source can't be used, or its weights can't be had.
    """
    names = check_class_names(class_names)
    model, tokenizer = load_clip(clip_source(source))

    def encode(prompts: list[str]) -> Tensor:
        with torch.no_grad():
            embeddings: Tensor = model.encode_text(tokenizer(prompts)).float()
            return embeddings

    return ClipTeacher(model, text_prototypes(encode, names), str(source))


def clip_source(source: str | Path) -> ClipSource:
    """Reads what names a CLIP with both towers.

    Raises:
        InputError: It names none; a file of text embeddings has no image encoder.
    """
    text = str(source).strip().removeprefix("local-dir:")
    path = Path(text).expanduser()
    if path.is_dir():
        return local_checkpoint(path)
    if path.is_file() or not ("=" in text or "/" in text.strip("/")) or text.startswith(("/", "./", "../", "~")):
        raise InputError(
            f"RichKD needs CLIP's image encoder, which '{source}' does not name: expected MODEL/PRETRAINED of open_clip such "
            f"as '{DEFAULT_CLIP_MODEL}', MODEL=/path/to/weights, or a folder with an open_clip checkpoint."
        )
    return parse_model_and_tag(text)


def clip_answers(
    source: str | Path,
    class_names: Sequence[str],
    split: Split,
    *,
    images_digest: str | None = None,
    cache_dir: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> ClipAnswers:
    """Returns what CLIP says of every image of a split, without augmentation: from the disk, else computed and kept there.

    Args:
        source: See :func:`load_clip_teacher`; with answers on disk it is not loaded.
        class_names: K names in the order of the labels.
        split: The images; those in files are seen as in an evaluation, at the split's own size.
        images_digest: What identifies the images' content, such as ``ImageDataset.fingerprint``; None takes the sha256 of
            the pixels, which have to be in memory.
        cache_dir: Default: ``$TMKD_CACHE``, else ``~/.cache/tmkd``.
        device: Where CLIP runs.

    Raises:
        InputError: The source can't be used, or a file in the cache is damaged.
    """
    from tmkd_plugin.data.batches import evaluation_batches

    names = check_class_names(class_names)
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
    key = {
        "clip": clip_source(source).key(),
        "templates": list(TEMPLATES),
        "class_names": names,
        "images": images_digest or _digest(_pixels_in_memory(split)),
        "ids": _digest(split.ids),
        "image_size": split.image_size,
    }
    kept = read_clip_cache(folder, key)
    if kept is None:
        teacher = load_clip_teacher(source, names).to(device)
        batches = evaluation_batches(split, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), batch_size=_IMAGES_AT_ONCE)
        outputs = [teacher(to_pixels(batch.images.to(device))) for batch in batches]
        kept = {
            "features": torch.cat([output.features for output in outputs]).cpu(),
            "cosines": torch.cat([output.cosines for output in outputs]).cpu(),
            "ids": split.ids.cpu(),
        }
        try:
            write_clip_cache(folder, key, kept)
        except OSError as error:
            warnings.warn(f"CLIP's answers could not be kept in {folder}: {error}", TmkdNotice, stacklevel=2)
    return ClipAnswers(kept["features"], kept["cosines"], kept["ids"], str(source))


def _pixels_in_memory(split: Any) -> Tensor:
    images = getattr(split, "images", None)
    if not isinstance(images, Tensor):
        raise InputError("The images of this split stay in files: give images_digest=dataset.fingerprint.")
    return images


def _digest(tensor: Tensor) -> str:
    values = tensor.cpu().contiguous()
    header = f"{values.dtype} {tuple(values.shape)};"
    return hashlib.sha256(header.encode() + values.numpy().tobytes()).hexdigest()
