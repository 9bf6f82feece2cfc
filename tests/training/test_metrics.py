from __future__ import annotations

import pytest
import torch
from torch import nn

from tmkd_plugin.data.dataset import ImageSplit
from tmkd_plugin.errors import InputError, RunError
from tmkd_plugin.training.metrics import evaluate, logits_of, scores_of

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def naive_scores(logits, labels):
    """Top-1, top-min(5, K) and macro recall by plain loops, in percent."""
    rows, right1, right5, by_class = logits.tolist(), 0, 0, {}
    for row, label in zip(rows, labels.tolist(), strict=True):
        ranked = sorted(range(len(row)), key=lambda k: -row[k])
        right1 += ranked[0] == label
        right5 += label in ranked[:5]
        by_class.setdefault(label, []).append(ranked[0] == label)
    recalls = [sum(hits) / len(hits) for hits in by_class.values()]
    return 100 * right1 / len(rows), 100 * right5 / len(rows), 100 * sum(recalls) / len(recalls)


@pytest.mark.parametrize("classes", [2, 3, 5, 6, 12])
def test_scores_equal_naive_loops(classes):
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(57, classes, generator=generator)
    labels = torch.randint(classes, (57,), generator=generator)
    logits[torch.arange(57), labels] += 0.7
    scores = scores_of(logits, labels)
    assert (scores.top1, scores.top5, scores.recall) == pytest.approx(naive_scores(logits, labels), abs=1e-4)


def test_top5_is_100_with_five_classes_or_fewer():
    assert scores_of(torch.randn(9, 5), torch.randint(5, (9,))).top5 == 100.0


def test_recall_is_over_the_classes_that_occur():
    logits = torch.eye(3)[[0, 0, 1, 2]]  # class 2 is predicted once, but never the label
    labels = torch.tensor([0, 0, 1, 1])
    assert scores_of(logits, labels).recall == pytest.approx(75.0)
    assert naive_scores(logits, labels)[2] == pytest.approx(75.0)


def test_recall_weighs_classes_alike_whatever_their_size():
    logits, labels = torch.eye(2)[[0] * 10], torch.tensor([0] * 9 + [1])
    scores = scores_of(logits, labels)
    assert (scores.top1, scores.recall) == (90.0, 50.0)


def test_a_network_with_too_few_outputs_is_refused():
    with pytest.raises(InputError, match=r"2 outputs.*labels go up to 4.*at least 5"):
        scores_of(torch.zeros(2, 2), torch.tensor([0, 4]))


def small_split(count=11):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 8, 8), generator=generator).to(torch.uint8)
    return ImageSplit(images, torch.randint(3, (count,), generator=generator), torch.arange(count))


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 3))


def test_evaluate_returns_the_logits_in_order_whatever_the_batch_size():
    split, network = small_split(), small_network()
    network.eval()
    shift, scale = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    expected = torch.cat([network((image.float() / 255 - shift)[None] / scale) for image in split.images]).detach()
    for batch_size in (1, 4, 100):
        scores, logits = evaluate(network, split, MEAN, STD, batch_size)
        assert logits.dtype == torch.float32
        assert not logits.requires_grad
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        assert scores == scores_of(logits, split.labels)


def test_evaluate_leaves_modes_and_statistics_as_they_were():
    network = small_network().train()
    network[1].eval()  # a frozen part
    before = {name: value.clone() for name, value in network.state_dict().items()}
    evaluate(network, small_split(), MEAN, STD, 4)
    assert [module.training for module in network.children()] == [True, False, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_evaluate_restores_the_mode_after_an_error():
    network = nn.Sequential(nn.Flatten(), nn.Linear(7, 3)).train()
    with pytest.raises(RuntimeError):
        evaluate(network, small_split(), MEAN, STD, 4)
    assert network.training


def test_logits_that_are_not_finite_are_an_error():
    network = small_network()
    network[4].weight.data[0, 0] = float("nan")
    with pytest.raises(RunError, match=r"NaN or infinite on 11 of 11 images"):
        evaluate(network, small_split(), MEAN, STD, 4)


def test_an_empty_split_is_refused():
    with pytest.raises(InputError, match="without images"):
        evaluate(small_network(), small_split(0), MEAN, STD, 4)


def test_logits_may_come_first_in_a_tuple():
    logits = torch.zeros(2, 3)
    assert logits_of(logits) is logits
    assert logits_of((logits, {"feats": []})) is logits
    with pytest.raises(InputError, match=r"shape \(B, K\).*\(2, 3, 4\)"):
        logits_of(torch.zeros(2, 3, 4))
