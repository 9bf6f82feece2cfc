"""The report's own charts: learning curves of the arms, and the intervals of their differences."""

from __future__ import annotations

from collections.abc import Sequence

from tmkd_plugin.bench.figures.drawing import (
    BASELINE,
    CLASS_COLOURS,
    ENHANCED,
    INK,
    Drawing,
    figure_style,
    legend_below,
    new_figure,
    quiet_grid,
    shown_name,
    whole_epochs,
)
from tmkd_plugin.bench.figures.finished_run import Entry, FinishedRun
from tmkd_plugin.bench.figures.fusion_curves import by_epoch, draw_curves

ARM_COLOURS = (BASELINE, ENHANCED, *CLASS_COLOURS[2:])
CURVES = (("val_top1", "validation top-1, %"), ("train_top1", "training top-1, %"))


def learning_curves(run: FinishedRun, arms: Sequence[Entry], name: str) -> Drawing:
    """Draws validation and training accuracy of arms over the epochs.

    Args:
        run: The comparison.
        arms: Those to draw.
        name: Of the drawing.

    Raises:
        InputError: A run's history is missing.
    """
    histories = {
        str(arm["title"]): [run.history(arm, cell["seed"]) for cell in arm["seeds"] if cell["best"] is not None]
        for arm in arms
    }
    histories = {title: found for title, found in histories.items() if found}
    ends = []
    with figure_style():
        figure = new_figure(6.4, 3.1 + 0.12 * max(0, len(histories) - 2))
        for axes, (key, title) in zip(figure.subplots(1, 2), CURVES, strict=True):
            for position, (arm, found) in enumerate(histories.items()):
                values = by_epoch(found, key)
                colour = ARM_COLOURS[position % len(ARM_COLOURS)]
                draw_curves(axes, values, colour, shown_name(arm, 24), "os^DvPX<>p"[position % 10])
                if key == "val_top1":
                    ends.append(f"{arm} {values[:, -1].mean():.2f} %")
            axes.set_title(title)
            quiet_grid(axes)
            whole_epochs(axes)
            legend_below(axes)
    return Drawing(
        name,
        "Learning curves",
        "Thick: mean over seeds; thin: each seed. Training accuracy is that of augmented images, while the weights move.",
        f"Mean validation top-1 after the last epoch: {', '.join(ends)}.",
        figure,
    )


def interval_chart(rows: Sequence[tuple[str, Entry, Entry]]) -> Drawing:
    """Draws mean differences with their 95 % intervals around zero.

    Args:
        rows: What is compared, and its entries in ``results.json`` for the best and for the last epoch.
    """
    with figure_style():
        figure = new_figure(4.7, 1.05 + 0.42 * len(rows))
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=0.9, alpha=0.6)
        for height, (_, *entries) in enumerate(rows):
            for entry, shift, colour, filled in zip(
                entries, (-0.13, 0.13), (ENHANCED, BASELINE), (True, False), strict=True
            ):
                if entry["ci95"] is not None:
                    axes.plot(entry["ci95"], [height + shift] * 2, color=colour, linewidth=2.2, solid_capstyle="round")
                label = ("epoch chosen by validation" if filled else "last epoch") if height == 0 else None
                axes.plot(entry["delta"], height + shift, marker="o" if filled else "s", color=colour, markersize=6,
                          linestyle="", label=label)  # fmt: skip
        axes.set_yticks(range(len(rows)), [shown_name(label, 30) for label, _, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        bound = 1.1 * max(0.5, *(abs(value) for _, *entries in rows for entry in entries for value in _values(entry)))
        axes.set_xlim(-bound, bound)
        axes.set_xlabel("difference of test top-1, points")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside upper right", ncols=2)
    return Drawing(
        "intervals",
        "Differences with their 95 % intervals",
        "An interval that crosses the line at zero resolves nothing.",
        " ".join(f"{label}: {_words(best)}; last epoch {_words(last)}." for label, best, last in rows),
        figure,
    )


def _values(entry: Entry) -> list[float]:
    return [entry["delta"], *(entry["ci95"] or ())]


def _words(entry: Entry) -> str:
    interval = entry["ci95"]
    found = "no interval" if interval is None else f"interval {interval[0]:+.2f} to {interval[1]:+.2f}"
    return f"{entry['delta']:+.2f} points, {found}"
