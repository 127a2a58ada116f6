"""Dot products of one row of weights with several rows of activations, in LLVM's own language.

Decoding spends most of its time here, and plain loops in Numba lack three things. For int16
numbers, processors have an instruction (vpmaddwd or vpdpwssd) that multiplies two pairs and adds
the products. LLVM does not find it for a plain loop over int8 weights and int16 activations, and
computes in fp32 instead, at half the rate. The running sums have to stay in registers, so there
must be no more of them than the processor has registers. And weights have to be prefetched.
"""

from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

# Columns that one iteration takes: 64 int8 weights fill a cache line.
COLUMNS_AT_ONCE = 64
# Numbers of 32 bits in a vector register. AVX2 has sixteen registers of eight such numbers, which
# eight running sums of sixteen numbers would fill completely.
_LANES = 16 if get_host_cpu_features().get("avx512f") else 8
_CACHE_LINE = 64  # bytes

_INT8, _INT16, _INT32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)
_FP32 = ir.FloatType()


def dot_products(count: int, *, rows_ahead: int = 0, columns_ahead: int = 0) -> Any:
    """Return a function for compiled code: one row of weights by `count` rows of activations.

    The function takes (weights (m, n), index of a row of weights, x (p, n), index of the first row
    of x, first column, end column) and returns `count` sums over the columns. The last (end -
    first) modulo COLUMNS_AT_ONCE columns are left out; the caller adds them. Weights in fp32 or
    bf16 go with x in fp32 and give fp32. Weights in int8 go with x in int16 and give int32; the
    caller makes sure that no sum leaves int32. Weights are prefetched `rows_ahead` rows and
    `columns_ahead` columns before they are needed.
    """

    @intrinsic
    def sums(typing: Any, weights: Any, j: Any, x: Any, r: Any, first: Any, end: Any) -> Any:
        if (weights.ndim, weights.layout, x.ndim, x.layout) != (2, "C", 2, "C"):
            raise TypingError("dot_products() takes two contiguous matrices")
        integer = weights.dtype == types.int8
        sum_type = types.int32 if integer else types.float32

        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _, j, _, r, first, end = arguments
            weight_array = context.make_array(weights)(context, builder, arguments[0])
            x_array = context.make_array(x)(context, builder, arguments[2])
            n = builder.extract_value(weight_array.shape, 1)

            def constant(value: int) -> Any:
                return ir.Constant(n.type, value)

            def row_pointer(data: Any, row: Any) -> Any:
                return builder.gep(data, [builder.mul(row, n)])

            def load(array: Any, row: Any, column: Any, width: int) -> Any:
                vector = ir.VectorType(context.get_data_type(array.dtype), width)
                pointer = builder.bitcast(builder.gep(row, [column]), vector.as_pointer())
                return builder.load(pointer, align=1)

            # An integer sum does not depend on its order, so a single row may use several registers
            # for it, which hides the latency of the multiplication.
            lanes = min(32, _LANES * (8 // count)) if integer else _LANES
            number = context.get_value_type(sum_type)
            zeros = ir.Constant(ir.VectorType(number, lanes), [number(0)] * lanes)
            totals = [cgutils.alloca_once_value(builder, zeros) for _ in range(count)]
            rest = builder.and_(builder.sub(end, first), constant(COLUMNS_AT_ONCE - 1))
            step = 2 * lanes if integer else lanes
            weights_a_line = _CACHE_LINE // context.get_abi_sizeof(
                context.get_data_type(weights.dtype)
            )
            weight_row = row_pointer(weight_array.data, j)
            x_rows = [row_pointer(x_array.data, builder.add(r, constant(i))) for i in range(count)]
            with cgutils.for_range_slice(
                builder, first, builder.sub(end, rest), constant(COLUMNS_AT_ONCE), n.type
            ) as (column, _):
                offset = builder.add(constant(columns_ahead), builder.mul(n, constant(rows_ahead)))
                ahead = builder.add(column, offset)
                for i in range(0, COLUMNS_AT_ONCE, weights_a_line):
                    _prefetch(builder, builder.gep(weight_row, [builder.add(ahead, constant(i))]))
                for i in range(0, COLUMNS_AT_ONCE, step):
                    position = builder.add(column, constant(i))
                    w = _widened(builder, load(weights, weight_row, position, step))
                    for x_row, total in zip(x_rows, totals, strict=True):
                        v = load(x, x_row, position, step)
                        builder.store(_multiply_add(builder, w, v, builder.load(total)), total)
            summed = _sums_of_lanes(builder, [builder.load(total) for total in totals])
            results = [builder.extract_element(summed, _INT32(i)) for i in range(count)]
            return context.make_tuple(builder, signature.return_type, results)

        return types.UniTuple(sum_type, count)(weights, j, x, r, first, end), build

    return sums


def _widened(builder: Any, weights: Any) -> Any:
    """Return a vector of weights as fp32, or as int16 where they are int8."""
    lanes = weights.type.count
    if weights.type.element == _INT8:
        return builder.sext(weights, ir.VectorType(_INT16, lanes))
    if weights.type.element == _INT16:  # the bits of bf16 numbers: the upper half of an fp32's
        bits = builder.zext(weights, ir.VectorType(_INT32, lanes))
        shifted = builder.shl(bits, ir.Constant(bits.type, [_INT32(16)] * lanes))
        return builder.bitcast(shifted, ir.VectorType(_FP32, lanes))
    return weights


def _multiply_add(builder: Any, a: Any, b: Any, total: Any) -> Any:
    """Return total + a * b: lane by lane for fp32; for int16, lane i adds products 2i and 2i + 1.

    The second form, products of sign-extended numbers whose even and odd lanes are added, is the
    one that LLVM turns into vpmaddwd or vpdpwssd.
    """
    if a.type.element == _FP32:
        return builder.fadd(builder.fmul(a, b, flags=("contract",)), total, flags=("contract",))
    lanes = a.type.count
    wide = ir.VectorType(_INT32, lanes)
    products = builder.mul(builder.sext(a, wide), builder.sext(b, wide))
    undefined = ir.Constant(wide, ir.Undefined)
    for parity in (0, 1):
        indices = _lane_indices(range(parity, lanes, 2))
        total = builder.add(total, builder.shuffle_vector(products, undefined, indices))
    return total


def _sums_of_lanes(builder: Any, vectors: list[Any]) -> Any:
    """Return a vector whose lane i is the sum of all lanes of vector i.

    Two vectors are combined by adding the even lanes of both to the odd lanes of both. This is
    repeated as a binary tree, so that eight vectors of eight lanes take 4 + 2 + 1 additions, where
    summing each by itself would take three for every vector.
    """
    add = builder.fadd if vectors[0].type.element == _FP32 else builder.add
    lanes = vectors[0].type.count
    while lanes > _LANES:  # several registers of one sum
        lanes //= 2
        halves = [_lane_indices(range(start, start + lanes)) for start in (0, lanes)]
        vectors = [add(*(builder.shuffle_vector(v, v, half) for half in halves)) for v in vectors]
    even_and_odd = [_lane_indices(range(parity, 2 * lanes, 2)) for parity in (0, 1)]
    for _ in range(lanes.bit_length() - 1):
        if len(vectors) % 2:
            vectors = [*vectors, vectors[-1]]
        vectors = [
            add(*(builder.shuffle_vector(a, b, indices) for indices in even_and_odd))
            for a, b in zip(vectors[::2], vectors[1::2], strict=True)
        ]
    return vectors[0]


def _lane_indices(lanes: range) -> Any:
    return ir.Constant(ir.VectorType(_INT32, len(lanes)), [_INT32(i) for i in lanes])


def _prefetch(builder: Any, pointer: Any) -> None:
    """Ask for the cache line at `pointer`: for reading, to be kept in every cache level."""
    byte_pointer = _INT8.as_pointer()
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(ir.VoidType(), [byte_pointer, _INT32, _INT32, _INT32]),
        "llvm.prefetch.p0",
    )
    read, keep, data = _INT32(0), _INT32(3), _INT32(1)
    builder.call(function, [builder.bitcast(pointer, byte_pointer), read, keep, data])
