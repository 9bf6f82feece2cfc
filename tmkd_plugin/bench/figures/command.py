"""The command ``tmkd figures``: the figures of a finished comparison as files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tmkd_plugin.bench.figures.attention_maps import attention_maps
from tmkd_plugin.bench.figures.drawing import Drawing, save
from tmkd_plugin.bench.figures.embedding import embedding
from tmkd_plugin.bench.figures.finished_run import ArmPair, FinishedRun, load_images, read_run
from tmkd_plugin.bench.figures.fusion_curves import fusion_curves
from tmkd_plugin.bench.figures.logit_heat_map import logit_heat_map
from tmkd_plugin.bench.output import check_writable
from tmkd_plugin.errors import InputError, TmkdNotice

if TYPE_CHECKING:
    from tmkd_plugin.data.dataset import ImageDataset


@dataclass(frozen=True)
class FigureOptions:
    """What the command line says.

    Attributes:
        folder: The comparison.
        out: Where the figures go; ``None`` for ``figures`` in the comparison's folder.
        seed: Whose students are shown where one has to be; ``None`` for the first that is finished.
        images: How many images have attention maps.
        arms: The names of two arms; ``None`` for every baseline and its enhanced self.
        data_dir: Where data sets known by name lie; ``None`` for where they lay.
    """

    folder: Path
    out: Path | None = None
    seed: int | None = None
    images: int = 6
    arms: Sequence[str] | None = None
    data_dir: str | None = None


def figures(options: FigureOptions) -> int:
    """Writes the figures and prints their names; returns 0.

    Raises:
        InputError: The comparison can't be used, or its images are not there.
    """
    run = read_run(options.folder)
    pairs = run.pairs(options.arms)
    seeds = [chosen_seed(pair, options.seed) for pair in pairs]
    dataset = load_images(run, options.data_dir)
    out = options.out or run.folder / "figures"
    check_writable(out)
    for pair, seed in zip(pairs, seeds, strict=True):
        folder = out if len(pairs) == 1 else out / str(pair.enhanced["folder"])
        for drawing in drawings(run, pair, dataset, seed=seed, images=options.images):
            written = save(drawing, folder)
            print(f"{written[0]} (also .svg, .txt): {drawing.alternative}", flush=True)
    return 0


def chosen_seed(pair: ArmPair, wanted: int | None) -> int:
    """Returns the seed whose students are shown.

    Raises:
        InputError: The arms have not both finished the wanted one.
    """
    if wanted is None:
        return pair.seeds[0]
    if wanted not in pair.seeds:
        raise InputError(
            f"--seed {wanted}: {pair.baseline['title']} and {pair.enhanced['title']} have both finished the seeds "
            f"{', '.join(map(str, pair.seeds))} only."
        )
    return wanted


def drawings(
    run: FinishedRun, pair: ArmPair, dataset: ImageDataset | None, *, seed: int, images: int
) -> Iterator[Drawing]:
    """Yields the figures that can be had of a pair: without images, those that need none.

    A figure that this student or data set can't have is left out with a notice that says why.
    """
    if dataset is not None:
        try:
            yield attention_maps(run, pair, dataset, seed=seed, count=images)
        except InputError as error:
            warnings.warn(f"No attention maps: {error}", TmkdNotice, stacklevel=2)
        try:
            yield embedding(run, pair, dataset, seed=seed)[0]
        except InputError as error:
            warnings.warn(f"No plane of features: {error}", TmkdNotice, stacklevel=2)
    yield logit_heat_map(run, pair)
    curves = fusion_curves(run, pair)
    if curves is not None:
        yield curves
