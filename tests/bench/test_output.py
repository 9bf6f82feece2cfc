"""Where results go, and what is refused there."""

from __future__ import annotations

import json

import pytest

from tmkd_plugin.bench.output import OutputFolder, default_folder
from tmkd_plugin.errors import InputError

IDENTITY = {"config": {"student": {"value": "a", "source": "preset"}}, "dataset": {"fingerprint": "a"}}
OTHER = {"config": {"student": {"value": "b", "source": "preset"}}, "dataset": {"fingerprint": "a"}}


def test_default_folder():
    assert str(default_folder("digits", ["kd"], ["tmkd"])) == "runs/digits-kd-tmkd"
    assert str(default_folder("/data/my images/", ["kd", "sp"], [])) == "runs/my_images-kd_sp-none"
    assert str(default_folder("digits", ["a.b:Mine"], ["tmkd"])) == "runs/digits-Mine-tmkd"


def test_another_configuration_is_refused_and_named(tmp_path):
    OutputFolder(tmp_path / "out", IDENTITY)
    OutputFolder(tmp_path / "out", IDENTITY)
    with pytest.raises(InputError, match=r"(?s)another configuration.*student: there 'a', now 'b'.*--overwrite"):
        OutputFolder(tmp_path / "out", OTHER)
    OutputFolder(tmp_path / "out", OTHER, overwrite=True)


def test_the_source_of_an_equal_value_does_not_matter(tmp_path):
    OutputFolder(tmp_path / "out", IDENTITY)
    same = {**IDENTITY, "config": {"student": {"value": "a", "source": "command line"}}}
    assert OutputFolder(tmp_path / "out", same).finished is None


def test_other_seeds_arms_and_places_are_the_same_folder(tmp_path):
    config = {**IDENTITY["config"], "seeds": {"value": [0], "source": "ours"}, "kd": {"temperature": {"value": 4.0}}}
    output = OutputFolder(tmp_path / "out", {**IDENTITY, "config": config})
    output.write({**IDENTITY, "config": config, "arms": [{"seeds": [{"seed": 0, "best": {}}]}]}, {})
    more = {**IDENTITY["config"], "seeds": {"value": [0, 1], "source": "ours"}, "workers": {"value": 2}, "sp": {}}
    assert OutputFolder(tmp_path / "out", {**IDENTITY, "config": more}).finished is None


def test_other_images_are_another_configuration(tmp_path):
    OutputFolder(tmp_path / "out", IDENTITY)
    with pytest.raises(InputError, match=r"dataset\.fingerprint"):
        OutputFolder(tmp_path / "out", {**IDENTITY, "dataset": {"fingerprint": "b"}})


def test_foreign_files_are_never_removed(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "seed1").mkdir()
    (tmp_path / "photos" / "seed1" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(InputError, match="files that are not of a comparison"):
        OutputFolder(tmp_path, IDENTITY)
    OutputFolder(tmp_path, IDENTITY, overwrite=True)
    assert (tmp_path / "photos" / "seed1" / "cat.jpg").read_bytes() == b"cat"


def test_a_folder_that_can_not_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written to"):
        OutputFolder(tmp_path / "file", IDENTITY)


def test_finished_results_are_found_and_failed_ones_run_again(tmp_path):
    output = OutputFolder(tmp_path, IDENTITY)
    good = {**IDENTITY, "arms": [{"seeds": [{"seed": 0, "best": {"top1": 1.0}}]}]}
    output.write(good, {"seconds": 1})
    assert OutputFolder(tmp_path, IDENTITY).finished == (json.loads(json.dumps(good)), {"seconds": 1})
    output.write({**IDENTITY, "arms": [{"seeds": [{"seed": 0, "best": None}]}]}, {})
    assert OutputFolder(tmp_path, IDENTITY).finished is None
    assert not (tmp_path / "results.json").exists()


def test_damaged_results(tmp_path):
    OutputFolder(tmp_path, IDENTITY)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(InputError, match="can't be read"):
        OutputFolder(tmp_path, IDENTITY)
    OutputFolder(tmp_path, IDENTITY, overwrite=True)
