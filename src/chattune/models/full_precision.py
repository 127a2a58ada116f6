"""Computing in fp32 with a model whose weights are in bf16, without a second copy of it."""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map


class FullPrecision(TorchFunctionMode):
    """A context in which every PyTorch function takes tensors of lower precision as fp32.

    A model computes as `model.float()` would, but a matrix is converted for the functions that use
    it and then dropped, so that memory must hold only the largest one twice over. The conversion is
    paid at every use, so this is for single forward passes.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call `func` with its arguments converted."""
        args, kwargs = tree_map(_to_fp32, (args, kwargs or {}))
        return func(*args, **kwargs)


def _to_fp32(value: Any) -> Any:
    is_low = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if is_low else value
