"""Loops that Numba compiles for the machine at hand: how, on how many threads, and their numbers.

Where PyTorch has no fused operation for a CPU, a plain loop over all of it reads memory once. Numba
needs no compiler on the user's machine. bf16 arrays are uint16 here, the bits of their numbers;
arithmetic is fp32, but for int8 with int16, which is int32.
"""

import functools
import hashlib
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic
from numpy.typing import NDArray

from chattune.folders import cache_folder

# Not every threading layer of Numba's may be entered twice. A forked child must not call kernels.
_BUSY = threading.Lock()


def compiled(**options: Any) -> Any:
    """Numba's decorator, with the result kept on disk where there is a place for it.

    `fastmath=True` is for sums alone, in functions that write to no array: LLVM picks at each call,
    by where arrays lie in memory, between vectors and one number at a time, and what it rearranges
    then comes out otherwise.
    """

    def compile_(function: Any) -> Any:
        place, before = _place(function.__code__.co_filename), numba.config.CACHE_DIR
        # Python's division looks for zeros, and so goes number by number.
        how = {"nogil": True, "error_model": "numpy"} | options
        if place is None:
            return numba.njit(**how)(function)
        numba.config.CACHE_DIR = place
        try:
            dispatcher = numba.njit(cache=True, **how)(function)
        finally:
            numba.config.CACHE_DIR = before
        for name in ("load_overload", "save_overload"):
            setattr(dispatcher._cache, name, _or_nothing(getattr(dispatcher._cache, name)))
        return dispatcher

    return compile_


@functools.cache
def _place(source: str) -> str | None:
    """A folder for this very code: Numba does not see when what a function calls has changed."""
    try:
        code = hashlib.sha256(Path(__file__).read_bytes() + Path(source).read_bytes())
        caches = Path(numba.config.CACHE_DIR or cache_folder() / "compiled")
        folder = caches / code.hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return str(folder)
    except (OSError, RuntimeError):  # nowhere to write, no home
        return None


def _or_nothing(access: Any) -> Any:
    """A full disk or a damaged file costs the time to compile again, no more."""

    def try_(*given: Any) -> Any:
        with suppress(Exception):  # the unpickling of a damaged file raises many kinds
            return access(*given)

    return try_


def as_array(tensor: torch.Tensor) -> NDArray[Any]:
    """The same memory as a NumPy array; bf16 as its bits."""
    tensor = tensor.contiguous()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def call(kernel: Any, *given: Any) -> None:
    """Run a kernel on as many threads as PyTorch uses."""
    threads = torch.get_num_threads()
    with _BUSY:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        # Where both use one OpenMP, Numba's first start changes PyTorch's number (numba#9387).
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        kernel(*given)


@intrinsic
def widen(_: Any, value: Any) -> Any:
    """A weight as fp32: int8, fp32, or uint16, which holds the bits of a bf16 number."""

    def build(_: Any, builder: Any, __: Any, given: Any) -> Any:
        word = ir.IntType(32)
        if value == types.uint16:
            wide = builder.shl(builder.zext(given[0], word), ir.Constant(word, 16))
            return builder.bitcast(wide, ir.FloatType())
        return builder.sitofp(given[0], ir.FloatType()) if value == types.int8 else given[0]

    return types.float32(value), build


@intrinsic
def narrow(_: Any, value: Any, like: Any) -> Any:
    """fp32 as a number of `like`'s kind: fp32 as it is, or the bits of the nearest bf16.

    Ties go to even; not for NaN.
    """

    def build(_: Any, builder: Any, __: Any, given: Any) -> Any:
        if like != types.uint16:
            return given[0]
        word, half = ir.IntType(32), ir.Constant(ir.IntType(32), 16)
        bits = builder.bitcast(given[0], word)
        odd = builder.and_(builder.lshr(bits, half), ir.Constant(word, 1))
        near = builder.add(bits, builder.add(odd, ir.Constant(word, 0x7FFF)))
        return builder.trunc(builder.lshr(near, half), ir.IntType(16))

    return like(types.float32, like), build


