"""A view that nobody has made: what the teacher says of it is known, its pixels are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tmkd_plugin.errors import InputError


class UnmadeView(Tensor):
    """Stands for a batch of a view: it can be cut into parts and handed to the teacher, but not be looked at."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Allows what needs no pixels.

        Raises:
            InputError: The pixels are needed.
        """
        if func in _COMPARISONS:
            return False
        if func not in _WITHOUT_PIXELS:
            name = getattr(func, "__name__", str(func))
            raise InputError(
                f"The pixels of a view are needed ({name}), but with a teacher cache no view is made: only what the teacher "
                "itself says of it is kept. Train this one without --teacher-cache."
            )
        return super().__torch_function__(func, types, tuple(args), dict(kwargs or {}))  # type: ignore[no-untyped-call]


def unmade_view(images: Tensor) -> Tensor:
    """Returns a view of (B, 3, H, W) that was not made; its memory is never touched."""
    return torch.empty_like(images).as_subclass(UnmadeView)


_COMPARISONS = (torch.equal, Tensor.equal)
"""An unmade view is no other tensor."""

_WITHOUT_PIXELS = {
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "dtype", "device", "layout", "ndim", "requires_grad", "is_leaf", "grad_fn", "_version")
    ),
    *(Tensor.size, Tensor.dim, Tensor.stride, Tensor.data_ptr, Tensor.element_size, Tensor.numel, Tensor.__len__),
    *(Tensor.is_floating_point, torch.is_floating_point, Tensor.is_inference, torch.is_inference),
    *(Tensor.__getitem__, Tensor.tensor_split, torch.tensor_split),
}
