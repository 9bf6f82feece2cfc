import collections
import datetime
import fractions
import functools
import os
import pickle
import pickletools
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tmkd_plugin.data.restricted_pickle import read_plain_pickle
from tmkd_plugin.errors import InputError

PATH = Path("batches/data_batch_1")
PLAIN = {"data": [1, -5, 2**70, 0.5, True, None], "names": ["a", "ü"], "raw": b"\x00\xff", "more": {"x": ("y", ())}}


def read(content):
    return read_plain_pickle(content, PATH)


def python2_pickle(value):
    """What Python 2 wrote with protocol 2: text and bytes as byte strings, arrays by numpy 1's names."""

    def string(raw):
        return b"T" + struct.pack("<i", len(raw)) + raw

    def write(item):
        if isinstance(item, dict):
            return b"}(" + b"".join(string(key.encode()) + write(entry) for key, entry in item.items()) + b"u"
        if isinstance(item, list):
            return b"](" + b"".join(map(write, item)) + b"e"
        if isinstance(item, tuple):
            return b"(" + b"".join(map(write, item)) + b"t"
        if isinstance(item, int):
            return b"J" + struct.pack("<i", item)
        if isinstance(item, np.ndarray):
            code, order = item.dtype.str[1:], item.dtype.str[0].encode()
            dtype = b"cnumpy\ndtype\n" + b"(" + string(code.encode()) + write(0) + write(1) + b"tR"
            dtype += b"(" + write(3) + string(order) + b"NNN" + write(-1) + write(-1) + write(0) + b"tb"
            empty = (
                b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + write(0) + b"t" + string(b"b") + b"tR"
            )
            fortran = item.flags.f_contiguous and not item.flags.c_contiguous
            raw = string(item.tobytes("A"))
            return empty + b"(" + write(1) + write(item.shape) + dtype + (b"\x88" if fortran else b"\x89") + raw + b"tb"
        return string(item.encode())

    return b"\x80\x02" + write(value) + b"."


