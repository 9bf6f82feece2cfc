"""CRD's loss and memories: equal to the official recording and to a naive loop, bounded, and told apart from its faults."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tmkd_plugin.baselines.tekap_features import ContrastSettings
from tmkd_plugin.contrast_memory import ContrastBatch, MemoryBank, MemoryQueue, contrast_memory
from tmkd_plugin.contrastive import LOWEST_TEMPERATURE, crd_loss
from tmkd_plugin.errors import InputError
from tmkd_plugin.richkd_settings import RichKDSettings
from tmkd_plugin.sample_ids import labels_by_id

RECORDINGS = Path(__file__).parent / "recordings" / "contrastive"
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def recorded(name: str) -> dict[str, Tensor]:
    with np.load(RECORDINGS / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(np.array(value)) for key, value in arrays.items()}


def assert_gradient(actual: Tensor, expected: Tensor) -> None:
    assert float((actual - expected).abs().max()) <= 1e-7 * float(expected.abs().max()) + 1e-10


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def bank_of(labels: Tensor, width: int = 16, negatives: int = 32, **options: float) -> MemoryBank:
    return MemoryBank(labels, width, negatives, 0.07, torch.Generator().manual_seed(0), **options).double()


@pytest.fixture(scope="module")
def crd() -> dict[str, Tensor]:
    return recorded("crd_b8_n50_k32")


def test_two_official_steps_losses_gradients_and_banks(crd: dict[str, Tensor]) -> None:
    bank = bank_of(torch.arange(50) % 2)
    bank.student.copy_(crd["memory_student_init"])
    bank.teacher.copy_(crd["memory_teacher_init"])
    names = ["embed_s_weight", "embed_s_bias", "embed_t_weight", "embed_t_bias"]
    w_s, b_s, w_t, b_t = weights = [crd[name].clone().requires_grad_() for name in names]
    for step in range(2):
        features = crd[f"step{step}_feat_student"].clone().requires_grad_()
        student = F.normalize(features @ w_s.T + b_s, dim=1)
        teacher = F.normalize(crd[f"step{step}_feat_teacher"] @ w_t.T + b_t, dim=1)
        index, contrast = crd[f"step{step}_index"], crd[f"step{step}_contrast_index"]
        batch = ContrastBatch(torch.zeros_like(index), index, contrast)
        # The pure function gives the same, with the normalisers of the first step.
        z = tuple(crd[f"step{step}_Z_{side}"] for side in ("student", "teacher"))
        pure = crd_loss(student, teacher, bank.student, bank.teacher, contrast, 0.07, z)
        loss = sum(bank.sides(student, teacher, batch))
        for value in (loss, pure):
            torch.testing.assert_close(value, crd[f"step{step}_loss"], **EXACT)
        gradients = torch.autograd.grad(loss, [features, *weights])
        for gradient, name in zip(gradients, ["feat_student", *names], strict=True):
            assert_gradient(gradient, crd[f"step{step}_grad_{name}"])
        bank.update(student, teacher, batch)
        for side, memory in enumerate(("student", "teacher")):
            torch.testing.assert_close(getattr(bank, memory), crd[f"step{step}_memory_{memory}_after"], **EXACT)
            torch.testing.assert_close(bank.normalisers[side], crd[f"step{step}_Z_{memory}"], **EXACT)


def naive_side(own: Tensor, memory: Tensor, index: list[list[int]], temperature: float) -> float:
    """The formula in loops; Z is that of this batch."""
    raw = [[math.exp(float(memory[i] @ v) / temperature) for i in row] for v, row in zip(own, index, strict=True)]
    n, k = len(memory), len(index[0]) - 1
    z = sum(map(sum, raw)) / (len(raw) * (k + 1)) * n
    total = 0.0
    for row in raw:
        total += math.log(row[0] / z / (row[0] / z + k / n + 1e-7))
        total += sum(math.log(k / n / (score / z + k / n + 1e-7)) for score in row[1:])
    return -total / len(raw)


@pytest.mark.parametrize("entries", [9, 200])  # all products at once, and picked rows
def test_equals_a_naive_loop(entries: int) -> None:
    student, teacher = unit(4, 3, seed=0), unit(4, 3, seed=1)
    of_student, of_teacher = unit(entries, 3, seed=2), unit(entries, 3, seed=3)
    index = torch.randint(entries, (4, 6), generator=torch.Generator().manual_seed(4))
    expected = naive_side(student, of_teacher, index.tolist(), 0.2)
    expected += naive_side(teacher, of_student, index.tolist(), 0.2)
    loss = crd_loss(student, teacher, of_student, of_teacher, index, 0.2)
    assert loss.shape == ()
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_gradcheck() -> None:
    student, teacher = unit(3, 4, seed=0).requires_grad_(), unit(3, 4, seed=1).requires_grad_()
    index = torch.tensor([[0, 3, 4], [1, 4, 5], [2, 5, 3]])
    z = (torch.tensor(9.0).double(), torch.tensor(7.0).double())
    memories = unit(6, 4, seed=2), unit(6, 4, seed=3)
    assert torch.autograd.gradcheck(lambda s, t: crd_loss(s, t, *memories, index, 0.5, z), (student, teacher))


def test_negatives_are_of_other_classes_each_once_and_the_first_column_is_the_sample() -> None:
    labels = torch.arange(60) % 3
    labels[7] = -1
    bank = bank_of(labels, negatives=20)
    ids = torch.tensor([0, 1, 2, 33])
    batch = bank.begin(labels[ids], ids, torch.Generator().manual_seed(1))
    assert batch.contrast_index is not None
    assert batch.contrast_index[:, 0].tolist() == [0, 1, 2, 32]  # the sample 7 has no row
    of_rows = labels[labels >= 0]
    for row, label in zip(batch.contrast_index[:, 1:], labels[ids].tolist(), strict=True):
        assert len(set(row.tolist())) == 20
        assert label not in of_rows[row]
    other = bank.begin(labels[ids], ids, torch.Generator().manual_seed(2)).contrast_index
    assert not torch.equal(batch.contrast_index, other)


def test_more_negatives_than_samples_counts_each_as_often_as_it_would_be_drawn() -> None:
    labels = torch.arange(12) % 3
    bank = bank_of(labels, width=4, negatives=40)  # of 8 that there are
    ids = torch.tensor([0, 4])
    student, teacher = unit(2, 4, seed=0), unit(2, 4, seed=1)
    batch = bank.begin(labels[ids], ids, torch.Generator())
    assert batch.contrast_index is None
    pools = [(labels != label).nonzero()[:, 0].repeat(5) for label in labels[ids]]
    repeated = ContrastBatch(labels[ids], ids, torch.cat([ids[:, None], torch.stack(pools)], dim=1))
    bank.eval()
    torch.testing.assert_close(bank.sides(student, teacher, batch), bank.sides(student, teacher, repeated), **EXACT)


@pytest.mark.parametrize("negatives", [3, 40])
def test_ids_with_gaps_change_nothing_but_the_names_of_the_samples(negatives: int) -> None:
    labels = torch.arange(12) % 3
    close = bank_of(labels, width=4, negatives=negatives)
    places = torch.tensor([2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 90_000])
    apart = bank_of(labels_by_id(labels, places), width=4, negatives=negatives)
    rows = torch.tensor([0, 4, 11])
    student, teacher = unit(3, 4, seed=0), unit(3, 4, seed=1)
    sides = []
    for bank, ids in ((close, rows), (apart, places[rows])):
        batch = bank.begin(labels[rows], ids, torch.Generator().manual_seed(3))
        sides.append(torch.stack(bank.sides(student, teacher, batch)))
        bank.update(student, teacher, batch)
    assert torch.equal(*sides)
    assert apart.student.shape == (12, 4)
    assert torch.equal(apart.student, close.student)
    assert torch.equal(apart.teacher, close.teacher)


def test_the_queue_keeps_the_last_embeddings_and_masks_the_own_class() -> None:
    queue = MemoryQueue(6, 4, 5, 0.5, torch.Generator().manual_seed(0)).double()
    assert not queue.labels.ge(0).any()
    for seed, labels in ((0, [0, 1, 1, 0]), (2, [2, 1, 0, 0])):
        queue.update(unit(4, 4, seed=seed), unit(4, 4, seed=seed + 1), ContrastBatch(torch.tensor(labels)))
    assert queue.labels.tolist() == [0, 0, 1, 0, 2, 1]
    torch.testing.assert_close(queue.student[4:], unit(4, 4, seed=2)[:2])
    torch.testing.assert_close(queue.teacher[:2], unit(4, 4, seed=3)[2:])

    student, teacher, labels = unit(2, 4, seed=8), unit(2, 4, seed=9), [0, 1]
    side, _ = queue.sides(student, teacher, ContrastBatch(torch.tensor(labels)))
    positive = [math.exp(float(s @ t) / 0.5) for s, t in zip(student, teacher, strict=True)]
    others = [
        [math.exp(float(queue.teacher[j] @ s) / 0.5) for j in range(6) if queue.labels[j] != label]
        for s, label in zip(student, labels, strict=True)
    ]
    means = [(p + 5 * sum(row) / len(row)) / 6 for p, row in zip(positive, others, strict=True)]
    z, c = sum(means) / 2 * 6, 5 / 6
    expected = 0.0
    for p, row in zip(positive, others, strict=True):
        expected -= math.log(p / z / (p / z + c + 1e-7)) / 2
        expected -= 5 / len(row) * sum(math.log(c / (n / z + c + 1e-7)) for n in row) / 2
    assert float(side) == pytest.approx(expected, rel=1e-9)


def test_a_batch_larger_than_the_queue_and_one_with_a_single_class_stay_finite() -> None:
    queue = MemoryQueue(3, 4, 5, 0.5, torch.Generator().manual_seed(0)).double()
    batch = ContrastBatch(torch.zeros(5, dtype=torch.int64))
    queue.update(unit(5, 4, seed=0), unit(5, 4, seed=1), batch)
    torch.testing.assert_close(queue.student, unit(5, 4, seed=0)[2:])
    student = unit(5, 4, seed=2).requires_grad_()
    loss = sum(queue.sides(student, unit(5, 4, seed=3), batch))
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_the_normaliser_is_set_in_training_alone_and_a_checkpoint_restores_all() -> None:
    labels = torch.arange(10) % 2
    bank = bank_of(labels, width=4, negatives=3)
    ids = torch.tensor([0, 1])
    batch = bank.begin(labels[ids], ids, torch.Generator())
    bank.eval().sides(unit(2, 4, seed=0), unit(2, 4, seed=1), batch)
    assert bank.normalisers.tolist() == [0, 0]
    bank.train().sides(unit(2, 4, seed=0), unit(2, 4, seed=1), batch)
    first = bank.normalisers.clone()
    bank.sides(unit(2, 4, seed=5), unit(2, 4, seed=6), batch)
    assert torch.equal(bank.normalisers, first)
    assert first.min() > 0
    bank.update(unit(2, 4, seed=0), unit(2, 4, seed=1), batch)
    again = bank_of(labels, width=4, negatives=3)
    again.load_state_dict(copy.deepcopy(bank.state_dict()))
    for side in ("student", "teacher", "normalisers"):
        assert torch.equal(getattr(again, side), getattr(bank, side))


@pytest.mark.parametrize("make", [ContrastSettings, RichKDSettings])
def test_the_lowest_temperature_that_is_taken_stays_within_float32(make: type) -> None:
    settings = make(contrast_temperature=LOWEST_TEMPERATURE, projection_width=4, negatives=16384, bank_limit=1 << 20)
    with pytest.raises(InputError, match=r"contrast_temperature.*0\.015"):
        make(contrast_temperature=0.0149)
    labels = torch.arange(100_000) % 2
    bank = contrast_memory(settings, 0, labels)
    own = unit(3, 4, seed=0).float().requires_grad_()
    bank.teacher[:] = bank.student[:] = own.detach()[0]  # the largest scores that there are
    loss = sum(bank.sides(own, own, ContrastBatch(labels[:3], torch.arange(3))))
    (gradient,) = torch.autograd.grad(loss, own)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_which_memory() -> None:
    labels = torch.arange(10) % 2
    settings = ContrastSettings(projection_width=4, negatives=3, bank_limit=10, queue_size=7)
    for known in (labels, F.pad(labels, (90, 0), value=-1)):  # what is not trained on takes no entry
        assert isinstance(contrast_memory(settings, 0, known), MemoryBank)
    for given in (torch.arange(11) % 2, None):
        queue = contrast_memory(settings, 0, given)
        assert isinstance(queue, MemoryQueue)
        assert len(queue.student) == 7
        assert torch.equal(queue.student, contrast_memory(settings, 0, given).student)
        assert not torch.equal(queue.student, contrast_memory(settings, 1, given).student)


def test_labels_by_id() -> None:
    assert labels_by_id(torch.tensor([2, 0]), torch.tensor([3, 1])).tolist() == [-1, 0, -1, 2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda bank: bank.begin(torch.tensor([0]), None, torch.Generator()), r"ids=batch\.ids"),
        (
            lambda bank: bank.begin(torch.tensor([0]), torch.tensor([10]), torch.Generator()),
            "hold 10, .*10 training samples",
        ),
        (lambda bank: bank.begin(torch.tensor([0]), torch.tensor([-1]), torch.Generator()), "hold -1, "),
        (lambda bank: bank.begin(torch.tensor([0]), torch.tensor([1.0]), torch.Generator()), "must be int64"),
        (lambda bank: bank_of(torch.zeros(4, dtype=torch.int64)), "of less than two"),
        (lambda bank: crd_loss(unit(2, 3, seed=0), unit(2, 4, seed=0), bank.student, bank.teacher, None), "compares"),
        (
            lambda bank: crd_loss(*[unit(2, 4, seed=0)] * 2, bank.student, bank.teacher, torch.zeros(3, 2).long()),
            r"contrast_index must be \(B, K\+1\)",
        ),
    ],
)
def test_messages(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(bank_of(torch.arange(10) % 2, width=4, negatives=3))
