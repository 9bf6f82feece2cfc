"""Fig 6: the fusion weights of the views and the accuracy of the students, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tmkd_plugin.bench.figures.drawing import (
    BASELINE,
    ENHANCED,
    VIEW_COLOURS,
    Drawing,
    figure_style,
    legend_below,
    new_figure,
    quiet_grid,
    shown_name,
    whole_epochs,
)
from tmkd_plugin.bench.figures.finished_run import ArmPair, FinishedRun
from tmkd_plugin.views import VIEW_NAMES

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

VIEW_TITLES = {"rgb": "RGB", "edge": "edge", "high_frequency": "high-frequency"}
_MARKERS = {"rgb": "o", "edge": "s", "high_frequency": "^"}

History = Sequence[Mapping[str, Any]]


def by_epoch(histories: Sequence[History], *path: str) -> NDArray[np.float64]:
    """Returns a value of every epoch and seed, (seeds, epochs); NaN where an epoch has none.

    Args:
        histories: One for each seed.
        *path: The keys that lead to it, such as ``"fusion_weights", "edge"``.
    """
    import numpy as np

    values = np.full((len(histories), max(map(len, histories), default=0)), np.nan)
    for row, history in enumerate(histories):
        for column, record in enumerate(history):
            found: Any = record
            for key in path:
                found = found.get(key) if isinstance(found, Mapping) else None
            if found is not None:
                values[row, column] = found
    return values


def draw_curves(axes: Axes, values: NDArray[np.float64], colour: str, label: str, marker: str = "") -> None:
    """Draws the mean over seeds as a line and each seed as a faint one."""
    import numpy as np

    epochs = np.arange(1, values.shape[1] + 1)
    if len(values) > 1:
        for seed in values:
            axes.plot(epochs, seed, color=colour, linewidth=0.7, alpha=0.3)
    every = max(1, len(epochs) // 8)
    mean = values.mean(axis=0)
    axes.plot(epochs, mean, color=colour, linewidth=1.8, marker=marker, markersize=4, markevery=every, label=label)


def fusion_curves(run: FinishedRun, pair: ArmPair) -> Drawing | None:
    """Draws the weights of the views, mean over classes, beside the validation accuracy; ``None`` without weights.

    Raises:
        InputError: A run's history is missing.
    """
    import numpy as np

    before, after = ([run.history(arm, seed) for seed in pair.seeds] for arm in pair.both)
    weights = {view: by_epoch(after, "fusion_weights", view) for view in VIEW_NAMES}
    weights = {view: values for view, values in weights.items() if values.size and not np.isnan(values).all()}
    if not weights:
        return None
    with figure_style():
        figure = new_figure(6.4, 3.1)
        left, right = figure.subplots(1, 2)
        for view, values in weights.items():
            draw_curves(left, values, VIEW_COLOURS[view], VIEW_TITLES[view], _MARKERS[view])
        left.set_title("fusion weight, mean over classes")
        for histories, arm, colour, marker in zip((before, after), pair.both, (BASELINE, ENHANCED), "os", strict=True):
            draw_curves(right, by_epoch(histories, "val_top1"), colour, shown_name(arm["title"], 24), marker)
        right.set_title("validation top-1, %")
        for axes in (left, right):
            quiet_grid(axes)
            whole_epochs(axes)
            legend_below(axes)
    return Drawing(
        "fig6-fusion",
        "Fusion weights and accuracy over the epochs",
        "Thick: mean over seeds; thin: each seed. The weights of the three views add up to 1. The accuracy is that of the "
        "validation images: the test images are looked at once, at the end.",
        _words(weights, before, after, pair),
        figure,
    )


def _words(weights: Mapping[str, Any], before: Sequence[History], after: Sequence[History], pair: ArmPair) -> str:
    moved = ", ".join(
        f"{VIEW_TITLES[view]} {values[:, 0].mean():.3f} to {values[:, -1].mean():.3f}"
        for view, values in weights.items()
    )
    ends = " and ".join(
        f"{arm['title']} {by_epoch(histories, 'val_top1')[:, -1].mean():.2f} %"
        for arm, histories in zip(pair.both, (before, after), strict=True)
    )
    return f"Mean weights from the first to the last epoch: {moved}. Validation top-1 after the last epoch: {ends}."
