"""Presets, the command line and where values come from; what is unknown or of a wrong type."""

from __future__ import annotations

import pytest

from tmkd_plugin.bench.configuration import configure
from tmkd_plugin.config import Layer, Section, parse_assignments, resolve
from tmkd_plugin.errors import InputError
from tmkd_plugin.presets import describe_preset, load_preset, preset_for, preset_names
from tmkd_plugin.seeds import parse_seeds
from tmkd_plugin.settings import Setting

SECTIONS = {"kd": Section({"temperature": Setting(4.0, "official code", "T")}, {"temperature": float})}


def resolved(*layers, bare=None):
    return resolve(
        [Layer("preset p", {"dataset": "digits"}), *(Layer(f"layer {i}", v) for i, v in enumerate(layers))],
        SECTIONS,
        bare,
    )


def problem(*layers, bare=None) -> str:
    with pytest.raises(InputError) as caught:
        resolved(*layers, bare=bare)
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "seeds"),
    [
        (3, (0, 1, 2)),
        ("3", (0, 1, 2)),
        ("0,1,5", (0, 1, 5)),
        ("8-11", (8, 9, 10, 11)),
        ("0-1, 7", (0, 1, 7)),
        ("5-5", (5,)),
        ([4, 2], (4, 2)),
    ],
)
def test_seeds(written, seeds):
    assert parse_seeds(written) == seeds


@pytest.mark.parametrize(
    "written", [0, -1, "", "x", "1;2", "3-1", "1,1", "1-", [1.5], [True], True, 2.5, None, [-1], []]
)
def test_unusable_seeds(written):
    with pytest.raises(ValueError, match=r"expected a number n|a seed twice"):
        parse_seeds(written)


def test_assignments_are_read_as_yaml():
    given = parse_assignments(
        ["kd.temperature=2", "kd.ce_weight=1e-3", "text=a=b.npz", "controls=true", "image_size=null", "seeds=[1, 2]"]
    )
    assert given == {
        "kd": {"temperature": 2, "ce_weight": "1e-3"},
        "text": "a=b.npz",
        "controls": True,
        "image_size": None,
        "seeds": [1, 2],
    }


@pytest.mark.parametrize("written", ["kd", "=1", ".a=1", "a.=1", "a.b.c=1"])
def test_unusable_assignments(written):
    with pytest.raises(InputError, match=r"expected key=value or section\.key=value"):
        parse_assignments([written])


def test_an_assignment_can_not_be_a_value_and_a_section():
    with pytest.raises(InputError, match="was given a value before"):
        parse_assignments(["kd=1", "kd.temperature=2"])


def test_later_layers_win_and_every_value_has_its_source():
    found = resolved({"student": "resnet14", "kd": {"temperature": 2}}, {"kd": {"temperature": "1e1"}})
    assert found.given["kd"] == {"temperature": 10.0}
    assert found.described["kd"]["temperature"] == {"value": 10.0, "source": "layer 1"}
    assert found.described["student"] == {"value": "resnet14", "source": "layer 0"}
    assert found.described["teacher"]["source"] == "ours"
    assert resolved().described["kd"]["temperature"] == {"value": 4.0, "source": "official code"}


def test_unknown_keys_name_their_path_source_and_neighbour():
    message = problem({"kd": {"temprature": 1}, "studnet": "x"})
    assert "kd.temprature: unknown key (layer 0). Did you mean 'kd.temperature'?" in message
    assert "studnet: unknown key (layer 0). Did you mean 'student'?" in message


def test_a_key_without_section_belongs_to_the_only_baseline():
    assert resolved({"temperature": 3}, bare="kd").given["kd"] == {"temperature": 3.0}
    assert "unknown key" in problem({"temperature": 3})


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"kd": {"temperature": "hot"}}, "kd.temperature: expected a number, got 'hot'."),
        ({"kd": {"temperature": True}}, "kd.temperature: expected a value other than true or false, got True."),
        ({"kd": 3}, "kd: expected a section of keys and values, got 3"),
        ({"train_limit": "many"}, "train_limit: expected a whole number, got 'many'."),
        ({"train_limit": 0}, "train_limit: expected a number of at least 1, got 0."),
        ({"train_limit": True}, "train_limit: expected a value other than true or false, got True."),
        ({"train_limit": 2.5}, "train_limit: expected a whole number, got 2.5."),
        ({"validation_fraction": 1}, "validation_fraction: expected a number below 1.0, got 1."),
        ({"teacher_views": "rbg"}, "teacher_views: expected one of 'rgb', 'all', got 'rbg'. Did you mean 'rgb'?"),
        ({"controls": "maybe"}, "controls: expected true or false, got 'maybe'."),
        ({"student": 8}, "student: expected text, got 8."),
        (
            {"seeds": "x"},
            "seeds: expected a number n (seeds 0 to n-1), a list such as 0,1,5, or a range",
        ),
        ({"baseline": "kd,kd"}, "baseline: holds a name twice, got 'kd,kd'."),
        ({"baseline": 3}, "baseline: expected a list, got 3."),
    ],
)
def test_unusable_values_are_one_line_each(values, line):
    message = problem(values)
    assert line in message
    assert len(message.splitlines()) == 2
    assert "pydantic" not in message
    assert "type=" not in message