ARRAYS = {
    "pixels": np.arange(60, dtype=np.uint8).reshape(4, 15),
    "fortran": np.asfortranarray(np.arange(12, dtype="<i8").reshape(3, 4)),
    "big endian": np.array([1.5, -2.0], dtype=">f4"),
    "empty": np.zeros((0, 3), np.uint8),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol(protocol):
    assert read(pickle.dumps(PLAIN, protocol=protocol)) == PLAIN


@pytest.mark.parametrize("protocol", range(5))
def test_arrays_of_the_installed_numpy(protocol):
    found = read(pickle.dumps(ARRAYS, protocol=protocol))
    for name, expected in ARRAYS.items():
        np.testing.assert_array_equal(found[name], expected, strict=True)


@pytest.mark.parametrize(("old", "new"), [(b"numpy.core.", b"numpy._core."), (b"numpy._core.", b"numpy.core.")])
def test_arrays_of_both_numpys(old, new):
    content = pickle.dumps(ARRAYS, protocol=2).replace(old, new)
    np.testing.assert_array_equal(read(content)["pixels"], ARRAYS["pixels"])


def test_pickles_of_python_2():
    value = {"batch_label": "testing batch 1 of 1", "labels": [3, 0, 9], "filenames": ["a_s_1.png"], **ARRAYS}
    content = python2_pickle(value)
    reference = pickle.loads(content, encoding="latin1")  # what torchvision does
    for found in (read(content), reference):
        assert found["labels"] == [3, 0, 9]
        assert found["filenames"] == ["a_s_1.png"]
        for name, expected in ARRAYS.items():
            native = expected.astype(expected.dtype.newbyteorder("="))  # as numpy makes it of strings
            np.testing.assert_array_equal(found[name].astype(native.dtype, casting="equiv"), native, strict=True)


class Runs:
    """Unpickling it runs what it was made of."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


class Built:
    """An object of a class of ours."""

    def __init__(self):
        self.value = 1


def run_by_name(module, name, argument):
    """Protocol 0: calls ``module.name(argument)``."""
    return f"c{module}\n{name}\n(V{argument}\ntR.".encode()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Runs(os.system, "touch ran"), r"'\w+\.system'"),
        (Runs(eval, "open('ran', 'w')"), r"'(builtins|__builtin__)\.eval'"),
        (Runs(exec, "open('ran', 'w')"), r"'(builtins|__builtin__)\.exec'"),
        (Runs(getattr, {}, "keys"), r"'(builtins|__builtin__)\.getattr'"),
        (Runs(open, "ran", "w"), r"'_?io\.open'"),
        (Built(), r"'.*test_restricted_pickle\.Built'|'copy_?reg\._reconstructor'"),
        (fractions.Fraction(1, 2), r"'fractions\.Fraction'"),
        (datetime.date(2020, 1, 1), r"'datetime\.date'"),
        (collections.OrderedDict(a=1), r"'collections\.OrderedDict'"),
        (functools.partial(len), r"'functools\.partial'"),
        (1 + 2j, r"'(builtins|__builtin__)\.complex'"),
        (os.system, r"'\w+\.system'"),
        (dict, r"'(builtins|__builtin__)\.dict'"),
    ],
)
def test_everything_else_is_refused_by_name(tmp_path, monkeypatch, protocol, value, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"data_batch_1' asks to import ({name})"):
        read(pickle.dumps({"data": value}, protocol=protocol))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("numpy", "load"),
        ("numpy", "fromfile"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy.testing._private.utils", "runstring"),
        ("numpy", "ndarray.tofile"),
        ("_codecs", "decode"),
        ("codecs", "open"),
        ("builtins", "__import__"),
        ("tmkd_plugin.data.restricted_pickle", "read_plain_pickle"),
    ],
)
def test_names_beside_the_allowed_ones_are_refused(module, name):
    with pytest.raises(InputError, match=f"asks to import '{module}.{name}'"):
        read(run_by_name(module, name, "touch ran"))


NUMPY = "cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR"
U1 = "cnumpy\ndtype\n(Vu1\ntR"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("cnumpy\ndtype\n(VO\ntR.", "an array of 'O' instead of numbers"),
        ("cnumpy\ndtype\n(VV8\ntR.", "an array of 'V8'"),
        ("cnumpy\ndtype\n(I5\ntR.", "an array of 5"),
        (f"{U1}(I3\nV!\nNNNI-1\nI-1\nI0\ntb.", "the byte order '!'"),
        (f"{NUMPY}(I1\n(I4\nt{U1}I00\nVabc\ntb.", "bytes don't fit its shape"),
        (f"{NUMPY}(I1\n(I-1\nt{U1}I00\nVabc\ntb.", "without a shape"),
        (f"{NUMPY}(I1\n(I3\ntNI00\nVabc\ntb.", "without a shape or a type"),
        (f"{NUMPY}(I1\n(I3\nt{U1}I00\n(ltb.", "bytes don't fit its shape"),
        ("cnumpy\nndarray\n(I5\ntR.", "not callable"),
        ("cnumpy\nndarray\n(dVdtype\nI1\nsb.", "it changes a function"),
        ("cnumpy.core.multiarray\n_reconstruct\n(dV__call__\nI1\nsb.", "it changes a function"),
        ("c_codecs\nencode\n(Va\nVrot13\ntR.", "an encoding 'rot13'"),
        ("Pabc\n.", "objects outside of it"),
        ("", "Ran out of input|EOF"),
        ("(lp0\n", "Ran out of input|EOF|truncated"),
        ("hello", "damaged"),
        ("Va\n(dVx\nI1\nsb.", "damaged"),
    ],
)
def test_misuse_and_damage_is_an_input_error(content, reason):
    with pytest.raises(InputError, match=reason):
        read(content.encode())


def test_stand_ins_are_the_same_after_a_hostile_pickle():
    with pytest.raises(InputError):
        read(b"cnumpy\ndtype\n}(V__name__\nI1\nub.")
    np.testing.assert_array_equal(read(pickle.dumps(ARRAYS, protocol=2))["pixels"], ARRAYS["pixels"])


@pytest.mark.parametrize("value", [[1, 2], "text", {1: "a"}, np.zeros(3)])
def test_what_is_no_dict_of_strings_is_refused(value):
    with pytest.raises(InputError, match="holds no dict of strings"):
        read(pickle.dumps(value, protocol=2))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_changed_bytes_give_plain_data_or_an_input_error(data):
    content = bytearray(pickle.dumps({"data": ARRAYS["pixels"], "labels": [1, 2, 3]}, protocol=2))
    # The places of numbers in memo opcodes are left alone: a large one makes the memo large.
    memo = {position + 1 for code, _, position in pickletools.genops(bytes(content)) if "PUT" in code.name}
    position = data.draw(st.sampled_from(sorted(set(range(len(content))) - memo)))
    content[position] = data.draw(st.integers(0, 255).filter(lambda byte: byte not in b"rjp"))
    try:
        found = read(bytes(content))
    except InputError as error:
        assert str(PATH) in str(error)  # noqa: PT017
    else:
        assert isinstance(found, dict)
