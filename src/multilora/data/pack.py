"""Several examples in one row: best fit by length, in windows, so that rows are full and the order stays mixed.

Within a window of the stream the longest segments are placed first, each into the fullest row that still has room for
it (best-fit decreasing). The rows of a window are then shuffled: long examples do not come first, and every window
keeps the stream's proportions.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from multilora.data.mixture import Int64, generator

# Segments per window: enough short ones to fill the gaps that long ones leave.
WINDOW = 4096


def best_fit(lengths: Int64, capacity: int) -> Int64:
    """The row of every segment, [n]; rows are numbered from 0 without gaps.

    Longest first, ties in the given order; each into the fullest row with room.

    Args:
        lengths: tokens of each segment, 1 to `capacity`
        capacity: tokens of a row
    """
    rows = np.empty(len(lengths), dtype=np.int64)
    # open_rows[space]: rows with exactly so much room left; a tree over the spaces finds the smallest that suffices.
    open_rows: list[list[int]] = [[] for _ in range(capacity + 1)]
    size = 1
    while size < capacity + 1:
        size *= 2
    tree = bytearray(2 * size)
    made = 0
    for segment in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[segment])
        space = _smallest_from(tree, size, length)
        if space < 0:
            row, space = made, capacity
            made += 1
        else:
            row = open_rows[space].pop()
            if not open_rows[space]:
                _set(tree, size, space, 0)
        rows[segment] = row
        left = space - length
        if left:
            open_rows[left].append(row)
            if not tree[size + left]:
                _set(tree, size, left, 1)
    return rows


def _set(tree: bytearray, size: int, place: int, value: int) -> None:
    node = size + place
    tree[node] = value
    while node > 1:
        node //= 2
        tree[node] = tree[2 * node] or tree[2 * node + 1]


def _smallest_from(tree: bytearray, size: int, start: int) -> int:
    """The first set place at or after `start`, -1 if there is none."""
    node = size + start
    if tree[node]:
        return start
    while node > 1:
        if node % 2 == 0 and tree[node + 1]:
            node += 1
            while node < size:
                node = 2 * node if tree[2 * node] else 2 * node + 1
            return node - size
        node //= 2
    return -1


def pack(lengths: Int64, capacity: int, seed: int, rows_wanted: int | None = None) -> Int64:
    """The row of every segment of a stream, [n], -1 for those beyond the last row wanted.

    Args:
        lengths: tokens of each segment, in the stream's order
        capacity: tokens of a row
        seed: of the order of rows within a window
        rows_wanted: exactly so many rows are made, from the beginning of the stream; all when None

    Raises:
        ValueError: the stream is too short for `rows_wanted`.
    """
    rows = np.full(len(lengths), -1, dtype=np.int64)
    made = 0
    for window, (start, end) in enumerate(_windows(len(lengths))):
        found = best_fit(lengths[start:end], capacity)
        count = int(found.max()) + 1
        if rows_wanted is not None and made + count >= rows_wanted:
            left = rows_wanted - made
            end = start + _segments_for(lengths[start:end], capacity, left)
            found = _exactly(best_fit(lengths[start:end], capacity), left)
            count = left
        order = generator(seed, "rows", window).permutation(count)
        rows[start:end] = made + order[found]
        made += count
        if made == rows_wanted:
            return rows
    if rows_wanted is not None and made < rows_wanted:
        raise ValueError(f"the stream fills {made} rows, {rows_wanted} were wanted")
    return rows


def _windows(count: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, WINDOW):
        yield start, min(start + WINDOW, count)


def _segments_for(lengths: Int64, capacity: int, rows: int) -> int:
    """The largest number of leading segments that fit into `rows` rows."""
    low, high = 0, len(lengths)  # `low` segments fit
    while low < high:
        middle = (low + high + 1) // 2
        if int(best_fit(lengths[:middle], capacity).max()) + 1 <= rows:
            low = middle
        else:
            high = middle - 1
    return low


def _exactly(found: Int64, rows: int) -> Int64:
    """The same rows, some split until there are `rows` of them."""
    made = int(found.max()) + 1 if len(found) else 0
    while made < rows:
        fullest = int(np.argmax(np.bincount(found)))
        found = found.copy()
        found[np.flatnonzero(found == fullest)[-1]] = made
        made += 1
    return found