def test_a_missing_data_set():
    with pytest.raises(InputError, match="dataset: expected a value, for there is no default"):
        resolve([], SECTIONS)


def test_presets_are_found_by_data_set():
    assert {"cifar10_small", "digits", "image_folder"} <= set(preset_names())
    assert preset_for("digits") == "digits"
    assert preset_for("./pictures") == "image_folder"
    assert all(describe_preset(name) for name in preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_valid_configuration(name):
    configuration = configure({"dataset": "./pictures"}, {}, name)
    assert configuration.recipe("training").epochs >= 1
    assert configuration.recipe("teacher_training").epochs >= 1
    assert configuration.resolved.described["seeds"]["source"] == f"preset {name}"


def test_a_preset_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("dataset: digits\nstudent: resnet14\nkd:\n  temperature: 2\nsp:\n")
    configuration = configure({}, {}, str(path))
    assert configuration.resolved.experiment.student == "resnet14"
    assert configuration.settings_of("kd") == {"temperature": 2.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not YAML: line"),
        ("- 1\n- 2", "expected 'key: value' lines"),
        ("1: 2", "expected 'key: value' lines"),
        ("!!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_unusable_preset_files(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_preset(str(path))


def test_unknown_presets():
    with pytest.raises(InputError, match="Did you mean 'digits'"):
        load_preset("digit")
    with pytest.raises(InputError, match="no preset file"):
        load_preset("nowhere/mine.yaml")


def test_changing_only_the_epochs_scales_the_recipe():
    recipe = configure({}, {"training": {"epochs": 40}}).recipe("training")
    short = configure({}, {}).recipe("training")
    assert recipe == short.scaled_to(40)
    assert recipe.decay_epochs != short.decay_epochs
    fixed = configure({}, {"training": {"epochs": 40, "decay_epochs": [30]}}).recipe("training")
    assert fixed.decay_epochs == (30,)
    assert fixed.warmup_epochs == short.warmup_epochs


def test_set_wins_over_the_options():
    configuration = configure({"student": "resnet14", "seeds": "2"}, {"student": "resnet20"})
    assert configuration.resolved.experiment.student == "resnet20"
    assert configuration.resolved.experiment.seeds == (0, 1)


def test_only_what_takes_part_is_described():
    described = configure({"baseline": "sp"}, {}).resolved.described
    assert {"sp", "tmkd", "small_clip", "training", "teacher_training"} <= described.keys()
    assert not {"kd", "rkd", "catkd", "tekap"} & described.keys()
    alone = configure({"enhancer": "none", "teacher_checkpoint": "t.pt"}, {}).resolved.described
    assert not {"tmkd", "text", "small_clip", "teacher_training", "teacher_views"} & alone.keys()


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        ({"training": {"epochs": 0}}, "epochs=0 can't be used"),
        ({"training": {"epochs": "ten"}}, "training.epochs: expected a whole number, got 'ten'"),
        ({"teacher_training": {"learning_rate": -1}}, "teacher_training: learning_rate"),
        ({"training": {"decay_epochs": [3, 2]}}, "decay_epochs"),
        ({"small_clip": {"epochs": 0}}, r"small_clip\.epochs"),
        ({"tmkd": {"feature_wieght": 1}}, r"Did you mean 'tmkd\.feature_weight'"),
        ({"tmkd": {"canny_low": "low"}}, r"tmkd\.canny_low: expected a number"),
        ({"catkd": {"normalize": "perhaps"}}, r"catkd\.normalize: expected true or false"),
        ({"tmkd": {"hidden_width": 2.5}}, r"tmkd\.hidden_width: expected a whole number"),
        ({"kd": {"seed": 1}}, r"kd\.seed: unknown key"),
    ],
)
def test_unusable_settings_of_methods_and_recipes(assignments, message):
    with pytest.raises(InputError, match=message):
        configure({}, assignments)
