"""The lengths of the conversations in a pack, kept where every module of a model finds them.

transformers does not hand unknown arguments on to its attention modules.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@dataclass
class Pack:
    """The lengths of the conversations in the pack that a model was called with last.

    They are None after a call without a pack. They stay for the backward pass, which may compute
    the attention again.
    """

    lengths: list[int] | None = None


def keep_pack_lengths(inner: "nn.Module") -> Pack:
    """Give transformers' inner model an argument `pack_lengths`; return where its value is kept.

    With the argument, transformers builds no mask, so that every attention module of the model has
    to keep the conversations apart by itself.
    """
    pack = Pack()

    def read(_: "nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        pack.lengths = kwargs.pop("pack_lengths", None)
        if pack.lengths is not None:
            # With a 4D mask, of whatever size, transformers builds none of tokens x tokens.
            kwargs["attention_mask"] = kwargs["position_ids"].new_empty(1, 1, 0, 0)
        return args, kwargs

    inner.register_forward_pre_hook(read, with_kwargs=True)
    return pack
