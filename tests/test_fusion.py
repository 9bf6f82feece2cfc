"""WeightNet (Eq 3-4) and the fused teacher (Eq 5) against naive loops, and the properties that they have."""

from __future__ import annotations

import math
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from tmkd_plugin.errors import InputError
from tmkd_plugin.fusion import WeightNet, fuse, fuse_nests


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_weight_net_is_two_layers_and_a_softmax_over_the_views() -> None:
    net = WeightNet(3, 5, hidden_width=7, seed=2).double()
    texts = draw(3, 4, 5)
    table = net(texts)
    w1, b1 = net.hidden.weight.tolist(), net.hidden.bias.tolist()
    w2, b2 = net.output.weight.tolist(), net.output.bias.tolist()
    for k in range(4):
        row = [value for v in range(3) for value in texts[v, k].tolist()]
        hidden = [max(0.0, sum(w * x for w, x in zip(ws, row, strict=True)) + b) for ws, b in zip(w1, b1, strict=True)]
        scores = [sum(w * x for w, x in zip(ws, hidden, strict=True)) + b for ws, b in zip(w2, b2, strict=True)]
        powers = [math.exp(score) for score in scores]
        assert table[k].tolist() == pytest.approx([power / sum(powers) for power in powers], rel=1e-12)


def test_weights_sum_to_one_and_start_near_the_average_but_not_on_it() -> None:
    table = WeightNet(3, 512, seed=0)(torch.nn.functional.normalize(draw(3, 10, 512), dim=2).float())
    torch.testing.assert_close(table.sum(dim=1), torch.ones(10))
    assert 0 < (table - 1 / 3).abs().max() < 0.1


def test_initialisation_depends_on_the_seed_alone() -> None:
    state = torch.random.get_rng_state()
    first = WeightNet(3, 8, seed=1).output.weight
    torch.rand(3)
    assert torch.equal(first, WeightNet(3, 8, seed=1).output.weight)
    assert not torch.equal(first, WeightNet(3, 8, seed=2).output.weight)
    torch.random.set_rng_state(state)
    expected = torch.rand(1)
    torch.random.set_rng_state(state)
    WeightNet(3, 8, seed=1)
    assert torch.equal(torch.rand(1), expected)


def test_fusion_is_the_weighted_sum_over_views() -> None:
    views, weights = [draw(4, 2, 3, seed=v) for v in range(3)], torch.softmax(draw(4, 3, seed=9), 1)
    fused = fuse(views, weights)
    for b in range(4):
        for c in range(2):
            for x in range(3):
                expected = sum(float(weights[b, v]) * float(views[v][b, c, x]) for v in range(3))
                assert float(fused[b, c, x]) == pytest.approx(expected, rel=1e-12)


def test_gradients_of_the_fusion_are_the_numerical_ones() -> None:
    net, texts = WeightNet(3, 5, hidden_width=4, seed=1).double(), draw(3, 4, 5).requires_grad_()
    views = [draw(4, 2, seed=v).requires_grad_() for v in range(3)]
    assert gradcheck(lambda t, *vs: fuse(vs, net(t)), (texts, *views))


def test_three_equal_views_give_the_view_back() -> None:
    view, weights = draw(4, 5), torch.softmax(draw(4, 3, seed=9), 1)
    torch.testing.assert_close(fuse([view] * 3, weights), view)


def test_fusion_commutes_with_an_affine_layer_but_not_with_relu() -> None:
    views, weights = [draw(4, 5, seed=v) for v in range(3)], torch.softmax(draw(4, 3, seed=9), 1)
    layer = torch.nn.Linear(5, 2).double()
    torch.testing.assert_close(layer(fuse(views, weights)), fuse([layer(view) for view in views], weights))
    after = fuse([torch.relu(view) for view in views], weights)
    assert not torch.allclose(torch.relu(fuse(views, weights)), after)


def test_permuting_views_with_their_weight_net_blocks_leaves_the_fusion_alone() -> None:
    net, texts, views = WeightNet(3, 5, seed=0).double(), draw(3, 4, 5), [draw(4, 6, seed=v) for v in range(3)]
    order = [2, 0, 1]
    permuted = WeightNet(3, 5, seed=0).double()
    with torch.no_grad():
        permuted.hidden.weight.copy_(net.hidden.weight.reshape(256, 3, 5)[:, order].reshape(256, 15))
        permuted.output.weight.copy_(net.output.weight[order])
        permuted.output.bias.copy_(net.output.bias[order])
    torch.testing.assert_close(
        fuse([views[v] for v in order], permuted(texts[order])), fuse(views, net(texts)), rtol=1e-10, atol=1e-12
    )


def test_half_precision_views_are_summed_in_float32_and_keep_their_dtype() -> None:
    views, weights = [draw(4, 5, seed=v).half() for v in range(3)], torch.softmax(draw(4, 3, seed=9), 1).float()
    expected = fuse([view.float() for view in views], weights).half()
    assert torch.equal(fuse(views, weights), expected)


Pair = namedtuple("Pair", "logits extras")


@dataclass(frozen=True)
class Answer:
    logits: Tensor
    names: tuple[str, ...]


def test_any_nest_is_fused_where_it_has_samples_and_taken_from_rgb_elsewhere() -> None:
    def nest(seed: int) -> Pair:
        extras = {"feats": [draw(4, 2, 2, seed=seed)], "scale": draw(3, seed=seed), "n": torch.tensor([seed] * 4)}
        return Pair(draw(4, 5, seed=seed), [Answer(draw(4, 1, seed=seed), ("a",)), extras, None, "text"])

    views, weights = [nest(seed) for seed in range(3)], torch.softmax(draw(4, 3, seed=9), 1)
    fused = fuse_nests(views, weights, rgb=1)
    assert isinstance(fused, Pair)
    assert isinstance(fused.extras[0], Answer)
    assert fused.extras[2:] == [None, "text"]
    torch.testing.assert_close(fused.logits, fuse([view.logits for view in views], weights))
    torch.testing.assert_close(fused.extras[1]["feats"][0], fuse([v.extras[1]["feats"][0] for v in views], weights))
    assert torch.equal(fused.extras[1]["scale"], views[1].extras[1]["scale"])
    assert torch.equal(fused.extras[1]["n"], views[1].extras[1]["n"])


def test_weights_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"need weights of shape \(4, 3\), but they are \(4, 2\)"):
        fuse([draw(4, 5)] * 3, draw(4, 2))
