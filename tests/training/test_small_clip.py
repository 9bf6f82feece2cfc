import shutil

import pytest
import torch
import torch.nn.functional as F

from tmkd_plugin.errors import InputError
from tmkd_plugin.prompts import prompts_for
from tmkd_plugin.text_teacher import text_embeddings
from tmkd_plugin.training import small_clip
from tmkd_plugin.training.small_clip import RECIPE, train_small_clip, zero_shot_accuracy
from tmkd_plugin.views import ViewSettings

NAMES = ["zero", "one", "two"]


@pytest.fixture(scope="module", autouse=True)
def short_steps():
    """Steps of 36 pairs: as many steps from a sixth of the images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPE, "pairs_per_step", 36)
        yield


@pytest.fixture(scope="module")
def digits():
    """Real digits 0 to 2 as (train images, train labels, validation images, validation labels)."""
    from sklearn.datasets import load_digits

    data = load_digits(n_class=3)
    pixels = torch.from_numpy(data.images).float()[:, None] / 16 * 255
    images = F.interpolate(pixels, size=(32, 32), mode="bilinear").round().to(torch.uint8).repeat(1, 3, 1, 1)
    labels = torch.from_numpy(data.target).long()
    return images[:120], labels[:120], images[120:180], labels[120:180]


@pytest.fixture(scope="module")
def few_digits(digits):
    return tuple(tensor[:24] for tensor in digits)


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """One training of few epochs, what its progress said, and the global random state before and after."""
    cache = tmp_path_factory.mktemp("cache")
    progress, before, threads = [], torch.random.get_rng_state(), torch.get_num_threads()
    clip = train_small_clip(*digits, NAMES, cache_dir=cache, epochs=6, progress=lambda *call: progress.append(call))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    return clip, progress, cache


def weights_of(clip):
    return (clip.folder / "open_clip_model.safetensors").read_bytes()


def refused(message, digits, tmp_path, **changes):
    names = ("train_images", "train_labels", "validation_images", "validation_labels")
    arguments = (
        dict(zip(names, digits, strict=True)) | {"class_names": NAMES, "epochs": 1, "cache_dir": tmp_path} | changes
    )
    with pytest.raises(InputError, match=message):
        train_small_clip(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_it_learns(trained, digits):
    clip, _, _ = trained
    assert clip.validation_accuracy >= 80
    assert zero_shot_accuracy(clip.folder, *digits[:2], NAMES) >= 80


def test_the_weights_of_the_best_epoch_are_kept(trained, digits):
    clip, progress, _ = trained
    accuracies = [accuracy for _, accuracy in progress]
    assert [epoch for epoch, _ in progress] == list(range(1, 7))
    assert clip.validation_accuracy == max(accuracies) == accuracies[clip.epoch - 1]
    assert max(accuracies) not in accuracies[clip.epoch :]
    assert zero_shot_accuracy(clip.folder, *digits[2:], NAMES) == clip.validation_accuracy


def test_the_epoch_is_chosen_by_validation_of_equal_ones_the_last(few_digits, tmp_path, monkeypatch):
    kept = {}
    for accuracies in [(10.0, 50.0, 20.0), (10.0, 20.0, 50.0), (50.0, 50.0, 20.0)]:
        answers = iter(accuracies)
        monkeypatch.setattr(small_clip, "zero_shot_accuracy", lambda *arguments, answers=answers: next(answers))
        clip = train_small_clip(*few_digits, NAMES, cache_dir=tmp_path / str(accuracies), epochs=3)
        kept[accuracies] = (clip.epoch, clip.validation_accuracy, weights_of(clip))
    second, third, tied = kept.values()
    assert (second[:2], third[:2], tied[:2]) == ((2, 50.0), (3, 50.0), (2, 50.0))
    assert second[2] == tied[2]
    assert second[2] != third[2]


def test_zero_shot_accuracy_equals_a_loop_over_images_with_open_clip_alone(trained, digits):
    import open_clip

    clip, _, _ = trained
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip.folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{clip.folder}")
    from torchvision.transforms.functional import to_pil_image

    images, labels = digits[2][:20], digits[3][:20]
    correct = 0
    with torch.no_grad():
        prompts = [model.eval().encode_text(tokenizer(prompt))[0].double() for prompt in prompts_for(NAMES, "rgb")]
        for image, label in zip(images, labels, strict=True):
            feature = model.encode_image(preprocess(to_pil_image(image))[None])[0].double()
            cosines = [float(feature @ prompt / feature.norm() / prompt.norm()) for prompt in prompts]
            correct += cosines.index(max(cosines)) == label
    assert zero_shot_accuracy(clip.folder, images, labels, NAMES) == 100 * correct / 20
    assert zero_shot_accuracy(str(clip.folder), images, (labels + 1) % 3, NAMES) <= 100 - 100 * correct / 20


def test_zero_shot_accuracy_leaves_a_model_in_its_mode(trained, digits):
    import open_clip

    model = open_clip.create_model(f"local-dir:{trained[0].folder}").train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert zero_shot_accuracy(model, *digits[2:], NAMES) == trained[0].validation_accuracy
    assert model.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_the_folder_is_a_text_source_with_embeddings_that_differ_between_views(trained):
    clip, _, cache = trained
    text = text_embeddings(NAMES, clip.folder, cache_dir=cache)
    assert text.tensor.shape == (3, 3, 64)
    assert text.text_views == "per view"
    cosines = torch.einsum("vkd,wkd->kvw", text.tensor, text.tensor)
    assert (cosines.flatten(1)[:, [1, 2, 5]] < 0.99).all()  # the pairs of different views


def test_the_second_time_it_is_found_without_training(trained, digits):
    clip, _, cache = trained
    calls = []
    again = train_small_clip(*digits, NAMES, cache_dir=cache, epochs=6, progress=lambda *call: calls.append(call))
    assert (again, calls) == (clip, [])


def test_same_seed_same_bits_and_another_seed_others(few_digits, tmp_path):
    torch.manual_seed(1)
    first = train_small_clip(*few_digits, NAMES, cache_dir=tmp_path / "a", epochs=1)
    torch.manual_seed(2)
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    try:
        second = train_small_clip(*few_digits, NAMES, cache_dir=tmp_path / "b", epochs=1)
    finally:
        torch.set_num_threads(threads)
    other = train_small_clip(*few_digits, NAMES, cache_dir=tmp_path / "b", epochs=1, seed=1)
    assert weights_of(first) == weights_of(second)
    assert weights_of(first) != weights_of(other)
    assert first.folder.name == second.folder.name != other.folder.name


def test_everything_that_matters_leads_to_another_folder(few_digits, tmp_path):
    darker = (few_digits[0] // 2, *few_digits[1:])
    changes = [
        ({}, few_digits, NAMES),
        ({"epochs": 2}, few_digits, NAMES),
        ({}, few_digits, NAMES[::-1]),
        ({}, darker, NAMES),
        ({"view_settings": ViewSettings(edge_alpha=0.5)}, few_digits, NAMES),
    ]
    folders = {
        train_small_clip(*data, names, cache_dir=tmp_path, **({"epochs": 1} | arguments)).folder
        for arguments, data, names in changes
    }
    assert len(folders) == 5


def test_an_interruption_leaves_nothing(few_digits, tmp_path):
    def interrupt(epoch, accuracy):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_small_clip(*few_digits, NAMES, cache_dir=tmp_path, epochs=1, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_nothing(few_digits, tmp_path, monkeypatch):
    import safetensors.torch

    def interrupted(tensors, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.torch, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_small_clip(*few_digits, NAMES, cache_dir=tmp_path, epochs=1)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_folder_is_refused_by_path(trained, digits, tmp_path):
    clip, _, _ = trained
    folder = tmp_path / clip.folder.name
    shutil.copytree(clip.folder, folder)
    weights = folder / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InputError, match=rf"{folder} is damaged \(open_clip_model.safetensors\). Delete this folder"):
        train_small_clip(*digits, NAMES, cache_dir=tmp_path, epochs=6)
    (folder / "training.json").unlink()
    with pytest.raises(InputError, match=rf"{folder} is incomplete .*training.json.* Delete this folder"):
        train_small_clip(*digits, NAMES, cache_dir=tmp_path, epochs=6)


def test_unusable_data_is_refused_before_training(digits, tmp_path):
    images, labels = digits[:2]
    refused(r"training images must be uint8 .*given: torch.float32", digits, tmp_path, train_images=images.float())
    refused(r"given: torch.uint8 \(120, 1, 32, 32\)", digits, tmp_path, train_images=images[:, :1])
    refused(r"validation images must be uint8 .*\(0, 3, 32, 32\)", digits, tmp_path, validation_images=images[:0])
    refused(r"training labels must be int64 \(120,\).*\(119,\)", digits, tmp_path, train_labels=labels[1:])
    refused("given: torch.float32", digits, tmp_path, train_labels=labels.float())
    refused(r"must lie in \[0, 2\].*from 0 to 3", digits, tmp_path, train_labels=(labels + 1).where(labels > 1, labels))
    refused("no training image of: one", digits, tmp_path, train_labels=labels.where(labels != 1, 2))
    refused("Duplicate class names", digits, tmp_path, class_names=["one", "two", "one"])
    refused("epochs must be at least 1; given: 0", digits, tmp_path, epochs=0)


def test_zero_shot_accuracy_refuses_unusable_data(trained, digits, tmp_path):
    folder = trained[0].folder
    with pytest.raises(InputError, match="test images must be uint8"):
        zero_shot_accuracy(folder, digits[2].float(), digits[3], NAMES)
    with pytest.raises(InputError, match=r"must lie in \[0, 1\]"):
        zero_shot_accuracy(folder, digits[2], digits[3], NAMES[:2])
    with pytest.raises(InputError, match=r"no open_clip checkpoint"):
        zero_shot_accuracy(tmp_path, digits[2], digits[3], NAMES)
