"""What can't be trained from a teacher's kept answers is told so by name, in a trial step and in training."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import nn

from tmkd_plugin.baselines import build_baseline
from tmkd_plugin.clip_teacher import ClipTeacher
from tmkd_plugin.data.batches import Batch, normalize
from tmkd_plugin.data.dataset import Augmentation, ImageDataset, ImageSplit
from tmkd_plugin.enhancer import TMKDEnhancer
from tmkd_plugin.errors import InputError
from tmkd_plugin.richkd import RichKDEnhancer
from tmkd_plugin.training.settings import TrainingSettings
from tmkd_plugin.training.teacher_cache import TeacherCacheFolder, views_needed
from tmkd_plugin.training.teacher_cache_forward import Answers, KnownBatch, KnownForward
from tmkd_plugin.training.teacher_cache_key import RGB, View
from tmkd_plugin.training.teacher_cache_trial import require_kept_answers_suffice
from tmkd_plugin.training.teacher_cache_view import UnmadeView, unmade_view
from tmkd_plugin.training.trainer import train_distiller
from tmkd_plugin.views import VIEW_NAMES, ViewSettings
from tmkd_plugin.zoo import build_network

NAMES = ["blue", "green", "red"]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def split(count: int, seed: int) -> ImageSplit:
    images = torch.randint(0, 256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(seed))
    return ImageSplit(images.to(torch.uint8), torch.arange(count) % 3, torch.arange(count))


DATASET = ImageDataset(
    name="noise", class_names=NAMES, mean=MEAN, std=STD, augmentation=Augmentation(), fingerprint="0" * 64,
    train=split(8, 1), validation=split(3, 2), test=split(3, 3),
)  # fmt: skip
TRAIN = DATASET.train
BATCH = Batch(normalize(TRAIN.images, MEAN, STD), TRAIN.labels, TRAIN.ids)


def networks() -> tuple[nn.Module, nn.Module]:
    return build_network("resnet8", 3, seed=3), build_network("resnet8", 3, seed=9).eval()


def tmkd(inner: nn.Module, **settings) -> TMKDEnhancer:
    views = len(settings.get("views", VIEW_NAMES))
    text = torch.randn(views, 3, 8, generator=torch.Generator().manual_seed(4))
    return TMKDEnhancer(inner, NAMES, text=text, mean=MEAN, std=STD, input_size=16, **settings)


class TinyTower(nn.Module):
    """Stands in for an open_clip model."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = type("Visual", (), {"preprocess_cfg": {"size": 8, "mean": (0.5,) * 3, "std": (0.25,) * 3}})()
        self.weight = nn.Parameter(torch.randn(6, 192, generator=torch.Generator().manual_seed(4)))

    def encode_image(self, prepared):
        return prepared.flatten(1) @ self.weight.T


def richkd(inner: nn.Module) -> RichKDEnhancer:
    prototypes = nn.functional.normalize(torch.randn(3, 6, generator=torch.Generator().manual_seed(5)), dim=1)
    small = {"projection_width": 4, "negatives": 5, "queue_size": 20}
    clip = ClipTeacher(TinyTower(), prototypes, "tiny")
    return RichKDEnhancer(inner, NAMES, clip=clip, mean=MEAN, std=STD, input_size=16, **small)


def tried(distiller: nn.Module, title: str = "mine") -> None:
    require_kept_answers_suffice(distiller.train(), title, BATCH, DATASET)


@pytest.mark.parametrize("name", ["kd", "rkd", "tekap"])
def test_logits_and_pooled_features_suffice(name):
    tried(build_baseline(name, *networks()))
    tried(tmkd(build_baseline(name, *networks())))
    tried(richkd(build_baseline(name, *networks())))
    tried(tmkd(richkd(build_baseline(name, *networks()))))


@pytest.mark.parametrize("name", ["sp", "catkd"])
def test_feature_maps_are_not_kept(name):
    for distiller in (build_baseline(name, *networks()), tmkd(build_baseline(name, *networks()))):
        with pytest.raises(
            InputError, match=r"THE ARM can't be trained with --teacher-cache.*the teacher's last feature map"
        ):
            tried(distiller, "THE ARM")


