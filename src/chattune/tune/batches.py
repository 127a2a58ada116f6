"""How a step's conversations are laid out in forward passes: little padding, bounded memory.

A step's gradient is the mean over all its supervised tokens however it is cut, so the layout
decides nothing but the time.
"""

from collections.abc import Sequence

# A row shorter than this share of its group's longest starts a group of its own: below it the
# padding costs more than another forward pass.
_LEAST_FILLED = 0.7


def length_groups(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of rows, grouped by length, longest first; a group padded takes <= `budget` tokens.

    A row that is longer than the budget makes a group alone.
    """
    groups: list[list[int]] = []
    longest = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = groups and (len(groups[-1]) + 1) * longest <= budget
        if fits and lengths[i] >= _LEAST_FILLED * longest:
            groups[-1].append(i)
        else:
            groups.append([i])
            longest = lengths[i]
    return groups
