"""One thread a test (the tensors are tiny, and pytest-xdist runs one process a core), and life without OpenCV."""

import sys
from collections.abc import Iterator

import pytest
import torch

from tmkd_plugin import canny

torch.set_num_threads(1)  # for what is made while modules are imported


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Commands set the number of threads for the whole process; the next test begins with one again."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def without_cv2(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which `import cv2` fails."""
    monkeypatch.setitem(sys.modules, "cv2", None)
    canny.import_cv2.cache_clear()
    yield
    canny.import_cv2.cache_clear()
