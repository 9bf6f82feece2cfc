from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmkd_plugin.training.schedule import learning_rate
from tmkd_plugin.training.settings import TrainingSettings


def test_a_schedule_written_out_by_hand():
    settings = TrainingSettings(epochs=5, learning_rate=0.8, warmup_epochs=2, decay_epochs=(3, 4), decay_rate=0.5)
    rates = [[learning_rate(settings, epoch, step, 2) for step in range(2)] for epoch in range(1, 6)]
    assert rates == [
        pytest.approx(row) for row in ([0.2, 0.4], [0.6, 0.8], [0.8, 0.8], [0.4, 0.4], [0.2, 0.2])
    ]  # fmt: skip


@given(
    warmup=st.integers(0, 4),
    decays=st.sets(st.integers(1, 6)),
    steps=st.integers(1, 5),
    rate=st.sampled_from([1.0, 0.5, 0.1]),
)
def test_the_rate_equals_a_naive_walk_over_all_steps(warmup, decays, steps, rate):
    settings = TrainingSettings(
        epochs=6, learning_rate=0.3, warmup_epochs=warmup, decay_epochs=tuple(sorted(decays)), decay_rate=rate
    )
    walked, base = 0, 0.3
    for epoch in range(1, 7):
        if epoch - 1 in decays:
            base *= rate
        for step in range(steps):
            walked += 1
            expected = base * walked / (warmup * steps) if walked < warmup * steps else base
            assert learning_rate(settings, epoch, step, steps) == pytest.approx(expected, rel=1e-12)


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert learning_rate(TrainingSettings(warmup_epochs=0, learning_rate=0.1), 1, 0, 10) == 0.1
