"""What a wrapped distiller may ask its teacher: which images, by which call, how often."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from distiller_forms import (
    LABELS,
    NAMES,
    TEXT,
    Base,
    OurDict,
    check,
    images,
    wrap,
)
from tiny_networks import TinyConvNet
from torch import Tensor, nn

from tmkd_plugin import TMKDEnhancer
from tmkd_plugin.errors import InputError
from tmkd_plugin.randomness import forked_random_state


@pytest.mark.parametrize("change", ["crop", "order", "size", "flip"])
def test_other_images_than_the_batch_ask_for_their_labels(change: str) -> None:
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "crop": lambda x: F.pad(x[..., 2:, 2:], (0, 2, 0, 2)),
        "order": lambda x: x.flip(0),
        "size": lambda x: F.interpolate(x, size=24),
        "flip": lambda x: x.flip(3),
    }

    class Changed(Base):
        def forward(self, batch: Tensor, labels: Tensor) -> Tensor:
            return sum(self.losses(self.student(batch), self.teacher(changes[change](batch)), labels).values())

    distiller = Changed()
    enhancer = wrap(distiller)
    with pytest.raises(InputError, match="teacher_labels="):
        enhancer(images(), LABELS)
    teacher_labels = LABELS.flip(0) if change == "order" else LABELS
    if change == "order":
        with pytest.raises(InputError, match=r"not the same images.*feature_weight=0"):
            enhancer(images(), LABELS, teacher_labels=teacher_labels)
        enhancer = wrap(distiller, feature_weight=0.0, logit_weight=0.0)
    enhancer(images(), LABELS, teacher_labels=teacher_labels)["loss"].backward()
    per_view = enhancer.views_forward(changes[change](images()))
    torch.testing.assert_close(distiller.heard[-1], enhancer.fuse(per_view, teacher_labels))


def test_more_images_than_labels_ask_for_their_labels() -> None:
    class Doubled(Base):
        def forward(self, batch: Tensor, labels: Tensor) -> Tensor:
            teacher = self.teacher(torch.cat([batch, batch.flip(3)]))
            return sum(self.losses(self.student(batch), teacher[:5], labels).values())

    with pytest.raises(InputError, match="teacher_labels="):
        wrap(Doubled())(images(), LABELS)
    enhancer = wrap(Doubled(), feature_weight=0.0, logit_weight=0.0)
    enhancer(images(), LABELS, teacher_labels=LABELS.repeat(2))["loss"].backward()


def test_the_same_pixels_in_another_tensor_are_the_batch() -> None:
    class Copies(Base):
        def forward(self, batch: Tensor, labels: Tensor) -> Tensor:
            return sum(self.losses(self.student(batch), self.teacher(batch.clone()), labels).values())

    distiller = Copies()
    check(wrap(distiller), distiller.heard)


def test_a_distiller_that_never_calls_its_teacher_is_an_error() -> None:
    class Forgetful(Base):
        def forward(self, batch: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(self.student(batch), labels)

    with pytest.raises(InputError, match=r"never called its teacher \(TinyConvNet\)"):
        wrap(Forgetful())(images(), LABELS)


def test_the_batch_counts_even_if_the_teacher_sees_another_crop_first() -> None:
    class CropFirst(OurDict):
        def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
            self.teacher(images.flip(3))
            return super().forward(images, labels)

    plain, cropped = wrap(OurDict()), wrap(CropFirst())
    expected = plain(images(), LABELS)["feature_kl"]
    torch.testing.assert_close(cropped(images(), LABELS, teacher_labels=LABELS)["feature_kl"], expected)


@pytest.mark.parametrize("pre_logits", [False, True])
def test_logit_source_rgb_holds_for_forward_head_too(pre_logits: bool) -> None:
    class Heads(Base):
        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            head = self.teacher.forward_head(self.teacher.forward_features(images), pre_logits=pre_logits)
            self.heard.append(head)
            return F.cross_entropy(self.student(images), labels)

    distiller = Heads()
    enhancer = wrap(distiller, logit_source="rgb")
    enhancer(images(), LABELS)
    rgb = distiller.teacher.forward_head(distiller.teacher.forward_features(images()), pre_logits=pre_logits)
    assert torch.equal(distiller.heard[0], rgb) == (not pre_logits)


def test_logit_source_rgb_holds_for_a_teacher_that_is_called_for_its_features() -> None:
    """Where the logits stand in the answer depends on the call, not on the probe's."""

    class Featured(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, width, 3), nn.Linear(width, 4)

        def forward(self, images: Tensor, is_feat: bool = False) -> Any:
            feature_map = self.conv(images).relu()
            pooled = feature_map.mean((2, 3))
            logits = self.fc(pooled)
            return ([feature_map, pooled], logits) if is_feat else logits

    seen: list[Any] = []
    with forked_random_state(0, "featured"):
        student, teacher = Featured(5), Featured(6)

    def distiller(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = student(images)
        seen.append(teacher(images, is_feat=True))
        return {"loss": (logits - seen[-1][1].detach()).square().mean(), "output": logits}

    text = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
    enhancer = TMKDEnhancer(
        distiller,
        list("abcd"),
        student=student,
        teacher=teacher,
        text=text,
        logit_source="rgb",
        logit_weight=0,
        input_size=16,
    )
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    enhancer(images, torch.arange(6) % 4)
    (feature_map, pooled), logits = seen[0]
    own = teacher(images, is_feat=True)
    assert torch.equal(logits, own[1])
    assert feature_map.shape == own[0][0].shape
    assert not torch.equal(pooled, own[0][1])


def test_a_container_that_the_teacher_reuses_is_fused() -> None:
    class Reuses(TinyConvNet):
        def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
            self.__dict__.setdefault("kept", []).clear()
            self.kept.append(self.forward_features(images))
            return self.forward_head(self.kept[0]), self.kept

    class Keeps(Base):
        network = Reuses

        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            teacher, features = self.teacher(images)
            torch.testing.assert_close(self.teacher.forward_head(features[0]), teacher)
            return sum(self.losses(self.student(images)[0], teacher, labels).values())

    distiller = Keeps()
    check(wrap(distiller), distiller.heard)


def test_hooks_on_the_teacher_itself_run_once_and_those_inside_end_with_the_rgb_view() -> None:
    bare, distiller = OurDict(), OurDict()
    inside = []
    bare.teacher.eval()
    for each in (bare, distiller):
        each.teacher.register_forward_hook(lambda module, args, output: output * 2)
    distiller.teacher.fc.register_forward_hook(lambda module, args, output: inside.append(output))
    enhancer = TMKDEnhancer(
        distiller, NAMES, text=TEXT[:1], views=("rgb",), feature_weight=0, contrast_weight=0, logit_weight=0
    )
    assert torch.equal(enhancer(images(), LABELS)["loss"], bare(images(), LABELS)["loss"])

    inside.clear()
    three_views = wrap(distiller)
    three_views(images(), LABELS)
    assert torch.equal(inside[-1] * 2, distiller.teacher(images()))
