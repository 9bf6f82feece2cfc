"""What the students of a comparison said of its test images, as ``predictions.npz`` has it."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

UNREADABLE = (OSError, ValueError, KeyError, zipfile.BadZipFile)
"""What :func:`read_predictions` raises for a file that is missing or damaged."""


@dataclass(frozen=True)
class Predictions:
    """What the student of the best epoch says of the test split.

    Attributes:
        index: int64 (N,), the place of each image in the data set's own order.
        labels: int64 (N,).
        logits: float32 (N, K), rounded to float16.
        predicted: int64 (N,), the class with the largest logit before the rounding, which can make two of them equal.
    """

    index: NDArray[np.int64]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    predicted: NDArray[np.int64]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the predicted class is the true one, (N,)."""
        found: NDArray[np.bool_] = self.predicted == self.labels
        return found


def read_predictions(path: Path) -> Predictions:
    """Reads the file of a run.

    A file from before ``predicted`` was written is read too; of equal logits the first counts there.
    """
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        logits = arrays["logits"].astype(np.float32)
        predicted = arrays["predicted"] if "predicted" in arrays else logits.argmax(axis=1)
        return Predictions(arrays["index"], arrays["label"], logits, predicted)
