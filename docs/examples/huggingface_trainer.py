"""TMKD under Hugging Face's Trainer. Run it: python docs/examples/huggingface_trainer.py (needs tmkd-plugin[huggingface])."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

from tmkd_plugin import TMKDEnhancer
from tmkd_plugin.baselines.kd import KD
from tmkd_plugin.data import load_dataset
from tmkd_plugin.pixels import from_pixels


class DistillationModel(nn.Module):
    """Any distiller, enhanced or not, as a model that the Trainer knows: it returns loss and logits."""

    def __init__(self, distiller):
        super().__init__()
        self.distiller = distiller

    def forward(self, pixel_values, labels=None):
        if self.training:
            losses = self.distiller(pixel_values, labels)
            return {"loss": losses["loss"], "logits": losses["output"]}
        logits = self.distiller.student(pixel_values).logits
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def resnet(width, seed):
    """A small ResNet of transformers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNetForImageClassification(
            ResNetConfig(
                embedding_size=width,
                hidden_sizes=[width, 2 * width],
                depths=[1, 1],
                layer_type="basic",
                downsample_in_first_stage=False,
                num_labels=10,
            )
        )


def toy_text_encoder(prompts):
    """Stands in for CLIP, so that this example needs no download: counts of letters."""
    return torch.tensor(
        [[float(prompt.count(letter)) for letter in "abcdefghijklmnopqrstuvwxyz"] for prompt in prompts]
    )


def build(enhanced=True, train_limit=None):
    """Returns the handwritten digits and a distiller; its teacher has fresh weights here, give yours."""
    dataset = load_dataset("digits", train_limit=train_limit)
    distiller = KD(resnet(8, seed=0), resnet(16, seed=1))
    if enhanced:
        distiller = TMKDEnhancer(
            distiller, class_names=dataset.class_names, mean=dataset.mean, std=dataset.std, text=toy_text_encoder
        )
    return dataset, distiller


def items(split, dataset):
    """A split as the Trainer wants it: a list of dicts."""
    images = from_pixels(split.images, dataset.mean, dataset.std)
    return [{"pixel_values": image, "labels": label} for image, label in zip(images, split.labels, strict=True)]


def main(epochs=1, enhanced=True, folder="huggingface_run", checkpoint=None, train_limit=None):
    """Trains on the handwritten digits; returns the trainer."""
    dataset, distiller = build(enhanced, train_limit)
    trainer = Trainer(
        model=DistillationModel(distiller),
        args=TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=32,
            learning_rate=1e-3,
            save_strategy="epoch",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=items(dataset.train, dataset),
        eval_dataset=items(dataset.validation, dataset),
        compute_metrics=lambda p: {"top1": 100 * float((p.predictions.argmax(1) == p.label_ids).mean())},
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


if __name__ == "__main__":
    print(main().evaluate())
