import pytest
import torch

from tmkd_plugin.errors import InputError
from tmkd_plugin.labels import check_labels, select_rows


def probabilities(rows, classes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(rows, classes, generator=generator, dtype=torch.float64).softmax(dim=1).to(dtype)


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([0, 2, 1, 2]),
        probabilities(4, 3),
        probabilities(4, 3, torch.float64),
        probabilities(4, 3, torch.float16),
        probabilities(4, 3, torch.bfloat16),
        torch.eye(3)[[0, 2, 1, 2]],
    ],
)
def test_classes_and_probabilities_are_accepted(labels):
    check_labels(labels, batch_size=4, num_classes=3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding_of_many_classes_is_tolerated(dtype):
    check_labels(probabilities(8, 1000, dtype), batch_size=8, num_classes=1000)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2, 0], "are a list.*torch.as_tensor"),
        (torch.zeros(4), r"shape \(4,\) and dtype float32.*labels.long\(\)"),
        (torch.zeros(4, dtype=torch.bool), "dtype bool.*int64"),
        (torch.zeros(4, dtype=torch.int32), "dtype int32.*int64"),
        (torch.tensor(1), r"shape \(\): expected classes"),
        (torch.zeros(4, 3, 2), r"shape \(4, 3, 2\): expected classes"),
        (torch.zeros(4, 1, dtype=torch.int64), r"squeeze\(1\)"),
        (torch.eye(3, dtype=torch.int64)[[0, 1, 2, 0]], r"argmax\(1\)"),
        (torch.zeros(3, dtype=torch.int64), r"3 labels \(shape \(3,\)\) for 4 images"),
        (probabilities(5, 3), "5 labels .* for 4 images"),
        (torch.tensor([0, 3, -100, 3]), r"outside 0..2: -100, 3; there are 3 classes"),
        (torch.arange(4) + 10, r"outside 0..2: 10, 11, 12, 13;"),
        (probabilities(4, 5), "probabilities of 5 classes: expected 3 columns"),
        (torch.tensor([[0.5, 0.5, 0.0]] * 3 + [[1.0, 1.0, 0.0]]), "rows 3 do not sum to 1.*sum 2"),
        (torch.tensor([[1.5, -0.5, 0.0]] + [[1.0, 0.0, 0.0]] * 3), "rows 0 hold negative.*minimum -0.5"),
        (torch.tensor([[float("nan"), 0.5, 0.5]] * 4), "rows 0, 1, 2, 3 are not finite"),
        (torch.tensor([[0.9, 0.05, 0.04]] * 4), "do not sum to 1"),
    ],
)
def test_other_labels_are_refused(labels, message):
    with pytest.raises(InputError, match=message):
        check_labels(labels, batch_size=4, num_classes=3)


def test_many_wrong_values_are_cut_short():
    with pytest.raises(InputError, match=r"2, 3, 4, 5, 6 and 93 more"):
        check_labels(torch.arange(100), batch_size=100, num_classes=2)


def test_values_can_be_left_unchecked_but_shapes_never():
    check_labels(torch.tensor([7, 8]), 2, 3, values=False)
    with pytest.raises(InputError, match="images"):
        check_labels(torch.tensor([7, 8]), 3, 3, values=False)


def test_off_the_cpu_values_are_not_read_by_default():
    # Reading values of a meta tensor is an error, as reading those of a GPU tensor would be a wait.
    check_labels(torch.zeros(4, dtype=torch.int64, device="meta"), 4, 3)
    check_labels(torch.zeros(4, 3, device="meta"), 4, 3)


def test_rows_of_classes_equal_rows_of_one_hot_probabilities():
    table = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([4, 0, 0, 2])
    rows = select_rows(table, labels)
    assert torch.equal(rows, torch.stack([table[4], table[0], table[0], table[2]]))
    assert torch.equal(select_rows(table, torch.eye(5, dtype=torch.float64)[labels]), rows)


def test_rows_of_probabilities_are_weighted_means():
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [4.0, 8.0]])
    labels = torch.tensor([[0.25, 0.75, 0.0], [0.5, 0.0, 0.5]])
    assert torch.equal(select_rows(table, labels), torch.tensor([[0.25, 0.75], [2.5, 4.0]]))


@pytest.mark.parametrize("labels", [torch.tensor([1, 1, 2]), probabilities(3, 4, torch.float64)])
def test_gradients_reach_the_table(labels):
    table = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda table: select_rows(table, labels), (table,))


def test_rows_keep_the_dtype_of_the_table_under_autocast():
    table = torch.randn(4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = select_rows(table, probabilities(2, 4))
    assert rows.dtype == torch.float32
