from __future__ import annotations

import io

import pytest

from tmkd_plugin.errors import InputError
from tmkd_plugin.training.progress import BarProgress, LineProgress, SilentProgress, training_progress


def run(progress, epochs, arm="kd + tmkd"):
    progress.begin(arm, 3, epochs, 2)
    for epoch in range(1, epochs + 1):
        progress.step(arm)
        progress.step(arm)
        progress.epoch(arm, epoch, 1 / epoch, 50.0 + epoch / 10)
    progress.end(arm)


@pytest.mark.parametrize(("epochs", "lines"), [(1, 1), (4, 4), (10, 10), (24, 10), (240, 10)])
def test_a_log_gets_at_most_ten_plain_lines(epochs, lines):
    stream = io.StringIO()
    run(training_progress(stream=stream), epochs)
    written = stream.getvalue().splitlines()
    assert len(written) == lines
    assert (
        written[-1]
        == f"kd + tmkd, seed 3: epoch {epochs}/{epochs}, loss {1 / epochs:.4g}, val {50 + epochs / 10:.2f} %"
    )
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()


def test_a_bar_shows_arm_seed_epoch_loss_and_validation_and_leaves_one_line():
    stream = io.StringIO()
    progress = training_progress("bar", stream)
    assert isinstance(progress, BarProgress)
    run(progress, 3)
    text = stream.getvalue()
    assert "kd + tmkd, seed 3: epoch 3/3, loss 0.3333, val 50.30 %" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") > 0  # the cursor is given back


def test_a_bar_can_serve_one_run_after_another_and_arms_side_by_side():
    stream = io.StringIO()
    progress = training_progress("bar", stream)
    run(progress, 2, "first")
    for arm in ("[kd]", "kd+tmkd"):  # brackets are no markup
        progress.begin(arm, 0, 1, 1)
    for arm in ("[kd]", "kd+tmkd"):
        progress.epoch(arm, 1, 0.5, 90.0)
    for arm in ("[kd]", "kd+tmkd", "never began"):
        progress.end(arm)
    for arm in ("first", "[kd]", "kd+tmkd"):
        assert f"{arm}, seed" in stream.getvalue()


def test_kinds():
    assert isinstance(training_progress("silent"), SilentProgress)
    assert isinstance(training_progress("lines"), LineProgress)
    assert isinstance(training_progress("auto", io.StringIO()), LineProgress)
    with pytest.raises(InputError, match="Did you mean 'lines'"):
        training_progress("line")
