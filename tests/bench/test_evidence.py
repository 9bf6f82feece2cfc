"""What goes into ``results.json`` beside the interval, and the sentence made of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tmkd_plugin.bench.evidence import evidence_of_test_set, evidence_sentence, seed_evidence


def predictions(path, correct):
    labels = np.zeros(len(correct), dtype=np.int64)
    logits = np.stack([np.asarray(correct, dtype=np.float16), np.full(len(correct), 0.5, dtype=np.float16)], axis=1)
    np.savez(path, index=np.arange(len(correct)), label=labels, logits=logits)
    return path


@pytest.fixture
def runs(tmp_path):
    """Two seeds, ten images: the enhanced arm gains 2 and loses 1 in the first, gains 3 in the second."""
    before = [predictions(tmp_path / f"b{seed}.npz", [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]) for seed in range(2)]
    after = [
        predictions(tmp_path / "a0.npz", [1, 1, 0, 0, 1, 1, 1, 1, 1, 1]),
        predictions(tmp_path / "a1.npz", [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    ]
    return before, after


def test_entries_are_json_and_hold_the_figures(runs):
    entry = {**seed_evidence([10.0, 30.0]), "test_set": evidence_of_test_set(*runs)}
    assert json.loads(json.dumps(entry)) == entry
    assert entry["sign_flip_p"] == 0.5
    assert entry["bootstrap95"] is None
    found = entry["test_set"]
    assert (found["images"], found["gained"], found["lost"]) == (10, [2, 3], [1, 0])
    assert found["mcnemar_p"] == [1.0, 0.25]
    assert found["seed_error"] == 10.0
    # Differences of the images, mean over seeds: 100, 100, 50, -50 and six times 0.
    assert found["test_set_error"] == pytest.approx(np.std([100, 100, 50, -50, 0, 0, 0, 0, 0, 0]) / 10**0.5, abs=1e-6)
    assert max(found["seed_error"], found["test_set_error"]) <= found["error"] < 18.5


def test_sentences(runs):
    entry = {**seed_evidence([10.0, 30.0]), "test_set": evidence_of_test_set(*runs)}
    sentence = evidence_sentence(entry)
    assert sentence.startswith(
        "sign-flip p = 0.5 (can't reach 0.05 with n = 2: the smallest p-value is 0.5; it takes n = 6)"
    )
    assert "standard error 10.00 from seeds, 14.49 from the choice of 10 test images, 16.43 from both" in sentence
    assert sentence.endswith("McNemar p by seed 1, 0.25.")
    one = {**seed_evidence([10.0]), "test_set": evidence_of_test_set(runs[0][:1], runs[1][:1])}
    assert "; standard error 17.03 from the choice of 10 test images; " in evidence_sentence(one)
    many = seed_evidence([0.5 + 0.01 * step for step in range(20)])
    assert "; bootstrap 95 % [+0." in evidence_sentence(many)
    assert "can't reach" not in evidence_sentence(many)
    assert evidence_sentence({"delta": 1.0}) is None
