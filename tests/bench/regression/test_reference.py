"""What a reference holds, and what is refused about one, in words."""

from __future__ import annotations

import json

import pytest
from regression_cases import REFERENCE_SEEDS, edited, write_comparison

from tmkd_plugin.bench.configuration import configure
from tmkd_plugin.bench.regression.command import RegressOptions, regress
from tmkd_plugin.bench.regression.reference import load_reference, reference_names, reference_path
from tmkd_plugin.errors import InputError


def test_holds_configuration_arms_and_environment(reference):
    held = load_reference(reference)
    assert held.configuration.preset == "digits"
    assert held.configuration.values["training"]["epochs"] == 2
    assert "seeds" not in held.configuration.values
    # The learning rate is the preset's and the momentum the code's: a reference repeats neither.
    assert set(held.configuration.values["training"]) == {"epochs", "decay_epochs", "warmup_epochs"}
    assert held.environment.torch == "2.15.0"
    assert held.dataset.test == 800
    assert held.teachers == {"all other arms": "a" * 64}
    assert held.check_seeds == [0, 1, 2]
    assert list(held.arms) == ["kd", "kd+tmkd"]
    assert held.pairs() == [("kd", "kd+tmkd")]
    kd = held.arms["kd"].top1
    assert (kd.n, list(kd.values)) == (20, list(REFERENCE_SEEDS))
    assert kd.mean == pytest.approx(sum(kd.values.values()) / 20, abs=1e-5)
    assert set(held.arms["kd+tmkd"].terms) == {"loss", "text_contrast"}
    assert held.arms["kd+tmkd"].terms["loss"].mean < 2  # of the last epoch


def test_its_configuration_is_that_of_the_comparison(reference):
    held = load_reference(reference).configuration
    again = configure({}, {**held.values, "seeds": [0]}, held.preset)
    first = configure({"seeds": [0]}, {"training": {"epochs": 2}})
    assert again.resolved.described["training"] == first.resolved.described["training"]
    assert again.resolved.experiment == first.resolved.experiment


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(schema_version=2), "schema_version 2, and this version of tmkd reads up to 1"),
        (lambda c: c.pop("schema_version"), "has no schema_version"),
        (lambda c: c.update(check_seed=[1]), r"check_seed: unknown key \(reference\)\. Did you mean 'check_seeds'\?"),
        (lambda c: c["arms"]["kd"].update(titel="x"), r"arms\.kd\.titel: unknown key .*Did you mean 'arms\.kd\.title'"),
        (lambda c: c["arms"]["kd"]["top1"].update(means=1), r"arms\.kd\.top1\.means: .*'arms\.kd\.top1\.mean'"),
        (lambda c: c["dataset"].pop("test"), r"dataset\.test: is missing"),
        (lambda c: c["arms"]["kd"]["top1"].update(mean=50.0), "says mean 50.0, sd .* but its values have"),
        (lambda c: c["arms"]["kd"]["top1"]["values"].popitem(), "expected the values of at least 20 seeds, got 19"),
        (lambda c: c["environment"].update(threads="many"), r"environment\.threads: .*got 'many'"),
        (lambda c: c.update(check_seeds=[1, 1]), "check_seeds: expected seeds of at least 0, each once"),
    ],
)
def test_unusable_references(reference, change, message):
    with pytest.raises(InputError, match=message):
        load_reference(edited(reference, change))


def test_a_misspelt_key_in_the_configuration_is_named(reference, tmp_path):
    results = write_comparison(tmp_path / "check", range(3), assignments={"training": {"epochs": 2}})
    edited(reference, lambda c: c["configuration"]["values"]["training"].update(epoch=3))
    with pytest.raises(InputError, match=r"training\.epoch: unknown key .*Did you mean 'training\.epochs'"):
        regress(RegressOptions(reference=str(reference), results=results))


def test_files_that_are_no_reference(tmp_path):
    with pytest.raises(InputError, match="can't be read"):
        load_reference(tmp_path / "missing.json")
    (tmp_path / "text.json").write_text("no json")
    with pytest.raises(InputError, match="is not JSON"):
        load_reference(tmp_path / "text.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(InputError, match="is not JSON of the form"):
        load_reference(tmp_path / "list.json")
    with pytest.raises(InputError, match=r"Unknown reference 'digit'.*Did you mean 'digits'"):
        reference_path("digit")


@pytest.mark.parametrize("name", reference_names())
def test_the_references_that_come_with_the_package_are_usable(name):
    held = load_reference(reference_path(name))
    configure({}, {**held.configuration.values, "seeds": held.check_seeds}, held.configuration.preset)
    seeds = set(next(iter(held.arms.values())).top1.values)
    assert len(seeds) >= 20
    assert not seeds & set(held.check_seeds)
    assert held.pairs()


def test_recording_needs_20_finished_seeds_and_an_environment(tmp_path):
    def record(**options):
        results = write_comparison(tmp_path / "runs", **options)
        return regress(RegressOptions(reference=str(tmp_path / "r.json"), results=results, update=True))

    with pytest.raises(InputError, match="at least 20 seeds, and KD has 19"):
        record(seeds=range(19))
    with pytest.raises(InputError, match=r"can't hold failed runs: KD \+ TMKD, seed 3: the loss is nan"):
        record(seeds=range(20), failed=[3])
    results = write_comparison(tmp_path / "runs", range(20))
    (tmp_path / "runs" / "timing.json").unlink()
    with pytest.raises(InputError, match=r"has no timing\.json beside it"):
        regress(RegressOptions(reference=str(tmp_path / "r.json"), results=results, update=True))
    assert not (tmp_path / "r.json").exists()


def test_recording_again_keeps_the_seeds_of_checks(reference, tmp_path):
    edited(reference, lambda c: c.update(check_seeds=[7, 8]))
    results = write_comparison(tmp_path / "runs", range(200, 225))
    options = RegressOptions(reference=str(reference), results=results, update=True)
    regress(options)
    assert load_reference(reference).check_seeds == [7, 8]
    assert json.loads(reference.read_text())["arms"]["kd"]["top1"]["n"] == 25
    regress(RegressOptions(reference=str(reference), results=results, update=True, check_seeds="4-6"))
    assert load_reference(reference).check_seeds == [4, 5, 6]
