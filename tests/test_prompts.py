import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmkd_plugin.errors import InputError
from tmkd_plugin.prompts import PROMPTS, check_class_names, prompts_for


def test_prompts_are_those_of_table_1():
    assert prompts_for(["cat"], "rgb") == ["a photo of a cat"]
    assert prompts_for(["cat"], "edge") == ["an edge enhanced image of a cat"]
    assert prompts_for(["cat"], "high_frequency") == ["a high-frequency enhanced image of a cat"]
    assert list(PROMPTS) == ["rgb", "edge", "high_frequency"]


def test_prompts_keep_the_order_of_the_names():
    assert prompts_for(["b", "a", "c"], "rgb") == ["a photo of a b", "a photo of a a", "a photo of a c"]


def test_underscores_of_folder_names_become_spaces():
    assert prompts_for(["great_white__shark "], "rgb") == ["a photo of a great white shark"]


@pytest.mark.parametrize("name", ["{class}", "a {0} b", "100 %s", "c++ {", "naïve café"])
def test_a_name_is_put_in_literally(name):
    assert prompts_for([name], "rgb") == [f"a photo of a {name}"]


def test_an_unknown_view_is_refused_with_the_nearest_one():
    with pytest.raises(InputError, match=r"Unknown view 'edges'. Did you mean 'edge'"):
        prompts_for(["cat"], "edges")


@pytest.mark.parametrize("given", [["cat", "dog"], ("cat", "dog"), np.array(["cat", "dog"])])
def test_sequences_of_names_come_back_as_a_list_of_plain_strings(given):
    checked = check_class_names(given, expected_count=2)
    assert checked == ["cat", "dog"]
    assert [type(name) for name in checked] == [str, str]


@given(st.lists(st.text("abcdefgh", min_size=1), min_size=1, unique=True))
def test_different_names_are_accepted_as_they_are(names):
    assert check_class_names(names, len(names)) == names


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("airplane", "single string 'airplane'"),
        (b"airplane", "given: bytes"),
        (None, "given: NoneType"),
        (10, "given: int"),
        ({"cat", "dog"}, "given: set"),
        ({0: "cat"}, "given: dict"),
        (iter(["cat"]), "no sequence of strings"),
        (np.array([["cat"]]), "given: ndarray"),
        ([], "No class names"),
        (["cat", ""], "name 1 is ''"),
        (["cat", " _ "], "must not be empty: name 1 is ' _ '"),
        (["cat", 7], "name 1 is 7 of type int"),
        (["cat", None], "name 1 is None of type NoneType"),
        (["cat", b"dog"], "of type bytes"),
        (["cat", "dog", "cat"], r"Duplicate class names: 'cat' \(name 0\) and 'cat' \(name 2\)"),
        (["sea_lion", "cat", "Sea Lion"], r"'sea_lion' \(name 0\) and 'Sea Lion' \(name 2\)"),
    ],
)
def test_unusable_class_names_are_named(given, message):
    with pytest.raises(InputError, match=message):
        check_class_names(given)


def test_a_wrong_count_says_both_counts_and_the_names():
    with pytest.raises(InputError, match=r"2 were given, 10 are expected.*'cat', 'dog'"):
        check_class_names(["cat", "dog"], expected_count=10)
    with pytest.raises(InputError, match="0 were given, 10 are expected"):
        check_class_names([], expected_count=10)


def test_many_duplicates_make_a_message_of_bounded_length():
    names = [f"class {index}" for index in range(300)] * 2
    with pytest.raises(InputError, match="300 in all") as caught:
        check_class_names(names)
    assert len(str(caught.value)) < 1000
