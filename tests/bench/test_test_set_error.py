"""McNemar's test against scipy, and the parts of the error against simulated seeds and images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tmkd_plugin.bench.test_set_error import error_parts, error_parts_of_runs, mcnemar
from tmkd_plugin.errors import InputError
from tmkd_plugin.training.files import save_predictions

outcomes = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@given(outcomes)
def test_equals_the_binomial_test_and_the_standard_error_of_the_mean(pairs):
    before, after = zip(*pairs, strict=True)
    tested = mcnemar(before, after)
    differences = [int(b) - int(a) for a, b in pairs]
    gained, lost = differences.count(1), differences.count(-1)
    assert (tested.gained, tested.lost, tested.images) == (gained, lost, len(pairs))
    assert tested.delta == pytest.approx(100 * np.mean(differences))
    assert tested.standard_error == pytest.approx(100 * np.std(differences) / math.sqrt(len(pairs)), abs=1e-9)
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1
    assert tested.p_value == pytest.approx(expected)
    swapped = mcnemar(after, before)
    assert (swapped.p_value, swapped.delta) == pytest.approx((tested.p_value, -tested.delta))


def test_a_known_table():
    # 10 images only one student gets right, 2 only the other: p = 2 * (C(12,0) + C(12,1) + C(12,2)) / 2^12.
    before = [False] * 10 + [True] * 2 + [True] * 88
    after = [True] * 10 + [False] * 2 + [True] * 88
    assert mcnemar(before, after).p_value == pytest.approx(2 * (1 + 12 + 66) / 4096)


def simulated(draw, seeds: int, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Seeds and images with effects of their own; the differences of the arms vary with both and with their combination."""
    of_seed, of_image = draw.normal(0, 0.15, (seeds, 1)), draw.normal(0, 0.8, (1, images))
    before = draw.normal(0, 1, (seeds, images)) < 0.6
    after = draw.normal(0, 1, (seeds, images)) < 0.7 + of_seed + of_image
    return before, after


def test_the_error_of_both_is_the_spread_over_repeated_comparisons():
    draw = np.random.default_rng(3)
    parts = [error_parts(*simulated(draw, 5, 120)) for _ in range(600)]
    spread = np.std([part.delta for part in parts])
    predicted = math.sqrt(np.mean([part.both**2 for part in parts]))
    assert predicted == pytest.approx(spread, rel=0.12)
    # Either part alone says too little.
    for name in ("seed_error", "test_set_error"):
        assert math.sqrt(np.mean([getattr(part, name) ** 2 for part in parts])) < 0.93 * spread


def test_one_seed_has_the_test_sets_error_alone():
    before, after = simulated(np.random.default_rng(4), 1, 50)
    parts = error_parts(before, after)
    assert (parts.seed_error, parts.both) == (None, None)
    assert parts.test_set_error == pytest.approx(parts.each[0].standard_error)


def test_seed_error_is_that_of_the_paired_comparison():
    before, after = simulated(np.random.default_rng(5), 4, 80)
    parts = error_parts(before, after)
    deltas = 100 * (after.mean(axis=1) - before.mean(axis=1))
    assert parts.seed_error == pytest.approx(np.std(deltas, ddof=1) / 2)
    assert [one.delta for one in parts.each] == pytest.approx(list(deltas))


def write_predictions(path, labels, predicted, index=None):
    logits = np.eye(3, dtype=np.float16)[predicted]
    np.savez(path, index=np.arange(len(labels)) if index is None else index, label=labels, logits=logits)
    return path


def test_reads_the_predictions_of_runs(tmp_path):
    labels = np.array([0, 1, 2, 0])
    before = write_predictions(tmp_path / "before.npz", labels, [0, 1, 1, 1])
    after = write_predictions(tmp_path / "after.npz", labels, [0, 1, 2, 1])
    parts = error_parts_of_runs([before], [after])
    assert (parts.delta, parts.each[0].gained, parts.each[0].lost) == (25.0, 1, 0)


def test_what_the_rounding_to_float16_makes_equal_still_counts(tmp_path):
    labels, logits = torch.ones(4, dtype=torch.int64), torch.tensor([[1.0, 1.0 + 1e-5]] * 4)
    save_predictions(tmp_path / "before.npz", torch.arange(4), labels, logits.flip(1))
    save_predictions(tmp_path / "after.npz", torch.arange(4), labels, logits)
    assert error_parts_of_runs([tmp_path / "before.npz"], [tmp_path / "after.npz"]).delta == 100.0


def test_unusable_predictions(tmp_path):
    labels = np.array([0, 1, 2, 0])
    good = write_predictions(tmp_path / "good.npz", labels, labels)
    other = write_predictions(tmp_path / "other.npz", labels, labels, index=np.array([4, 5, 6, 7]))
    with pytest.raises(InputError, match=r"other\.npz is of other test images"):
        error_parts_of_runs([good], [other])
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"bad\.npz can't be read as predictions"):
        error_parts_of_runs([good], [tmp_path / "bad.npz"])
    with pytest.raises(InputError, match="got 2 and 1"):
        mcnemar([True, False], [True])
    with pytest.raises(InputError, match="alike"):
        error_parts([[True]], [[True, False]])
