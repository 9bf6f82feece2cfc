from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

RECORDINGS = Path(__file__).parents[1] / "recordings"


class Recording:
    """One .npz file; entries as tensors or Python scalars."""

    def __init__(self, name: str) -> None:
        self.name = name
        with np.load(RECORDINGS / f"{name}.npz") as arrays:
            self._arrays = dict(arrays)

    def __contains__(self, key: str) -> bool:
        return key in self._arrays

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(np.array(self._arrays[key]))

    def scalar(self, key: str):
        return self._arrays[key].item()

    def assert_value(self, actual: Tensor, key: str = "loss") -> None:
        """The loss is 0-d and equal within the recordings' tolerances."""
        expected = self[key]
        assert actual.shape == ()
        rtol, atol = (2e-5, 1e-7) if actual.dtype == torch.float32 else (1e-9, 1e-12)
        torch.testing.assert_close(actual.detach(), expected.to(actual.dtype), rtol=rtol, atol=atol)

    def assert_gradient(self, actual: Tensor | None, key: str, but: tuple[int, ...] | None = None) -> None:
        """Entries are equal relative to the largest one; the slice `but` is left out, but has to be bounded."""
        assert actual is not None
        actual, expected = actual.clone(), self[key].to(actual.dtype)
        if but is not None:
            assert expected[but].abs().max() > 1e6
            assert actual[but].abs().max() < 1
            actual[but], expected[but] = 0, 0
        rtol, atol = (2e-5, 1e-9) if actual.dtype == torch.float32 else (1e-7, 1e-10)
        limit = rtol * float(expected.abs().max()) + atol
        assert float((actual - expected).abs().max()) <= limit


@pytest.fixture
def recording():
    return Recording


class TinyNet(nn.Module):
    """A convolution, ReLU, global pooling and a linear layer: small, but with all that the baselines read."""

    def __init__(
        self, num_classes: int = 5, channels: int = 6, stride: int = 2, seed: int = 0, bias: bool = True
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, channels, 3, stride=stride, padding=1)
            self.norm = nn.BatchNorm2d(channels)
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(channels, num_classes, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        feature_map = torch.relu(self.norm(self.conv(images)))
        return self.fc(self.pool(feature_map).flatten(1))


class OtherNet(TinyNet):
    """The same network under another class, as if of another architecture."""


class TokenNet(nn.Module):
    """Has pooled features, but no feature map."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.embed = nn.Linear(3 * 8 * 8, 8)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.embed(images[:, :, :8, :8].flatten(1))))


@pytest.fixture
def student():
    return TinyNet(channels=6, seed=1)


@pytest.fixture
def teacher():
    return TinyNet(channels=9, stride=4, seed=2)


@pytest.fixture
def tiny_net():
    return TinyNet


@pytest.fixture
def other_net():
    return OtherNet


@pytest.fixture
def token_net():
    return TokenNet


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(8, 3, 32, 32, generator=generator), torch.randint(5, (8,), generator=generator)


@pytest.fixture
def draw():
    """Seeded normal draws in float64: draw(*shape, seed=0)."""

    def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)

    return normal
