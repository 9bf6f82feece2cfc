import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from scipy.io import loadmat, savemat

from tmkd_plugin.data.mat_lists import MatError, read_mat_lists


def cells(texts):
    array = np.empty((len(texts), 1), dtype=object)
    for row, text in enumerate(texts):
        array[row, 0] = text
    return array


def read(path, *names, max_bytes=2**20, max_rows=1000):
    return read_mat_lists(path, names, max_bytes=max_bytes, max_rows=max_rows)


@pytest.mark.parametrize("compressed", [True, False])
def test_what_scipy_writes(tmp_path, compressed):
    path = tmp_path / "lists.mat"
    texts = [
        np.array(["a"]),
        np.array(["four"]),
        np.array(["längere Zeile/ü.jpg"]),
        np.array([]),
        np.ones(2),
        np.array(["a", "b"]),
    ]
    numbers = {
        dtype: np.array([[1], [2], [100]], dtype=dtype)
        for dtype in ("u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")
    }
    savemat(
        path,
        {"texts": cells(texts), "other": "skipped", "none": np.zeros((0, 0)), **numbers},
        do_compression=compressed,
    )
    found = read(path, "texts", "none", "absent", *numbers)
    assert found.pop("texts") == ["a", "four", "längere Zeile/ü.jpg", "", "", ""]
    assert found.pop("none") == []
    assert found == {name: [1, 2, 100] for name in numbers}


@pytest.mark.parametrize(
    "name", ["testcell_6.1_SOL2", "testcell_7.4_GLNX86", "testdouble_6.1_SOL2", "testmatrix_7.1_GLNX86"]
)
def test_what_matlab_has_written(name):
    """Files from MATLAB itself, on machines of both byte orders, that SciPy has among its tests."""
    path = Path(scipy.io.__file__).parent / "matlab/tests/data" / f"{name}.mat"
    if not path.exists():
        pytest.skip("this SciPy has been installed without its tests")
    variable = name.split("_")[0]
    expected = []
    for value in loadmat(path)[variable].ravel(order="F"):
        if isinstance(value, np.ndarray):
            value = value.item() if value.dtype.kind == "U" and value.size == 1 else ""
        expected.append(value)
    assert read(path, variable) == {variable: expected}


def test_big_endian_files_and_numbers_in_small_types(tmp_path):
    def element(kind, content):
        return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)

    small = struct.pack(">HHBBxx", 2, 2, 7, 8)  # two bytes in the tag itself: a double array stored as uint8
    shape = element(5, struct.pack(">ii", 2, 1))
    matrix = element(14, element(6, struct.pack(">II", 6, 0)) + shape + element(1, b"labels") + small)
    text = element(6, struct.pack(">II", 4, 0)) + element(5, struct.pack(">ii", 1, 2)) + element(1, b"")
    cell = element(14, text + element(4, "né".encode("utf-16-be")))
    matrix += element(
        14, element(6, struct.pack(">II", 1, 0)) + element(5, struct.pack(">ii", 1, 1)) + element(1, b"c") + cell
    )
    path = tmp_path / "lists.mat"
    path.write_bytes(b"MATLAB 5.0".ljust(124) + b"\x01\x00MI" + matrix)
    assert read(path, "labels", "c") == {"labels": [7, 8], "c": ["né"]}


@pytest.mark.parametrize("compressed", [True, False])
def test_damaged_files_give_lists_or_an_error(tmp_path, compressed):
    path = tmp_path / "lists.mat"
    texts = [np.array([f"n02085620-Chihuahua/{number}.jpg"]) for number in range(5)]
    savemat(path, {"texts": cells(texts), "labels": np.ones((5, 1), "u1")}, do_compression=compressed)
    whole = path.read_bytes()
    draw = random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(draw.choice((1, 2, 5))):
            damaged[draw.randrange(124, len(damaged))] = draw.choice((0, 255, draw.randrange(256)))
        path.write_bytes(damaged)
        try:
            read(path, "texts", "labels")
        except MatError:
            refused += 1
    assert refused > 50
    for size in range(129, len(whole), 5):
        path.write_bytes(whole[:size])
        try:
            found = read(path, "texts", "labels")
        except MatError:
            continue
        assert len(found) == 1  # cut between two variables


def test_bounds(tmp_path):
    path = tmp_path / "lists.mat"
    savemat(path, {"labels": np.ones((1001, 1), "u1")}, do_compression=True)
    with pytest.raises(MatError, match="labels has 1,001 elements, more than 1,000"):
        read(path, "labels")
    assert read(path, "other") == {}
    savemat(path, {"labels": np.ones((5000, 1)), "more": np.ones((5000, 1))}, do_compression=True)
    assert path.stat().st_size < 2000
    with pytest.raises(MatError, match="unpack to more than is allowed"):
        read(path, "labels", max_bytes=60_000, max_rows=5000)
    assert len(read(path, "labels", max_bytes=100_000, max_rows=5000)["labels"]) == 5000
    path.write_bytes(bytes(1025))
    with pytest.raises(MatError, match=r"larger than 0\.0009"):
        read(path, "labels", max_bytes=1000)


def test_a_shape_that_announces_too_much(tmp_path):
    path = tmp_path / "lists.mat"
    savemat(path, {"labels": np.ones((3, 1)), "texts": cells([np.array(["a"])] * 3)})
    content = path.read_bytes()
    assert content.count(struct.pack("<ii", 3, 1)) == 2
    path.write_bytes(content.replace(struct.pack("<ii", 3, 1), struct.pack("<ii", 900, 1)))
    with pytest.raises(MatError, match="labels has other than its 900 values"):
        read(path, "labels")
    with pytest.raises(MatError, match="texts has other than its 900 cells"):
        read(path, "texts")
    path.write_bytes(content.replace(struct.pack("<ii", 3, 1), struct.pack("<ii", -3, -1)))
    with pytest.raises(MatError, match=r"a variable has the shape \(-3, -1\)"):
        read(path, "labels")


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        (np.array([[1j]]), "labels holds neither cells nor real numbers"),
        ("text", "labels holds neither cells nor real numbers"),
        ({"field": 1}, "labels holds neither cells nor real numbers"),
    ],
)
def test_other_kinds_of_variables(tmp_path, variable, message):
    savemat(tmp_path / "lists.mat", {"labels": variable})
    with pytest.raises(MatError, match=message):
        read(tmp_path / "lists.mat", "labels")


def test_no_matlab_5(tmp_path):
    path = tmp_path / "lists.mat"
    header = b"MATLAB".ljust(124) + b"\x00\x01IM"
    for content, message in [
        (b"", "no header of MATLAB 5 to 7.2"),
        (b"MATLAB 7.3".ljust(124) + b"\x00\x02IM", "no header of MATLAB 5 to 7.2"),
        (header + b"rest", "cut off"),
        (header + struct.pack("<II", 9, 0), "data of type 9 in place of a variable"),
        (header + struct.pack("<II", 15, 4) + b"abcd", "a compressed variable is damaged"),
        (header + struct.pack("<II", 15, 8) + zlib.compress(bytes(100))[:8], "a compressed variable is cut off"),
        (header + struct.pack("<II", 15, 8) + zlib.compress(b""), "a compressed variable holds no single variable"),
        (header + struct.pack("<II", 14, 0), "a variable has no flags, shape and name"),
    ]:
        path.write_bytes(content)
        with pytest.raises(MatError, match=message):
            read(path, "labels")
    savemat(path, {"labels": np.ones((3, 1))}, format="4")
    with pytest.raises(MatError, match="no header"):
        read(path, "labels")
