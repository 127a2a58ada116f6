"""Compiled passes over a row of logits: exponentials of all, and the highest few."""

import numpy as np

from chattune.kernels.elementwise import exp
from chattune.kernels.jit import compiled

_BLOCK = 64  # logits that are compared together, as vectors
_SMALLEST_EXPONENT = np.float32(-87)  # e to less than this is no normal fp32 number


@compiled()
def exponentials(logits, largest, inverse_temperature, out):
    """Write e to ((logits - largest) / temperature) to `out`; 0 where fp32 cannot hold it."""
    for i in range(len(logits)):
        x = (logits[i] - largest) * inverse_temperature
        value = exp(x)
        out[i] = value if x > _SMALLEST_EXPONENT else np.float32(0)


@compiled()
def highest(logits, scores, ids):
    """Write the highest logits to `scores` and their indices to `ids`, highest first.

    As many are taken as `scores` has places; of equal logits the first comes first. Numbers are
    inserted into the sorted list one by one, and a block in which none exceeds the lowest of the
    list, as are most after the first few, is passed over with one vector comparison.
    """
    count, capacity = 0, len(scores)
    for start in range(0, len(logits), _BLOCK):
        end = min(start + _BLOCK, len(logits))
        if count == capacity:
            lowest, higher = scores[capacity - 1], np.int32(0)
            for i in range(start, end):
                higher += np.int32(logits[i] > lowest)
            if higher == 0:
                continue
        for i in range(start, end):
            value = logits[i]
            if count == capacity and not value > scores[capacity - 1]:
                continue
            place = min(count, capacity - 1)
            count = min(count + 1, capacity)
            while place > 0 and scores[place - 1] < value:
                scores[place], ids[place] = scores[place - 1], ids[place - 1]
                place -= 1
            scores[place], ids[place] = value, i
