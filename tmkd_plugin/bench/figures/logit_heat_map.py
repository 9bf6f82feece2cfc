"""Fig 5: what the students answer class by class, and how their logits fall off over the 20 classes that they rank highest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tmkd_plugin.bench.figures.drawing import (
    BASELINE,
    ENHANCED,
    Drawing,
    figure_style,
    new_figure,
    quiet_grid,
    shown_name,
)
from tmkd_plugin.bench.figures.finished_run import ArmPair, FinishedRun

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from tmkd_plugin.bench.predictions import Predictions

TOP = 20
MOST_NAMES = 24
"""Above this many classes the heat maps carry numbers instead of names."""


@dataclass(frozen=True)
class LogitSummary:
    """What the students of one arm answer, averaged over images and then over seeds.

    Attributes:
        by_class: (K, K) mean logit of each class (columns) for the images of each class (rows), after each image's mean
            logit has been taken off (a constant added to all logits changes no answer); NaN in rows without images.
        by_rank: (R,) mean probability of the class that comes first, second, ... up to the 20th.
        true_class: Mean probability of the true class.
        margin: Mean of the true class's logit minus the largest other one.
    """

    by_class: NDArray[np.float64]
    by_rank: NDArray[np.float64]
    true_class: float
    margin: float


def summarise(predictions: Sequence[Predictions]) -> LogitSummary:
    """Averages the answers of an arm's students.

    Args:
        predictions: One for each seed, at least one.
    """
    import numpy as np

    parts = [_summary_of(each) for each in predictions]
    return LogitSummary(
        np.mean([part.by_class for part in parts], axis=0),
        np.mean([part.by_rank for part in parts], axis=0),
        float(np.mean([part.true_class for part in parts])),
        float(np.mean([part.margin for part in parts])),
    )


def _summary_of(predictions: Predictions) -> LogitSummary:
    import numpy as np

    logits, labels = predictions.logits.astype(np.float64), predictions.labels
    classes = logits.shape[1]
    centred = logits - logits.mean(axis=1, keepdims=True)
    by_class = np.full((classes, classes), np.nan)
    for label in range(classes):
        if (labels == label).any():
            by_class[label] = centred[labels == label].mean(axis=0)
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponents / exponents.sum(axis=1, keepdims=True)
    by_rank = np.sort(probabilities, axis=1)[:, ::-1][:, :TOP].mean(axis=0)
    images = np.arange(len(labels))
    others = logits.copy()
    others[images, labels] = -np.inf
    margin = logits[images, labels] - others.max(axis=1) if classes > 1 else np.zeros(len(labels))
    return LogitSummary(by_class, by_rank, float(probabilities[images, labels].mean()), float(margin.mean()))


def logit_heat_map(run: FinishedRun, pair: ArmPair) -> Drawing:
    """Draws the class-wise logits of both arms, their difference, and the 20 classes that come first.

    Raises:
        InputError: A run's predictions are missing.
    """
    before, after = (summarise([run.predictions(arm, seed) for seed in pair.seeds]) for arm in pair.both)
    titles = [str(arm["title"]) for arm in pair.both]
    with figure_style():
        figure = new_figure(6.4, 6.2)
        (first, second), (third, fourth) = figure.subplots(2, 2)
        _heat_maps(figure, (first, second, third), before, after, titles, run.class_names)
        _ranks(fourth, before, after, titles)
    seeds = f"{len(pair.seeds)} seed{'s' if len(pair.seeds) > 1 else ''}"
    return Drawing(
        "fig5-logits",
        "What the students answer, class by class",
        f"Heat maps: mean logit of each class (across) for the test images of each class (down), each image's mean taken off; "
        f"their difference; and the mean probability of the {len(before.by_rank)} classes that an image's student ranks "
        f"highest. Best weights, mean over {seeds}.",
        f"Mean probability of the true class: {titles[0]} {before.true_class:.3f}, {titles[1]} {after.true_class:.3f}. Mean "
        f"margin of its logit over the next class: {before.margin:.2f} and {after.margin:.2f}. Mean probability of the class "
        f"ranked first: {before.by_rank[0]:.3f} and {after.by_rank[0]:.3f}.",
        figure,
    )


def _heat_maps(
    figure: Any,
    places: Sequence[Axes],
    before: LogitSummary,
    after: LogitSummary,
    titles: Sequence[str],
    class_names: Sequence[str],
) -> None:
    import numpy as np

    both = np.stack([before.by_class, after.by_class])
    low, high = float(np.nanmin(both)), float(np.nanmax(both))
    change = after.by_class - before.by_class
    largest = max(float(np.nanmax(np.abs(change))), 1e-6)
    for axes, values, title in zip(places, both, titles, strict=False):
        shown = _heat(axes, values, class_names, shown_name(title, 24), cmap="viridis", vmin=low, vmax=high)
        figure.colorbar(shown, ax=axes, shrink=0.8, aspect=24).outline.set_visible(False)
    shown = _heat(places[2], change, class_names, "difference", cmap="RdBu_r", vmin=-largest, vmax=largest)
    figure.colorbar(shown, ax=places[2], shrink=0.8, aspect=24).outline.set_visible(False)


def _heat(axes: Axes, values: NDArray[np.float64], class_names: Sequence[str], title: str, **scale: Any) -> Any:
    shown = axes.imshow(values, interpolation="none", aspect="equal", **scale)
    axes.set_title(title)
    axes.spines[["bottom", "left"]].set_visible(False)
    axes.tick_params(length=0, labelsize=7)
    if len(class_names) <= MOST_NAMES:
        names = [shown_name(name, 12) for name in class_names]
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    return shown


def _ranks(axes: Axes, before: LogitSummary, after: LogitSummary, titles: Sequence[str]) -> None:
    import numpy as np

    ranks = np.arange(1, len(before.by_rank) + 1)
    for summary, title, colour, marker in zip((before, after), titles, (BASELINE, ENHANCED), "os", strict=True):
        axes.plot(ranks, summary.by_rank, marker=marker, markersize=3.5, color=colour, label=shown_name(title, 24))
    axes.set_yscale("log")
    # Words instead of powers: mathematical notation is switched off for the sake of class names.
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    axes.set_xticks([1, *(rank for rank in (5, 10, 15, 20) if rank <= len(ranks))])
    axes.set_xlabel("class, by its rank")
    axes.set_title(f"probability of the top {len(ranks)}")
    quiet_grid(axes)
    axes.legend(loc="upper right")
