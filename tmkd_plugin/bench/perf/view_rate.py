"""How many views a second are made, against a bare loop over OpenCV on the same cores."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tmkd_plugin.bench.perf.figure import Figure, judged_figure, plain_figure
from tmkd_plugin.bench.perf.photographs import photographs
from tmkd_plugin.bench.perf.scope import Conditions
from tmkd_plugin.bench.perf.timing import Times
from tmkd_plugin.errors import InputError
from tmkd_plugin.views import ViewSettings, make_views

ALLOWED = 0.90
"""The share of the bare loop's rate that has to be reached."""

MADE = ("edge", "high_frequency")  # the RGB view is the batch itself
_LEAST_SECONDS = 0.05
_Array = np.ndarray[Any, Any]


class BareLoop:
    """Makes both views image by image, channel by channel: what one writes with OpenCV and nothing else.

    Args:
        threads: How many threads share the images; OpenCV itself gets one in each.
        settings: Thresholds and scales.
    """

    def __init__(self, threads: int, settings: ViewSettings) -> None:
        import cv2

        self._cv2, self._settings, self._threads = cv2, settings, threads
        self._pool = ThreadPoolExecutor(threads)

    def __call__(self, images: Tensor) -> tuple[_Array, _Array]:
        """Returns the edge and the high-frequency view of uint8 (B,3,H,W), float32."""
        pixels = images.numpy()
        edge, high = np.empty(pixels.shape, np.float32), np.empty(pixels.shape, np.float32)

        def make(numbers: range) -> None:
            for number in numbers:
                self._make_views(pixels[number], edge[number], high[number])

        shares = [range(first, len(pixels), self._threads) for first in range(self._threads)]
        before = self._cv2.getNumThreads()
        self._cv2.setNumThreads(1)
        try:
            list((self._pool.map if self._threads > 1 else map)(make, shares))
        finally:
            self._cv2.setNumThreads(before)
        return edge, high

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()

    def _make_views(self, image: _Array, edge: _Array, high: _Array) -> None:
        cv2, settings = self._cv2, self._settings
        size, sigma = (3, 0.8) if min(image.shape[1:]) <= 64 else (5, 1.0)
        alpha, weight = np.float32(settings.edge_alpha), np.float32(settings.high_frequency_weight)
        for channel, plane in enumerate(image):
            pixels = plane.astype(np.float32)
            edges = cv2.Canny(plane, settings.canny_low, settings.canny_high)
            np.clip(pixels + alpha * edges, 0, 255, out=edge[channel])
            residual = pixels - cv2.GaussianBlur(pixels, (size, size), sigma)
            np.clip(pixels + weight * residual, 0, 255, out=high[channel])


def view_figures(conditions: Conditions) -> list[Figure]:
    """Times both ways in turn, for every size of images.

    Raises:
        InputError: OpenCV can't be imported.
    """
    bare = _bare_loop()
    try:
        return [
            figure
            for size, batch in conditions.scope.views
            for figure in judge_views(size, batch, _times(photographs(batch, size), bare, conditions))
        ]
    finally:
        bare.close()


def _times(images: Tensor, bare: BareLoop, conditions: Conditions) -> Times:
    return conditions.times(
        {"ours": lambda: make_views(images, MADE), "bare": lambda: bare(images)},
        conditions.scope.view_rounds,
        least_seconds=_LEAST_SECONDS if conditions.scope.judges else 0.0,
    )


def _bare_loop() -> BareLoop:
    try:
        return BareLoop(torch.get_num_threads(), ViewSettings())
    except ImportError as error:
        raise InputError(
            f"The rate of the views is measured against OpenCV, which can't be imported ({error}). Install "
            "opencv-python-headless, or leave out 'views' with --only."
        ) from error


def judge_views(size: int, batch: int, times: Times) -> list[Figure]:
    """Turns seconds of ``ours`` and ``bare``, a batch each, into figures."""
    what = f"{size} px, batch {batch}"
    ratios = [bare / ours for bare, ours in zip(times["bare"], times["ours"], strict=True)]
    note = "edge and high-frequency view of each image, the same cores"
    return [
        judged_figure(
            "views", f"our views a second / those of a bare OpenCV loop, {what}", "x", ratios, "at least", ALLOWED, note
        ),
        plain_figure("views", f"ours, {what}", "images/s", [batch / seconds for seconds in times["ours"]]),
        plain_figure("views", f"bare OpenCV loop, {what}", "images/s", [batch / seconds for seconds in times["bare"]]),
    ]
