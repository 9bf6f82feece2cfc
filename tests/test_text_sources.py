import math
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from tmkd_plugin.errors import InputError
from tmkd_plugin.prompts import prompts_for
from tmkd_plugin.randomness import generator_for
from tmkd_plugin.text_teacher import SharedTextWarning, text_embeddings

NAMES = ["zero", "one", "two", "three"]


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=generator_for(seed, "test embeddings"))


def expect(message, source, names=NAMES, **arguments):
    with pytest.raises(InputError, match=message) as caught:
        text_embeddings(names, source, **arguments)
    return str(caught.value)


class TestTensors:
    def test_rows_are_normalised_and_nothing_else_changes(self):
        given = numbers(3, 4, 6)
        text = text_embeddings(NAMES, given)
        for view in range(3):
            for row in range(4):
                values = given[view, row].tolist()
                length = math.sqrt(sum(value * value for value in values))
                expected = torch.tensor([value / length for value in values])
                torch.testing.assert_close(text.tensor[view, row], expected, rtol=0, atol=1e-7)
        assert (text.text_views, text.shared_views) == ("per view", False)
        assert text.source == "tensor of shape (3, 4, 6)"

    def test_the_result_is_detached_float32_of_its_own_memory(self):
        given = numbers(3, 4, 6).double().requires_grad_()
        text = text_embeddings(NAMES, given)
        assert text.tensor.dtype == torch.float32
        assert not text.tensor.requires_grad
        with torch.no_grad():
            given.zero_()
        assert text.tensor.norm() > 1

    def test_one_embedding_a_class_is_shared_by_the_views_with_a_notice(self):
        with pytest.warns(SharedTextWarning, match="all 3 views share it"):
            text = text_embeddings(NAMES, numbers(4, 6))
        assert text.tensor.shape == (3, 4, 6)
        assert (text.text_views, text.shared_views) == ("shared", True)
        assert torch.equal(text.tensor[0], text.tensor[2])
        text.tensor[0] = 0  # memory of its own for every view
        assert text.tensor[2].norm() > 1

    def test_one_view_needs_no_notice(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            text = text_embeddings(NAMES, numbers(4, 6), views=("edge",))
        assert text.tensor.shape == (1, 4, 6)
        assert text.text_views == "per view"

    def test_numpy_arrays_are_taken(self):
        assert torch.equal(
            text_embeddings(NAMES, numbers(3, 4, 6).numpy()).tensor, text_embeddings(NAMES, numbers(3, 4, 6)).tensor
        )

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (torch.ones(6), r"shape \(6,\); expected \(K, D\) = \(4, D\) or \(V, K, D\) = \(3, 4, D\)"),
            (torch.ones(5, 6), r"shape \(5, 6\); expected .*\(4, D\)"),
            (torch.ones(3, 5, 6), r"shape \(3, 5, 6\); expected"),
            (torch.ones(4, 0), r"shape \(4, 0\); expected"),
            (torch.ones(2, 4, 6), "embeddings for 2 views, but 3 are used"),
            (torch.ones(3, 4, 6, dtype=torch.int64), "torch.int64; expected floating"),
            (np.ones((3, 4, 6), dtype=int), "torch.int64; expected floating"),
        ],
    )
    def test_unusable_shapes_and_dtypes(self, given, message):
        expect(message, given)

    @pytest.mark.parametrize(
        ("value", "message"), [(math.nan, "NaN or infinite"), (math.inf, "NaN or infinite"), (0.0, "nothing but zeros")]
    )
    def test_unusable_rows_are_named_by_class_and_view(self, value, message):
        given = numbers(3, 4, 6)
        given[1, 2] = value
        expect(rf"1 of 12 rows hold {message}.*class 2 \('two'\), view 'edge'", given)
        expect(rf"1 of 4 rows hold {message}.*class 2 \('two'\)\.", given[1])

    def test_class_names_and_views_are_checked_first(self):
        expect("Duplicate class names", torch.ones(2, 3), names=["cat", "cat"])
        expect(
            "Unknown view 'edges'. Did you mean 'edge'", torch.ones(2, 3), names=["cat", "dog"], views=("rgb", "edges")
        )

    @pytest.mark.parametrize("given", [None, 3, ["cat"], np.array(["cat"])])
    def test_another_type_is_refused_with_the_kinds_of_sources(self, given):
        expect("The text source is of type .*; expected MODEL/PRETRAINED of open_clip such as", given)


class TestCallables:
    def test_it_is_called_with_the_prompts_of_each_view_in_order(self):
        calls = []

        def encode(prompts):
            calls.append(prompts)
            return numbers(len(prompts), 5, seed=len(calls)).requires_grad_()

        text = text_embeddings(NAMES, encode, views=("edge", "rgb"))
        assert calls == [prompts_for(NAMES, "edge"), prompts_for(NAMES, "rgb")]
        raw = torch.stack([numbers(4, 5, seed=1), numbers(4, 5, seed=2)])
        assert torch.equal(text.tensor, text_embeddings(NAMES, raw, views=("edge", "rgb")).tensor)
        assert not text.tensor.requires_grad
        assert text.text_views == "per view"
        assert "encode" in text.source

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (torch.ones(3, 5), r"shape \(4, D\) for 4 prompts; it returned \(3, 5\) for view 'rgb'"),
            (torch.ones(4), r"returned \(4,\) for view 'rgb'"),
            ([[1.0]] * 4, "it returned list"),
        ],
    )
    def test_an_unusable_answer_is_named(self, answer, message):
        expect(message, lambda prompts: answer)

    def test_widths_that_differ_between_views_are_refused(self):
        widths = iter([5, 6, 5])
        expect(r"shape \(4, 5\) .* returned \(4, 6\) for view 'edge'", lambda prompts: torch.ones(4, next(widths)))


