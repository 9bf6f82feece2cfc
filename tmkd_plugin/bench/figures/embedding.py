"""Fig 4: the students' pooled features in a plane (t-SNE), with a score of how well the classes are separated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tmkd_plugin.bench.figures.drawing import (
    CLASS_COLOURS,
    INK,
    MARKERS,
    Drawing,
    figure_style,
    new_figure,
    shown_name,
)
from tmkd_plugin.bench.figures.finished_run import ArmPair, FinishedRun
from tmkd_plugin.bench.figures.images import evenly_spaced, pixels_of
from tmkd_plugin.bench.statistics import PairedComparison, compare_pairs, mean_and_sd, verdict
from tmkd_plugin.data.batches import normalize
from tmkd_plugin.errors import InputError
from tmkd_plugin.model_output import OutputReader

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from tmkd_plugin.data.dataset import ImageDataset

MOST_IMAGES, MOST_CLASSES = 1000, 20
BATCH = 128
PERPLEXITY = 30.0


@dataclass(frozen=True)
class Separation:
    """Silhouette scores of the classes, from -1 to 1, larger is better separated.

    Attributes:
        by_seed: Of the features of the baseline's and of the enhanced student, for each seed.
        compared: Enhanced minus baseline over the seeds.
        plane: Of the two planes that are shown.
    """

    by_seed: dict[int, tuple[float, float]]
    compared: PairedComparison
    plane: tuple[float, float]


def pooled_features(network: nn.Module, pixels: Tensor, dataset: ImageDataset) -> Tensor:
    """Returns the input of the student's last linear layer, float32 (N, D).

    Args:
        network: In eval mode.
        pixels: uint8 (N,3,S,S).
        dataset: Says how images are normalised.

    Raises:
        InputError: The network has none.
    """
    reader = OutputReader(network, "student", int(pixels.shape[-1]))
    if reader.plan.pooled_width is None:
        raise InputError(reader.no_pooled_features())
    parts: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(pixels), BATCH):
            part = pixels[start : start + BATCH]
            pooled = reader(normalize(part, dataset.mean, dataset.std)).pooled_features
            if pooled is not None:
                parts.append(pooled.float())
    return torch.cat(parts)


def separation(points: Tensor | NDArray[np.float32], labels: Tensor) -> float:
    """Returns the mean silhouette over images, from -1 to 1: how much nearer one's own class is than the next one.

    Source: Rousseeuw, J. Comput. Appl. Math. 20 (1987), with Euclidean distances.

    Args:
        points: (N, D).
        labels: int64 (N,), at least 2 classes and fewer classes than images.

    Raises:
        InputError: There are too few classes or images.
    """
    from sklearn.metrics import silhouette_score

    classes = len(set(labels.tolist()))
    if not 2 <= classes < len(labels):
        raise InputError(
            f"The separation of classes needs at least 2 classes and more images than that: got {len(labels)} images of "
            f"{classes}."
        )
    return float(silhouette_score(torch.as_tensor(points).numpy(), labels.numpy()))


def plane_of(features: Tensor, seed: int = 0) -> NDArray[np.float32]:
    """Returns the t-SNE of features, float32 (N, 2); the same features and seed give the same plane.

    Source: van der Maaten and Hinton, JMLR 9 (2008); scikit-learn's, started from the principal components.
    """
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    start: Any = "pca" if min(features.shape) >= 2 else "random"
    plane: NDArray[np.float32] = TSNE(2, perplexity=perplexity, init=start, random_state=seed).fit_transform(
        features.numpy()
    )
    return plane


def embedding(run: FinishedRun, pair: ArmPair, dataset: ImageDataset, *, seed: int) -> tuple[Drawing, Separation]:
    """Draws the features of both students of a seed and scores those of all seeds.

    Args:
        run: The comparison.
        pair: Its arms.
        dataset: Its images.
        seed: Which students are drawn.

    Raises:
        InputError: A student's weights are missing, or there are too few classes or images.
    """
    all_labels = dataset.test.labels.cpu()
    rows, partial = evenly_spaced(all_labels, MOST_IMAGES, MOST_CLASSES)
    labels, pixels = all_labels[rows], pixels_of(dataset.test, rows)
    by_seed, planes = {}, []
    for each in pair.seeds:
        features = [pooled_features(run.student(arm, each), pixels, dataset) for arm in pair.both]
        by_seed[each] = separation(features[0], labels), separation(features[1], labels)
        if each == seed:
            planes = [plane_of(part) for part in features]
    compared = compare_pairs(*zip(*by_seed.values(), strict=True))
    scores = Separation(by_seed, compared, (separation(planes[0], labels), separation(planes[1], labels)))
    with figure_style():
        figure = new_figure(6.4, 3.7)
        for axes, arm, plane, score, on_plane in zip(
            figure.subplots(1, 2), pair.both, planes, by_seed[seed], scores.plane, strict=True
        ):
            _scatter(axes, plane, labels, run.class_names)
            axes.set_title(f"{shown_name(arm['title'], 24)}\nsilhouette: features {score:.3f}, plane {on_plane:.3f}")
        handles, names = axes.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(5, len(names)), markerscale=1.6)
    return Drawing("fig4-features", "How the students arrange the classes", _caption(rows, partial, seed, labels),
                   _words(pair, scores), figure), scores  # fmt: skip


def _scatter(axes: Axes, plane: NDArray[np.float32], labels: Tensor, class_names: list[str]) -> None:
    for position, label in enumerate(sorted(set(labels.tolist()))):
        chosen = (labels == label).numpy()
        axes.scatter(
            plane[chosen, 0],
            plane[chosen, 1],
            s=7,
            linewidths=0,
            alpha=0.85,
            color=CLASS_COLOURS[position % len(CLASS_COLOURS)],
            marker=MARKERS[position // len(CLASS_COLOURS) % len(MARKERS)],
            label=shown_name(class_names[label]),
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top", "right", "bottom", "left"]].set(visible=True, edgecolor=INK, alpha=0.3)


def _caption(rows: list[int], partial: bool, seed: int, labels: Tensor) -> str:
    which = (
        f"{len(rows):,} test images of {len(set(labels.tolist()))} classes, evenly spaced"
        if partial
        else "all test images"
    )
    return (
        f"t-SNE of the pooled features of {which}; best weights of seed {seed}. Distances between far clusters mean little "
        "in such a plane; the silhouette of the features themselves is the figure to compare."
    )


def _words(pair: ArmPair, scores: Separation) -> str:
    before, after = (mean_and_sd(list(values)) for values in zip(*scores.by_seed.values(), strict=True))
    compared = scores.compared
    words = (
        f"Silhouette of the features over {compared.n} seed{'s' if compared.n > 1 else ''}: {pair.baseline['title']} "
        f"{_with_sd(before)}, {pair.enhanced['title']} {_with_sd(after)}; difference {compared.delta:+.3f}"
    )
    if compared.ci95 is None:
        return f"{words}; one seed has no interval."
    low, high = compared.ci95
    answer = {"better": "separated better", "worse": "separated worse"}.get(verdict(compared), verdict(compared))
    return f"{words}, 95 % interval [{low:+.3f}, {high:+.3f}]: {answer}."


def _with_sd(found: tuple[float, float | None]) -> str:
    mean, sd = found
    return f"{mean:.3f}" if sd is None else f"{mean:.3f} ± {sd:.3f}"
