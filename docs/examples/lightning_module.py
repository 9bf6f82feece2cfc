"""TMKD in a Lightning module. Run it: python docs/examples/lightning_module.py (pip install 'tmkd-plugin[lightning]')."""

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

from tmkd_plugin import TMKDEnhancer
from tmkd_plugin.baselines.kd import KD
from tmkd_plugin.data import load_dataset
from tmkd_plugin.pixels import from_pixels
from tmkd_plugin.zoo import build_network


class DistillationModule(lightning.LightningModule):
    """Trains any distiller, enhanced or not; its checkpoints hold student and heads, never the teacher."""

    def __init__(self, distiller, lr=0.05):
        super().__init__()
        self.distiller, self.lr = distiller, lr

    def training_step(self, batch, batch_index):
        images, labels = batch
        losses = self.distiller(images, labels)
        self.log_dict({name: value.detach() for name, value in losses.items() if name != "output"})
        return losses["loss"]

    def validation_step(self, batch, batch_index):
        images, labels = batch
        self.log("val_top1", (self.distiller.student(images).argmax(1) == labels).float().mean() * 100)

    def configure_optimizers(self):
        return torch.optim.SGD(self.distiller.trainable_parameters(), lr=self.lr, momentum=0.9)


def toy_text_encoder(prompts):
    """Stands in for CLIP, so that this example needs no download: counts of letters."""
    return torch.tensor(
        [[float(prompt.count(letter)) for letter in "abcdefghijklmnopqrstuvwxyz"] for prompt in prompts]
    )


def build(enhanced=True, train_limit=None):
    """Returns the handwritten digits and a distiller; its teacher has fresh weights here, give yours."""
    dataset = load_dataset("digits", train_limit=train_limit)
    distiller = KD(build_network("resnet8", 10), build_network("resnet14", 10))
    if enhanced:
        distiller = TMKDEnhancer(
            distiller, class_names=dataset.class_names, mean=dataset.mean, std=dataset.std, text=toy_text_encoder
        )
    return dataset, distiller


def loader(split, dataset, shuffle):
    """Batches of normalised images and labels."""
    tensors = TensorDataset(from_pixels(split.images, dataset.mean, dataset.std), split.labels)
    return DataLoader(tensors, batch_size=32, shuffle=shuffle, generator=torch.Generator().manual_seed(0))


def main(epochs=1, enhanced=True, folder="lightning_run", checkpoint=None, train_limit=None):
    """Trains on the handwritten digits; returns the trainer and the module."""
    dataset, distiller = build(enhanced, train_limit)
    module = DistillationModule(distiller)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = loader(dataset.train, dataset, shuffle=True), loader(dataset.validation, dataset, shuffle=False)
    trainer.fit(module, *batches, ckpt_path=checkpoint)
    return trainer, module


if __name__ == "__main__":
    trainer, _ = main()
    print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items()})
