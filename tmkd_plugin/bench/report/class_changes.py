"""What changes class by class and image by image from a baseline to its enhanced self."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tmkd_plugin.bench.figures.finished_run import ArmPair, FinishedRun
from tmkd_plugin.bench.figures.images import pixels_of
from tmkd_plugin.data.file_split import FileSplit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from tmkd_plugin.bench.predictions import Predictions
    from tmkd_plugin.data.dataset import ImageDataset

PERCENT = 100.0
MOST_THUMBNAILS = 12
THUMBNAIL = 112
"""Height and width in pixels above which a thumbnail is reduced."""


@dataclass(frozen=True)
class ClassChange:
    """One class, mean over seeds.

    Attributes:
        name: The class.
        images: Its test images.
        baseline: Recall of the baseline, in percent.
        enhanced: Recall of the enhanced arm, in percent.
    """

    name: str
    images: int
    baseline: float
    enhanced: float

    @property
    def delta(self) -> float:
        """Enhanced minus baseline, in points."""
        return self.enhanced - self.baseline


@dataclass(frozen=True)
class ChangedImage:
    """A test image on which the arms differ on balance.

    Attributes:
        name: Its file, or its number in the data set.
        true: Its class.
        baseline_right: With how many seeds the baseline is right.
        enhanced_right: With how many seeds the enhanced arm is right.
        mistaken_for: What the arm that is wrong more often takes it for most often.
        picture: A ``data:`` address of the image; ``None`` where images are not at hand.
    """

    name: str
    true: str
    baseline_right: int
    enhanced_right: int
    mistaken_for: str
    picture: str | None


@dataclass(frozen=True)
class Changes:
    """What changes from one arm to the other.

    Attributes:
        classes: The classes that have test images, from the largest gain to the largest loss.
        seeds: Number of seeds.
        images: Number of test images.
        gained: How many images more seeds get right with the enhancer than without.
        lost: How many fewer seeds get right.
        gains: Those with the largest gain.
        losses: Those with the largest loss.
    """

    classes: list[ClassChange]
    seeds: int
    images: int
    gained: int
    lost: int
    gains: list[ChangedImage]
    losses: list[ChangedImage]


def changes_of(run: FinishedRun, pair: ArmPair, dataset: ImageDataset | None) -> Changes:
    """Compares the predictions of both arms.

    Args:
        run: The comparison.
        pair: Its arms.
        dataset: Its images; ``None`` gives changes without pictures.

    Raises:
        InputError: A run's predictions are missing.
    """
    import numpy as np

    before, after = ([run.predictions(arm, seed) for seed in pair.seeds] for arm in pair.both)
    labels = before[0].labels
    right_before, right_after = (np.stack([each.correct for each in arm]) for arm in (before, after))
    net = right_after.sum(axis=0, dtype=np.int64) - right_before.sum(axis=0, dtype=np.int64)
    classes = [
        ClassChange(
            name, int(chosen.sum()), *(PERCENT * float(r[:, chosen].mean()) for r in (right_before, right_after))
        )
        for label, name in enumerate(run.class_names)
        if (chosen := labels == label).any()
    ]
    pictures = _Pictures(dataset, before[0].index)

    def changed(rows: Sequence[int], wrong: Sequence[Predictions]) -> list[ChangedImage]:
        return [
            ChangedImage(
                pictures.name(row),
                run.class_names[labels[row]],
                int(right_before[:, row].sum()),
                int(right_after[:, row].sum()),
                run.class_names[_most_frequent_mistake(wrong, row)],
                pictures.address(row),
            )
            for row in rows
        ]

    # A stable order, so that the same run gives the same report.
    order = np.argsort(-net, kind="stable").tolist()
    gains = [row for row in order if net[row] > 0][:MOST_THUMBNAILS]
    losses = [row for row in np.argsort(net, kind="stable").tolist() if net[row] < 0][:MOST_THUMBNAILS]
    return Changes(
        sorted(classes, key=lambda change: -change.delta),
        len(pair.seeds),
        len(labels),
        int((net > 0).sum()),
        int((net < 0).sum()),
        changed(gains, before),
        changed(losses, after),
    )


def _most_frequent_mistake(predictions: Sequence[Predictions], row: int) -> int:
    said = Counter(int(each.predicted[row]) for each in predictions if each.predicted[row] != each.labels[row])
    return min(said, key=lambda label: (-said[label], label))


class _Pictures:
    """Small pictures of test images, where the images are at hand."""

    def __init__(self, dataset: ImageDataset | None, index: NDArray[np.int64]) -> None:
        self.split = None if dataset is None else dataset.test
        self.index = index
        places = {} if self.split is None else {int(k): row for row, k in enumerate(self.split.ids.tolist())}
        self.places = [places.get(int(k)) for k in index]

    def name(self, row: int) -> str:
        place = self.places[row]
        if place is not None and isinstance(self.split, FileSplit):
            return self.split.paths[place]
        return f"image {int(self.index[row])}"

    def address(self, row: int) -> str | None:
        place = self.places[row]
        return None if place is None or self.split is None else data_address(pixels_of(self.split, [place])[0])


def data_address(pixels: Tensor) -> str:
    """Returns an image, uint8 (3,H,W), as a ``data:`` address: PNG for small ones, JPEG for photographs."""
    from PIL import Image

    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    stream = io.BytesIO()
    if max(image.size) <= THUMBNAIL:
        kind, options = "png", dict[str, Any](optimize=True)
    else:
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
        kind, options = "jpeg", {"quality": 85}
    image.save(stream, format=kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
