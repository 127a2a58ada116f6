"""Dropout in one pass over memory: on a CPU what falls follows from a seed, so no mask is kept.

PyTorch's takes forty times as long there.
"""

from typing import Any

import numba
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from chattune.compiled import as_array, call, compiled

_TOGETHER = 4096  # numbers that a thread takes at once


def drawn(x: torch.Tensor, p: float) -> torch.Tensor:
    """What decides which numbers of x, or of another like it, fall: a 62-bit seed, or a mask.

    Drawn from the CPU's generator on every device: one state to restore.
    """
    seed = torch.randint(2**62, ()) if p else torch.tensor(0)
    if not p or (x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)):
        return seed
    generator = torch.Generator(x.device).manual_seed(int(seed))
    stays = torch.empty(x.shape, dtype=torch.bool, device=x.device)
    return stays.bernoulli_(1 - p, generator=generator)


def dropped(x: torch.Tensor, p: float, which: torch.Tensor) -> torch.Tensor:
    """x with each of its numbers zeroed with probability `p`, the rest as they are.

    Of any shape; `which` is drawn(). The same zeroes the same places of another tensor of as many.
    """
    if not p:
        return x
    if which.dtype == torch.bool:
        return torch.where(which, x, 0.0)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    arrays = (as_array(tensor.detach()).reshape(-1) for tensor in (x, out))
    # Neighbouring seeds are to differ in both halves.
    spread = int(which) * 0x9E3779B97F4A7C15 % 2**64
    call(_drop, *arrays, spread % 2**32, spread // 2**32, round(p * 2**31))
    return out


@compiled(parallel=True)
def _drop(x, out, first, second, below):
    for part in numba.prange((len(x) + _TOGETHER - 1) // _TOGETHER):
        here = slice(part * _TOGETHER, (part + 1) * _TOGETHER)
        _drop_part(x[here], out[here], part * _TOGETHER, first, second, below)


@compiled()
def _drop_part(x, out, start, first, second, below):
    for i in range(len(x)):
        out[i] = _kept(x[i], start + i, first, second, below)


@intrinsic
def _kept(_: Any, value: Any, place: Any, first: Any, second: Any, below: Any) -> Any:
    """A value, or 0 if the 31 bits drawn for its place are less than `below`.

    The place is stirred by shifts and multiplications (C. Wellons' lowbias32), the seed's halves
    before and between them: in 32-bit operations, which are done for a vector at once. Numba would
    widen each.
    """

    def build(_: Any, builder: Any, __: Any, given: Any) -> Any:
        word = ir.IntType(32)
        bits, a, b, least = (builder.trunc(number, word) for number in given[1:])

        def stirred(bits: Any, shift: int, by: int) -> Any:
            near = builder.xor(bits, builder.lshr(bits, word(shift)))
            return builder.mul(near, word(by))

        bits = stirred(builder.xor(bits, a), 16, 0x7FEB352D)
        bits = stirred(builder.xor(bits, b), 15, 0x846CA68B)
        drawn = builder.lshr(builder.xor(bits, builder.lshr(bits, word(16))), word(1))
        zero = ir.Constant(given[0].type, 0)
        return builder.select(builder.icmp_signed(">=", drawn, least), given[0], zero)

    return value(value, types.int64, types.int64, types.int64, types.int64), build
