"""Data sets by name and from folders, and batches of them."""

from tmkd_plugin.data.batches import Batch, batch_bounds, evaluation_batches, training_batches
from tmkd_plugin.data.dataset import Augmentation, ImageDataset, ImageSplit, Split, make_dataset, make_streamed_dataset
from tmkd_plugin.data.file_split import FileSplit
from tmkd_plugin.data.loading import NAMED_DATASETS, load_dataset

__all__ = [
    "NAMED_DATASETS",
    "Augmentation",
    "Batch",
    "FileSplit",
    "ImageDataset",
    "ImageSplit",
    "Split",
    "batch_bounds",
    "evaluation_batches",
    "load_dataset",
    "make_dataset",
    "make_streamed_dataset",
    "training_batches",
]
