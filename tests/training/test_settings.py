from __future__ import annotations

import dataclasses

import pytest

from tmkd_plugin.errors import InputError
from tmkd_plugin.training.settings import TrainingSettings


def test_every_setting_is_documented_with_its_default_and_a_source():
    defaults = {field.name: field.default for field in dataclasses.fields(TrainingSettings)}
    assert {name: setting.value for name, setting in TrainingSettings.SETTINGS.items()} == defaults
    assert all(setting.source and setting.meaning for setting in TrainingSettings.SETTINGS.values())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", 2.5),
        ("epochs", True),
        ("batch_size", -1),
        ("batch_size", "64"),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", None),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("warmup_epochs", -1),
        ("decay_epochs", (0, 5)),
        ("decay_epochs", (5, 5)),
        ("decay_epochs", (9, 5)),
        ("decay_epochs", 5),
        ("decay_rate", 0.0),
        ("decay_rate", 1.5),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=f"{name}=.*expected"):
        TrainingSettings(**{name: value})


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(InputError, match=r"warmup_epochs=5 is longer.*epochs=2.*scaled_to"):
        TrainingSettings(epochs=2, warmup_epochs=5)


def test_a_list_of_decay_epochs_as_yaml_gives_it_becomes_a_tuple():
    assert TrainingSettings(decay_epochs=[3, 4]).decay_epochs == (3, 4)


def test_scaled_to_keeps_the_fractions_of_the_run():
    short = TrainingSettings(learning_rate=0.05).scaled_to(24)
    assert (short.epochs, short.warmup_epochs, short.decay_epochs) == (24, 1, (15, 18, 21))
    assert short.learning_rate == 0.05


def test_scaled_to_one_epoch_is_still_a_valid_recipe():
    assert TrainingSettings().scaled_to(1) == TrainingSettings(epochs=1, warmup_epochs=0, decay_epochs=(1,))
