"""A distiller of one's own, wrapped in three lines. Run it: python docs/examples/my_distiller.py."""

import torch
import torch.nn.functional as F
from torch import nn

from tmkd_plugin import TMKDEnhancer
from tmkd_plugin.data import load_dataset, training_batches
from tmkd_plugin.zoo import build_network


class MyDistiller(nn.Module):
    """Any module with a student and a teacher; this one adds half a KL of logits to the cross-entropy."""

    has_logit_kl = True  # it has one, so TMKD need not add another

    def __init__(self, student, teacher, alpha=0.5):
        super().__init__()
        self.student, self.teacher, self.alpha = student, teacher, alpha

    def forward(self, images, labels):
        logits = self.student(images)
        with torch.no_grad():
            target = F.softmax(self.teacher(images), dim=1)
        terms = {
            "cross_entropy": F.cross_entropy(logits, labels),
            "kl": self.alpha * F.kl_div(F.log_softmax(logits, dim=1), target, reduction="batchmean"),
        }
        return logits, terms


def toy_text_encoder(prompts):
    """Stands in for CLIP, so that this example needs no download: counts of letters."""
    return torch.tensor(
        [[float(prompt.count(letter)) for letter in "abcdefghijklmnopqrstuvwxyz"] for prompt in prompts]
    )


def main(epochs=1):
    """Trains the wrapped distiller on the handwritten digits and prints the loss of every tenth step."""
    dataset = load_dataset("digits")
    distiller = MyDistiller(build_network("resnet8", 10), build_network("resnet14", 10))

    distiller = TMKDEnhancer(
        distiller, class_names=dataset.class_names, mean=dataset.mean, std=dataset.std, text=toy_text_encoder
    )
    optimiser = torch.optim.SGD(distiller.trainable_parameters(), lr=0.05, momentum=0.9)

    for epoch in range(1, epochs + 1):
        batches = training_batches(
            dataset.train, dataset.augmentation, dataset.mean, dataset.std, batch_size=32, seed=0, epoch=epoch
        )
        for step, batch in enumerate(batches):
            losses = distiller(batch.images, batch.labels)
            optimiser.zero_grad()
            losses["loss"].backward()
            optimiser.step()
            if step % 10 == 0:
                shown = {name: round(float(term.detach()), 3) for name, term in losses.items() if name != "output"}
                print(f"epoch {epoch}, step {step}: {shown}")
    return distiller


if __name__ == "__main__":
    main()