def test_who_has_no_teacher_needs_no_answers():
    module = nn.Module()
    module.student = networks()[0]
    tried(module)


class Own(nn.Module):
    """A distiller of a user's, which does something with its teacher."""

    def __init__(self, ask) -> None:
        super().__init__()
        self.student, self.teacher = networks()
        self.__dict__["ask"] = ask

    def forward(self, images, labels):
        with torch.no_grad():
            said = self.ask(self.teacher, images)
        loss = nn.functional.mse_loss(self.student(images), said)
        return {"loss": loss, "mse": loss}


def hooked(teacher, images):
    heard = []
    handle = teacher.pool.register_forward_hook(lambda module, args, output: heard.append(output))
    try:
        logits = teacher(images)
    finally:
        handle.remove()
    return logits + heard[0].mean()


def with_gradient(teacher, images):
    with torch.enable_grad():
        return teacher(images.clone().requires_grad_())


def unpacked(teacher, images):
    logits, _ = teacher(images)
    return logits


ASKED = {
    "forward_features, which is more than its logits": lambda t, x: t.forward_head(t.forward_features(x)),
    "is called with 2 arguments instead of the images alone": lambda t, x: t(x, True),
    "images of shape .* that are not those of the batch": lambda t, x: t(x.flip(0)),
    "that are not those of the batch (.*)": lambda t, x: t(x[:, :, 1:-1, 1:-1]),
    "is listened to inside": hooked,
    "is called with gradient": with_gradient,
    "is in training mode": lambda t, x: t.train()(x),
    "too many values to unpack": unpacked,
}


@pytest.mark.parametrize("reason", ASKED)
def test_a_users_distiller_that_asks_for_more(reason, tmp_path):
    ask = ASKED[reason]
    with pytest.raises(
        InputError, match=f"mine can't be trained with --teacher-cache.*{reason}.*Leave --teacher-cache out"
    ):
        tried(Own(ask))
    # Who trains without a trial is told so too, in the first step.
    folder = TeacherCacheFolder(tmp_path / "answers", lambda line: None)
    settings = TrainingSettings(epochs=1, batch_size=8, warmup_epochs=0, decay_epochs=())
    with pytest.raises((InputError, ValueError), match=reason):
        train_distiller(Own(ask), DATASET, settings, seed=0, folder=tmp_path / "run", teacher_cache=folder)


def louder_inside(teacher, images):
    teacher.fc.weight_of_call, own = 2.0, teacher.fc.forward
    teacher.fc.forward = lambda pooled: teacher.fc.weight_of_call * own(pooled)
    try:
        return teacher(images)
    finally:
        del teacher.fc.forward, teacher.fc.weight_of_call


def test_a_users_distiller_that_changes_its_teacher_for_the_call():
    with pytest.raises(InputError, match=r"mine can't be trained.*its loss is .* but .* with the teacher itself"):
        tried(Own(louder_inside))


def test_a_teacher_whose_forward_was_replaced_on_the_object():
    distiller = Own(lambda teacher, images: teacher(images))
    distiller.teacher.fc.forward = lambda pooled: pooled[:, :3]
    with pytest.raises(InputError, match=r"The forward of 'fc' in the teacher .* was replaced on the object"):
        tried(distiller)


def test_a_teacher_that_draws_random_numbers(tmp_path):
    class Noisy(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, images):
            return nn.functional.dropout(self.network(images), 0.1)

    distiller = Own(lambda teacher, images: teacher(images))
    distiller.teacher = Noisy(distiller.teacher)
    message = r"The teacher \(Noisy\) draws random numbers in eval mode too"
    with pytest.raises(InputError, match=message):
        tried(distiller)
    folder = TeacherCacheFolder(tmp_path / "answers", lambda line: None)
    settings = TrainingSettings(epochs=1, batch_size=8, warmup_epochs=0, decay_epochs=())
    with pytest.raises(InputError, match=message):
        train_distiller(distiller, DATASET, settings, seed=0, folder=tmp_path / "run", teacher_cache=folder)


