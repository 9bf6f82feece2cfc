"""Reliability diagrams: how often classifiers are right where they are so sure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tmkd_plugin.bench.figures.drawing import BASELINE, ENHANCED, INK, Drawing, figure_style, new_figure, shown_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 3
_FEW = 10


@dataclass(frozen=True)
class Panel:
    """The diagram of one classifier, all seeds together.

    Attributes:
        title: Whose it is.
        count: Predictions in each bin, (B,).
        confidence: Their mean confidence, (B,); ``None`` where there are none.
        accuracy: Their share of right ones, likewise.
        ece: ECE in percent, mean over seeds.
        sd: Its standard deviation; ``None`` for one seed.
        seeds: How many seeds ``count`` adds up; each has predicted the same images.
    """

    title: str
    count: Sequence[int]
    confidence: Sequence[float | None]
    accuracy: Sequence[float | None]
    ece: float
    sd: float | None
    seeds: int = 1

    @property
    def ece_words(self) -> str:
        """The ECE with its spread."""
        return f"ECE {self.ece:.2f}" + (" %" if self.sd is None else f" ± {self.sd:.2f} %")


def reliability_chart(name: str, title: str, panels: Sequence[Panel]) -> Drawing:
    """Draws a panel for each classifier: accuracy over confidence, and below it how many predictions have it.

    Args:
        name: Of the drawing.
        title: Its heading.
        panels: At least one.
    """
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    with figure_style():
        figure = new_figure(2.25 * columns + (0.3 if columns > 1 else 1.2), 3.15 * rows)
        grid = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[3.2, 1] * rows, sharex=True)
        for position in range(rows * columns):
            row, column = divmod(position, columns)
            above, below = grid[2 * row][column], grid[2 * row + 1][column]
            if position >= len(panels):
                above.set_visible(False)
                below.set_visible(False)
                continue
            panel = panels[position]
            _draw_accuracy(above, panel)
            _draw_counts(below, panel)
            if column == 0:
                above.set_ylabel("accuracy")
                below.set_ylabel("share, %")
    return Drawing(
        name,
        title,
        f"{len(panels[0].count)} bins of equal width, all seeds together. Bar: how often the predictions of a bin are right; "
        "mark: how sure they are on average. A bar below its mark is overconfidence, above it underconfidence; on the dashed "
        "line both are equal. Below: how many of the predictions are in the bin; a bin of fewer than "
        f"{_FEW} images a seed, drawn faint, jumps by chance. ECE: mean over seeds.",
        " ".join(_sentence(panel) for panel in panels),
        figure,
    )


def _draw_accuracy(axes: Axes, panel: Panel) -> None:
    bins = len(panel.count)
    filled = [k for k in range(bins) if panel.count[k]]
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.7)
    confidences = [panel.confidence[k] or 0.0 for k in filled]
    for k in filled:
        strength = 0.3 if panel.count[k] < _FEW * panel.seeds else 0.8
        height = panel.accuracy[k] or 0.0
        axes.bar((k + 0.5) / bins, height, width=0.92 / bins, color=BASELINE, alpha=strength, linewidth=0)
    axes.plot(confidences, confidences, linestyle="", marker="_", markersize=7, markeredgewidth=1.8, color=ENHANCED)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_title(f"{shown_name(panel.title, 26)}\n{panel.ece_words}")
    axes.set_xticks([0, 0.5, 1])
    axes.set_yticks([0, 0.5, 1])


def _draw_counts(axes: Axes, panel: Panel) -> None:
    bins, total = len(panel.count), max(1, sum(panel.count))
    shares = [100 * count / total for count in panel.count]
    axes.bar([(k + 0.5) / bins for k in range(bins)], shares, width=0.92 / bins, color=INK, alpha=0.55, linewidth=0)
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 100])
    axes.set_xlabel("confidence")
    axes.tick_params(labelbottom=True)


def _sentence(panel: Panel) -> str:
    total = sum(panel.count)
    filled = [k for k in range(len(panel.count)) if panel.count[k]]
    gap = sum(panel.count[k] * ((panel.confidence[k] or 0) - (panel.accuracy[k] or 0)) for k in filled) / total
    words = "more sure than right" if gap > 0 else "less sure than right"
    return f"{panel.title}: {panel.ece_words}; on average {abs(100 * gap):.2f} points {words}."
