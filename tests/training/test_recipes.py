"""Recipes by name: complete, checked, distinct, and the ones that presets and publications have."""

from __future__ import annotations

import shutil

import pytest

from tmkd_plugin.errors import InputError
from tmkd_plugin.presets import load_preset
from tmkd_plugin.training import recipes
from tmkd_plugin.training.recipes import describe_recipe, load_recipe, recipe_by_name, recipe_name_of, recipe_names
from tmkd_plugin.training.schedule import learning_rate
from tmkd_plugin.training.settings import TrainingSettings


def test_every_recipe_is_complete_and_no_two_are_alike():
    assert {"digits", "cifar_240", "cifar_60", "fine_tune_224", "paper_120"} <= set(recipe_names())
    values = [recipe_by_name(name) for name in recipe_names()]
    assert len(set(values)) == len(values)
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.source.startswith(("paper", "official code", "ours"))
        assert describe_recipe(name) == f"{recipe.meaning} [{recipe.source}]"


def test_a_recipe_is_found_by_its_values():
    for name in recipe_names():
        assert recipe_name_of(recipe_by_name(name)) == name
    assert recipe_name_of(TrainingSettings(epochs=7, decay_epochs=(5,))) is None


@pytest.mark.parametrize(
    ("recipe", "preset"), [("digits", "digits"), ("small_40", "cifar10_small"), ("cifar_60", "image_folder")]
)
def test_recipes_of_presets_are_what_the_presets_train_teachers_with(recipe, preset):
    assert recipe_by_name(recipe) == TrainingSettings(**load_preset(preset)["teacher_training"])


def test_the_papers_recipe_is_what_our_defaults_are():
    assert recipe_by_name("paper_120") == TrainingSettings()


def test_the_published_recipe_steps_at_150_180_and_210():
    """mdistiller's configs/cifar100: SGD 0.05, batch 64, 240 epochs, x0.1 at 150, 180, 210, weight decay 5e-4."""
    settings = recipe_by_name("cifar_240")
    rates = [learning_rate(settings, epoch, 0, 10) for epoch in range(1, 241)]
    assert rates == pytest.approx([0.05] * 150 + [0.005] * 30 + [5e-4] * 30 + [5e-5] * 30)
    assert (settings.batch_size, settings.momentum, settings.weight_decay) == (64, 0.9, 5e-4)


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(InputError, match=r"Unknown recipe 'cifar_204'\. Did you mean 'cifar_240'"):
        recipe_by_name("cifar_204")


def test_a_file_of_ones_own(tmp_path):
    shutil.copy(recipes.FOLDER / "digits.yaml", tmp_path / "mine.yaml")
    recipe = load_recipe(str(tmp_path / "mine.yaml"))
    assert (recipe.name, recipe.settings) == ("mine", recipe_by_name("digits"))
    with pytest.raises(InputError, match="no recipe file"):
        load_recipe("./nowhere.yaml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("epoch: 10", r"epoch: unknown key \(mine.yaml\)\. Did you mean 'epochs'\?"),
        ("epochs: ten", "epochs: expected a whole number, got 'ten'"),
        ("epochs: true", "epochs: expected a value other than true or false"),
        ("epochs: 0", "epochs=0 can't be used: expected a whole number of at least 1"),
        ("decay_epochs: [8, 6]", "decay_epochs"),
        ("source: 3", "source: expected text, got 3"),
        ("momentum:", "momentum: expected a number, got None"),
        ("- 5", "is not YAML"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    text = (recipes.FOLDER / "digits.yaml").read_text()
    key = line.partition(":")[0]
    kept = [other for other in text.splitlines() if other.partition(":")[0] != key]
    (tmp_path / "mine.yaml").write_text("\n".join([*kept, line]))
    with pytest.raises(InputError, match=message):
        load_recipe(str(tmp_path / "mine.yaml"))


def test_a_recipe_that_leaves_a_value_out_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("meaning: short\nsource: ours\nepochs: 3\n")
    with pytest.raises(InputError) as caught:
        load_recipe(str(tmp_path / "mine.yaml"))
    missing = [line.split(":")[0].strip() for line in str(caught.value).splitlines() if "missing" in line]
    assert missing == [name for name in TrainingSettings.SETTINGS if name != "epochs"]
