import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tmkd_plugin.data.splitting import hash_fraction, keep_per_class, split_by_hash
from tmkd_plugin.errors import InputError

names_of_files = st.text("ab/1\u00e9\udc80", max_size=8)
keys = st.lists(names_of_files, unique=True, min_size=3, max_size=40)


def parts_of(names, fractions, purpose="split"):
    return [{names[i] for i in part} for part in split_by_hash(names, fractions, purpose)]


def test_hashes_are_pinned():
    # Other values would silently move the images of every user's folder to other splits.
    assert hash_fraction("cat/001.jpg", "image folder split") == pytest.approx(0.3152325676028999, abs=1e-12)
    assert hash_fraction("cat/\udcff.jpg", "limit") != hash_fraction("cat/\udcfe.jpg", "limit")


@given(names=keys, first=st.floats(0.01, 0.5), second=st.floats(0.01, 0.49))
@settings(max_examples=100, deadline=None)
def test_parts_are_disjoint_complete_and_not_empty(names, first, second):
    parts = parts_of(names, [first, second])
    assert all(parts)
    assert sum(map(len, parts)) == len(names)
    assert set.union(*parts) == set(names)
    assert parts_of(names[::-1], [first, second]) == parts


def test_sizes_follow_the_fractions():
    parts = parts_of([f"{index}.jpg" for index in range(4000)], [0.2, 0.16])
    assert [len(part) / 4000 for part in parts] == pytest.approx([0.2, 0.16, 0.64], abs=0.03)


@given(extra=st.lists(names_of_files, unique=True, max_size=20))
@settings(max_examples=50, deadline=None)
def test_additions_move_nothing(extra):
    names = [f"image {index}" for index in range(60)]
    before = parts_of(names, [0.2, 0.2])
    after = parts_of(list(dict.fromkeys(names + extra)), [0.2, 0.2])
    for old, new in zip(before, after, strict=True):
        assert old <= new


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=60), limit=st.integers(4, 70), step=st.integers(0, 10))
@settings(max_examples=100, deadline=None)
def test_limits_are_balanced_and_nested(labels, limit, step):
    names = [str(index) for index in range(len(labels))]
    kept = keep_per_class(names, labels, 4, limit, "train_limit")
    assert kept == sorted(set(kept))
    assert set(kept) <= set(keep_per_class(names, labels, 4, limit + step, "train_limit"))
    for label in range(4):
        share = limit // 4 + (label < limit % 4)
        assert sum(labels[i] == label for i in kept) == min(share, labels.count(label))


def test_a_limit_below_the_number_of_classes_is_refused():
    with pytest.raises(InputError, match="val_limit=3: expected a whole number of images, at least 4"):
        keep_per_class(["a"], [0], 4, 3, "val_limit")
