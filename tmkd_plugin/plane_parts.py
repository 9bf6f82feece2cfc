"""Work on many planes of pixels, part by part and on all cores; what is worked on stays in the processor's cache."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

Planes = np.ndarray[Any, Any]

PIXELS_PER_PART = 1 << 18
"""Pixels that are worked on at a time: worth a call, and small enough for the cache."""


def planes_of(images: Tensor) -> Planes:
    """Returns the planes (B*C,H,W) of a CPU tensor, which stay in its memory where that is contiguous."""
    planes: Planes = images.contiguous().view(-1, *images.shape[-2:]).numpy()
    return planes


def over_parts(planes: Planes, work: Callable[[slice], None]) -> None:
    """Calls ``work`` with the place of each part of the planes.

    Several parts are shared by as many threads as torch has, each with one thread of OpenCV: OpenCV's own threads leave cores
    idle between its calls.

    Args:
        planes: (N, H, W), N at least 1.
        work: Works on the planes of a part and on nothing else.
    """
    count, pixels = len(planes), planes[0].size
    parts, threads = math.ceil(count * pixels / PIXELS_PER_PART), torch.get_num_threads()
    workers = min(threads, count) if parts > 1 else 1
    parts = min(count, workers * math.ceil(parts / workers))  # as many for each
    each = math.ceil(count / parts)
    places = [slice(start, start + each) for start in range(0, count, each)]
    if workers == 1:
        for place in places:
            work(place)
        return
    with _one_opencv_thread(), ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(work, places):  # raises what a part raised
            pass


_opencv_threads = threading.Lock()


def _new_lock() -> None:
    """A forked child has no thread that would ever let go of a lock that was held when it was forked."""
    global _opencv_threads
    _opencv_threads = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_new_lock)


@contextlib.contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """Takes OpenCV's own threads away inside the block; the number is the process's, so one block at a time."""
    import cv2

    with _opencv_threads:
        before = cv2.getNumThreads()
        cv2.setNumThreads(1)
        try:
            yield
        finally:
            cv2.setNumThreads(before)