@pytest.mark.parametrize("cut", [slice(None), slice(0, 3), slice(2, 8), slice(7, 8)])
def test_a_users_distiller_that_asks_about_a_part_of_the_batch(cut, tmp_path):
    off = []

    def ask(teacher, images):
        honest = copy.deepcopy(reference)
        off.append(float((teacher(images[cut]) - honest(images[cut])).abs().max()))
        return teacher(images)

    distiller = Own(ask)
    reference = copy.deepcopy(distiller.teacher)
    folder = TeacherCacheFolder(tmp_path / "answers", lambda line: None)
    settings = TrainingSettings(epochs=1, batch_size=8, warmup_epochs=0, decay_epochs=())
    train_distiller(distiller, DATASET, settings, seed=0, folder=tmp_path / "run", teacher_cache=folder)
    assert len(off) == 1
    assert max(off) < 1e-4


def test_images_that_are_written_to_are_others():
    def ask(teacher, images):
        images += 1
        return teacher(images)

    batch = Batch(BATCH.images.clone(), BATCH.labels, BATCH.ids)
    with pytest.raises(InputError, match="not those of the batch"):
        require_kept_answers_suffice(Own(ask), "mine", batch, DATASET)


def test_pixels_of_a_view_are_needed_by_a_clip_around_tmkd():
    """RichKD's CLIP would be shown every view that TMKD asks the teacher about."""
    with pytest.raises(InputError, match=r"The pixels of a view are needed.*no view is made"):
        tried(richkd(tmkd(build_baseline("kd", *networks()))))


def test_a_normalisation_of_ones_own():
    text = torch.randn(3, 3, 8)
    arm = TMKDEnhancer(
        build_baseline("kd", *networks()), NAMES, text=text, mean=MEAN, std=(0.2, 0.25, 0.301), input_size=16
    )
    with pytest.raises(InputError, match=r"with mean \(0.5, 0.4, 0.3\) and std \(0.2, 0.25, 0.3\)"):
        tried(arm)


def test_views_that_are_needed():
    kd = build_baseline("kd", *networks())
    assert views_needed(kd) == [RGB]
    settings = ViewSettings()
    three = [RGB, View("edge", settings), View("high_frequency", settings)]
    assert views_needed(tmkd(kd)) == three
    assert views_needed(richkd(tmkd(kd))) == three
    low = tmkd(kd, views=("edge",), canny_low=50)
    assert views_needed(low) == [RGB, View("edge", ViewSettings(canny_low=50))]


def test_a_batch_that_is_over_is_let_go_of():
    answers = {RGB: Answers(torch.rand(8, 3), torch.rand(8, 4))}
    known = KnownBatch(answers, MEAN, STD)
    first = BATCH.images.clone()
    over = weakref.ref(first)
    teacher = networks()[1]
    with KnownForward(teacher, known, "fc").installed(), torch.no_grad():
        known.begin(first, torch.tensor([3, 1, 0, 2, 4, 5, 6, 7]))
        assert torch.equal(teacher(first), answers[RGB].logits[[3, 1, 0, 2, 4, 5, 6, 7]])
        assert teacher(first) is teacher(first), "looked up once"
        del first
        known.begin(BATCH.images, torch.arange(8))
        assert over() is None


def test_an_unmade_view_can_be_cut_but_not_looked_at():
    view = unmade_view(torch.ones(4, 3, 8, 8))
    assert (view.shape, view.dtype, len(view[1:3])) == ((4, 3, 8, 8), torch.float32, 2)
    assert isinstance(view[1:3], UnmadeView)
    assert all(isinstance(part, UnmadeView) for part in view.tensor_split(2))
    assert not torch.equal(view, view)
    for look in (
        lambda: view + 1,
        lambda: view.mean(),
        lambda: nn.Conv2d(3, 1, 3)(view),
        lambda: view.tolist(),
        view.clone,
    ):
        with pytest.raises(InputError, match=r"The pixels of a view are needed.*without --teacher-cache"):
            look()
