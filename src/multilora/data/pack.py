"""Pack several examples into one row by best fit, window by window, so that rows are full and tasks stay mixed.

Within a window of the stream the longest segments are placed first, each into the fullest row that still has room for
it (best-fit decreasing). The rows of a window are then shuffled, so long examples do not come first and every window
keeps the stream's proportions.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from multilora.data.mixture import Int64, generator

# Segments per window: enough short segments to fill the gaps left by long ones.
WINDOW = 4096


def best_fit(lengths: Int64, capacity: int) -> Int64:
    """Return the row of every segment, [n]; rows are numbered from 0 without gaps.

    Segments are placed longest first (ties in input order), each into the fullest row with room.

    Args:
        lengths: tokens of each segment, 1 to `capacity`
        capacity: tokens of a row
    """
    rows = np.empty(len(lengths), dtype=np.int64)
    # open_rows[space]: rows with exactly this much room left. A binary tree over the spaces finds the smallest one that
    # is large enough.
    open_rows: list[list[int]] = [[] for _ in range(capacity + 1)]
    size = 1
    while size < capacity + 1:
        size *= 2
    tree = bytearray(2 * size)
    row_count = 0
    for segment in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[segment])
        space = _smallest_from(tree, size, length)
        if space < 0:
            row, space = row_count, capacity
            row_count += 1
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


def _set(tree: bytearray, size: int, index: int, value: int) -> None:
    node = size + index
    tree[node] = value
    while node > 1:
        node //= 2
        tree[node] = tree[2 * node] or tree[2 * node + 1]


def _smallest_from(tree: bytearray, size: int, start: int) -> int:
    """Return the first set index at or after `start`, or -1."""
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


def pack(lengths: Int64, capacity: int, seed: int, num_rows: int | None = None) -> Int64:
    """Return the row of every segment of a stream, [n]; -1 for segments beyond the last row.

    Args:
        lengths: tokens of each segment, in the stream's order
        capacity: tokens of a row
        seed: for the order of rows within a window
        num_rows: make exactly this many rows, from the start of the stream; None uses the entire stream

    Raises:
        ValueError: the stream is too short for `num_rows` rows.
    """
    rows = np.full(len(lengths), -1, dtype=np.int64)
    row_count = 0
    for window, (start, end) in enumerate(_windows(len(lengths))):
        window_rows = best_fit(lengths[start:end], capacity)
        count = int(window_rows.max()) + 1
        if num_rows is not None and row_count + count >= num_rows:
            count = num_rows - row_count
            end = start + _segments_for(lengths[start:end], capacity, count)
            window_rows = _split_into(best_fit(lengths[start:end], capacity), count)
        order = generator(seed, "rows", window).permutation(count)
        rows[start:end] = row_count + order[window_rows]
        row_count += count
        if row_count == num_rows:
            return rows
    if num_rows is not None and row_count < num_rows:
        raise ValueError(f"the stream fills {row_count} rows, expected {num_rows}; pass a longer stream")
    return rows


def _windows(count: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, WINDOW):
        yield start, min(start + WINDOW, count)


def _segments_for(lengths: Int64, capacity: int, rows: int) -> int:
    """Return how many leading segments fit into `rows` rows."""
    low, high = 0, len(lengths)  # `low` segments fit
    while low < high:
        middle = (low + high + 1) // 2
        if int(best_fit(lengths[:middle], capacity).max()) + 1 <= rows:
            low = middle
        else:
            high = middle - 1
    return low


def _split_into(rows: Int64, count: int) -> Int64:
    """Split rows until there are `count` of them."""
    row_count = int(rows.max()) + 1 if len(rows) else 0
    while row_count < count:
        fullest = int(np.argmax(np.bincount(rows)))
        rows = rows.copy()
        rows[np.flatnonzero(rows == fullest)[-1]] = row_count
        row_count += 1
    return rows