@intrinsic
def fma(_: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c of fp32, rounded once."""

    def build(_: Any, builder: Any, __: Any, given: Any) -> Any:
        return builder.fma(*given)

    return types.float32(types.float32, types.float32, types.float32), build


@intrinsic
def _power_of_two(_: Any, exponent: Any) -> Any:
    """2 to an int32 between -126 and 127, as fp32."""

    def build(_: Any, builder: Any, __: Any, given: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.shl(builder.add(given[0], ir.Constant(word, 127)), ir.Constant(word, 23))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(types.int32), build


@compiled()
def exp(x):
    """e to the x, to 1e-6 near zero; unlike the C library's it is computed for a vector at once."""
    x = min(max(x * np.float32(1.44269504), np.float32(-126)), np.float32(126))
    whole = np.floor(x + np.float32(0.5))
    f = (x - whole) * np.float32(0.69314718)
    series = np.float32(1 / 720)
    for n in (120, 24, 6, 2, 1, 1):
        series = fma(series, f, np.float32(1 / n))
    return series * _power_of_two(np.int32(whole))


@compiled()
def gelu_share(x):
    """What GELU (by tanh) lets through of x: 0.5 (1 + tanh u) = 1 / (1 + exp(-2 u)).

    u is sqrt(2 / pi) (x + 0.044715 x^3).
    """
    u = x * fma(x * x, np.float32(0.07135481), np.float32(1.5957691))
    return np.float32(1) / (np.float32(1) + exp(-u))


LANES = 64  # columns that products() takes at once
# fp32 or int32 numbers in a vector: with eight running sums, the registers of AVX2 hold no more.
_VECTOR = 16 if get_host_cpu_features().get("avx512f") else 8


def products(wide: int, *, rows_ahead: int = 0, columns_ahead: int = 0) -> Any:
    """Inner products of a row of weights with `wide` rows of x, as an intrinsic.

    It takes weights (m, n), which row of them, x (p, n), the first row of it, and from which column
    to which; it returns `wide` sums over the whole LANES there. fp32 and bf16 weights go with fp32
    x. int8 weights go with int16 x and are summed in int32, in which the caller sees to it that
    there is room: for that, processors have an instruction (vpmaddwd, vpdpwssd) which LLVM does not
    find in a plain loop. Weights are fetched so many rows and columns before they are needed.
    """

    @intrinsic
    def sums(_: Any, weights: Any, j: Any, x: Any, r: Any, first: Any, stop: Any) -> Any:
        if (weights.ndim, weights.layout, x.ndim, x.layout) != (2, "C", 2, "C"):
            raise TypingError("products() takes whole matrices, row after row")
        integer = weights.dtype == types.int8
        total_type = types.int32 if integer else types.float32

        def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            _, j, _, r, first, stop = given
            ours = context.make_array(weights)(context, builder, given[0])
            theirs = context.make_array(x)(context, builder, given[2])
            n = builder.extract_value(ours.shape, 1)

            def constant(value: int) -> Any:
                return ir.Constant(n.type, value)

            def row(data: Any, place: Any) -> Any:
                return builder.gep(data, [builder.mul(place, n)])

            def load(array: Any, row: Any, k: Any, lanes: int) -> Any:
                vector = ir.VectorType(context.get_data_type(array.dtype), lanes)
                place = builder.bitcast(builder.gep(row, [k]), vector.as_pointer())
                return builder.load(place, align=1)

            # Sums of integers may be made in any order, so one alone takes several registers.
            lanes = min(32, _VECTOR * (8 // wide)) if integer else _VECTOR
            number = context.get_value_type(total_type)
            zero = ir.Constant(ir.VectorType(number, lanes), [number(0)] * lanes)
            totals = [cgutils.alloca_once_value(builder, zero) for _ in range(wide)]
            last = builder.sub(stop, builder.and_(builder.sub(stop, first), constant(LANES - 1)))
            step = 2 * lanes if integer else lanes
            a_line = 64 // context.get_abi_sizeof(context.get_data_type(weights.dtype))
            w_row = row(ours.data, j)
            x_rows = [row(theirs.data, builder.add(r, constant(i))) for i in range(wide)]
            with cgutils.for_range_slice(builder, first, last, constant(LANES), n.type) as (k, _):
                rows_later = builder.mul(n, constant(rows_ahead))
                later = builder.add(builder.add(k, constant(columns_ahead)), rows_later)
                for i in range(0, LANES, a_line):
                    place = builder.add(later, constant(i))
                    _prefetch(builder, builder.gep(w_row, [place]))
                for i in range(0, LANES, step):
                    here = builder.add(k, constant(i))
                    w = _widened(builder, load(weights, w_row, here, step))
                    for x_row, total in zip(x_rows, totals, strict=True):
                        v = load(x, x_row, here, step)
                        builder.store(_products_added(builder, w, v, builder.load(total)), total)
            across = _across(builder, [builder.load(total) for total in totals])
            found = [builder.extract_element(across, ir.IntType(32)(i)) for i in range(wide)]
            return context.make_tuple(builder, signature.return_type, found)

        return types.UniTuple(total_type, wide)(weights, j, x, r, first, stop), build

    return sums


def _widened(builder: Any, weights: Any) -> Any:
    """A vector of weights in fp32, or in int16 if it is int8."""
    count = weights.type.count
    if weights.type.element == ir.IntType(8):
        return builder.sext(weights, ir.VectorType(ir.IntType(16), count))
    if weights.type.element == ir.IntType(16):
        words = builder.zext(weights, ir.VectorType(ir.IntType(32), count))
        high = builder.shl(words, ir.Constant(words.type, [ir.IntType(32)(16)] * count))
        return builder.bitcast(high, ir.VectorType(ir.FloatType(), count))
    return weights


def _products_added(builder: Any, a: Any, b: Any, total: Any) -> Any:
    """total + a b: of fp32 each number's, of int16 the sum of each pair's."""
    if a.type.element == ir.FloatType():
        return builder.fadd(builder.fmul(a, b, flags=("contract",)), total, flags=("contract",))
    word, count = ir.IntType(32), a.type.count
    words = ir.VectorType(word, count)
    each = builder.mul(builder.sext(a, words), builder.sext(b, words))
    for first in (0, 1):
        every_other = [word(i) for i in range(first, count, 2)]
        places = ir.Constant(ir.VectorType(word, count // 2), every_other)
        total = builder.add(
            total, builder.shuffle_vector(each, ir.Constant(words, ir.Undefined), places)
        )
    return total


def _across(builder: Any, vectors: list[Any]) -> Any:
    """A vector whose lane i is the sum over all lanes of vector i, of as many as it has lanes."""
    add = builder.fadd if vectors[0].type.element == ir.FloatType() else builder.add
    word, count = ir.IntType(32), vectors[0].type.count
    while count > _VECTOR:
        count //= 2
        halves = [
            ir.Constant(ir.VectorType(word, count), [word(i) for i in range(first, first + count)])
            for first in (0, count)
        ]
        vectors = [add(*(builder.shuffle_vector(v, v, half) for half in halves)) for v in vectors]
    pairs = [
        ir.Constant(ir.VectorType(word, count), [word(i) for i in range(first, 2 * count, 2)])
        for first in (0, 1)
    ]
    for _ in range(count.bit_length() - 1):
        if len(vectors) % 2:
            vectors = [*vectors, vectors[-1]]
        vectors = [
            add(*(builder.shuffle_vector(a, b, places) for places in pairs))
            for a, b in zip(vectors[::2], vectors[1::2], strict=True)
        ]
    return vectors[0]


def _prefetch(builder: Any, place: Any) -> None:
    byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [byte, word, word, word]), "llvm.prefetch.p0"
    )
    builder.call(function, [builder.bitcast(place, byte), word(0), word(3), word(1)])
