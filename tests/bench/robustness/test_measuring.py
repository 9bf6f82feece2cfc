"""What networks are shown, and that teachers' shared work changes no answer."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from tmkd_plugin.bench.robustness.counts import Counts
from tmkd_plugin.bench.robustness.images import measured_images
from tmkd_plugin.bench.robustness.measuring import Draw, _logits, conditions_of, measure
from tmkd_plugin.bench.robustness.networks import MeasuredNetwork
from tmkd_plugin.bench.view_fusion import FusedViews
from tmkd_plugin.corruptions import corrupt
from tmkd_plugin.data.dataset import ImageSplit

PLAIN = SimpleNamespace(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Recorder(nn.Module):
    """Remembers the images that it is shown, and always says class 1."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def forward(self, images):
        self.shown.append(images)
        return torch.tensor([0.0, 1.0, 0.0]).expand(len(images), 3)


def test_every_image_is_corrupted_by_its_own_id_in_every_batch(tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (150, 3, 8, 8), dtype=torch.uint8, generator=generator)
    ids, labels = torch.arange(150).flip(0) + 1000, torch.arange(150) % 3
    test = measured_images("test", ImageSplit(images, labels, ids))
    recorder, counts, steps = Recorder(), Counts(tmp_path, {}), []
    network = MeasuredNetwork("kd", "KD", 0, recorder, "", "digest")
    conditions = conditions_of(test, ["gaussian_noise"], [2], [])
    measure([network], conditions, PLAIN, counts, draw=Draw(seed=6), advance=steps.append)
    clean, noisy = torch.cat(recorder.shown).mul(255).round().to(torch.uint8).split(150)
    assert torch.equal(clean, images)
    assert torch.equal(noisy, corrupt(images, "gaussian_noise", 2, seed=6, ids=ids))
    assert steps == ["clean", "gaussian_noise/2"]
    assert counts.get("digest", "clean") == counts.get("digest", "gaussian_noise/2") == 50
    assert Counts(tmp_path, {}).get("digest", "clean") == 50
    assert Counts(tmp_path, {"seed": 1}).get("digest", "clean") is None


def test_fusions_of_one_teacher_answer_as_alone():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)).eval()
    images = torch.rand(3, 3, 16, 16)
    weights = {("rgb",): [1.0], ("rgb", "edge"): [0.3, 0.7], ("edge", "rgb"): [0.3, 0.7]}
    fusions = [FusedViews(teacher, torch.tensor(each), views, PLAIN.mean, PLAIN.std) for views, each in weights.items()]
    fusions.append(FusedViews(teacher, torch.tensor([0.9, 0.1]), ("rgb", "edge"), PLAIN.mean, PLAIN.std))
    seen = {}
    for fusion in fusions:
        assert torch.equal(_logits(fusion, images, seen), fusion(images))
    assert len(seen) == 3
    assert len({tuple(fusion(images).flatten().tolist()) for fusion in fusions}) == 4