class TestNpzFiles:
    def write(self, path, **arrays):
        np.savez(path, **arrays)
        return str(path)

    def test_one_prompt_a_class(self, tmp_path):
        path = self.write(tmp_path / "text.npz", emb=numbers(4, 6).numpy(), names=np.array(NAMES))
        with pytest.warns(SharedTextWarning):
            text = text_embeddings(NAMES, path)
        assert text.text_views == "shared"
        assert text.source == path
        assert torch.equal(text.tensor[1], text_embeddings(NAMES, numbers(4, 6), views=("rgb",)).tensor[0])

    def test_one_prompt_a_class_and_view(self, tmp_path):
        path = self.write(tmp_path / "text.npz", emb=numbers(3, 4, 6).numpy(), names=np.array(NAMES))
        assert torch.equal(text_embeddings(NAMES, Path(path)).tensor, text_embeddings(NAMES, numbers(3, 4, 6)).tensor)

    def test_named_views_are_chosen_by_name(self, tmp_path):
        arrays = {"emb": numbers(2, 4, 6).numpy(), "names": np.array(NAMES), "views": np.array(["edge", "rgb"])}
        path = self.write(tmp_path / "text.npz", **arrays)
        text = text_embeddings(NAMES, path, views=("rgb",))
        assert torch.equal(text.tensor, text_embeddings(NAMES, numbers(2, 4, 6)[1:], views=("rgb",)).tensor)
        expect("no embeddings of the view high_frequency; it has edge, rgb", path)

    def test_the_first_differing_pair_of_names_is_shown(self, tmp_path):
        path = self.write(tmp_path / "text.npz", emb=np.ones((4, 6)), names=np.array(["zero", "two", "one", "three"]))
        expect("row 1 is 'two' in the file, but class 1 is 'one'. They are the same names in another order", path)
        path = self.write(tmp_path / "other.npz", emb=np.ones((4, 6)), names=np.array(["zero", "one", "two", "drei"]))
        message = expect("row 3 is 'drei' in the file, but class 3 is 'three'", path)
        assert "another order" not in message

    def test_another_number_of_names_says_both(self, tmp_path):
        path = self.write(tmp_path / "text.npz", emb=np.ones((2, 6)), names=np.array(["zero", "one"]))
        expect("embeddings of 2 names, but there are 4 classes", path)

    def test_case_and_underscores_may_differ(self, tmp_path):
        path = self.write(tmp_path / "text.npz", emb=np.ones((2, 6)), names=np.array(["Sea Lion", "polar_bear"]))
        assert text_embeddings(["sea_lion", "polar bear"], path, views=("rgb",)).tensor.shape == (1, 2, 6)
        expect("row 0 is 'Sea Lion' in the file, but class 0 is 'polar bear'", path, ["polar bear", "sea_lion"])

    def test_but_not_where_that_is_ambiguous(self, tmp_path):
        path = self.write(tmp_path / "text.npz", emb=np.ones((2, 6)), names=np.array(["crane", "Crane"]))
        expect("row 1 is 'Crane'", path, ["crane", "bird"])
        expect("row 0 is 'crane' in the file, but class 0 is 'CRANE'", path, ["CRANE", "bird"])

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"emb": np.ones((4, 6))}, r"lacks names \(there: emb\); expected `emb`"),
            ({"names": np.array(NAMES), "x": np.ones(1)}, r"lacks emb \(there: names, x\)"),
            ({"emb": np.ones((4, 6)), "names": np.array(NAMES, dtype=object)}, "Arrays of Python objects are refused"),
            ({"emb": np.ones((4, 6)), "names": np.arange(4)}, "`names` in .* dtype int64"),
            ({"emb": np.ones((4, 6), dtype=int), "names": np.array(NAMES)}, "`emb` in .* has dtype int64"),
            ({"emb": np.ones((4, 6)) * np.nan, "names": np.array(NAMES)}, "4 of 4 rows hold NaN"),
            ({"emb": np.ones((5, 6)), "names": np.array(NAMES)}, r"shape \(5, 6\); expected"),
        ],
    )
    def test_unusable_contents(self, tmp_path, arrays, message):
        path = self.write(tmp_path / "text.npz", **arrays)
        assert path in expect(message, path)

    def test_a_truncated_file_and_one_that_is_no_zip(self, tmp_path):
        path = tmp_path / "text.npz"
        self.write(path, emb=np.ones((4, 600)), names=np.array(NAMES))
        path.write_bytes(path.read_bytes()[:900])
        expect("text.npz can't be read", path)
        path.write_text("hello")
        expect("text.npz can't be read", path)
        path.write_bytes(b"")
        expect("text.npz can't be read", path)

    def test_a_missing_file_and_one_of_another_kind(self, tmp_path):
        expect("/nowhere/text.npz does not exist; expected MODEL/PRETRAINED", "/nowhere/text.npz")
        expect("text.safetensors does not exist", "text.safetensors")
        (tmp_path / "text.csv").write_text("1,2")
        expect("text.csv is of no known kind: expected .npz or .safetensors", tmp_path / "text.csv")

    @pytest.mark.skipif("TMKD_SHARED" not in os.environ, reason="TMKD_SHARED names no folder with the shared data")
    def test_real_clip_embeddings_of_cifar10(self):
        path = Path(os.environ["TMKD_SHARED"]) / "data/clip_vitb32_cifar10_a_cname.npz"
        names = [str(name) for name in np.load(path)["names"]]
        with pytest.warns(SharedTextWarning):
            text = text_embeddings(names, path)
        assert text.tensor.shape == (3, 10, 512)
        torch.testing.assert_close(text.tensor[0], torch.from_numpy(np.load(path)["emb"]), rtol=0, atol=1e-6)
