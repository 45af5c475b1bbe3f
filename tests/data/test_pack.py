"""Packed rows are full, contain every segment once, and keep the proportions of the stream."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multilora.data import pack as packing
from multilora.data.pack import best_fit, pack

lengths = st.lists(st.integers(1, 64), min_size=1, max_size=200)


def slow_best_fit(sizes, capacity):
    """Reference: check every row for every segment."""
    rows, space = [0] * len(sizes), []
    for segment in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        fits = [row for row, left in enumerate(space) if left >= sizes[segment]]
        if not fits:
            space.append(capacity)
            fits = [len(space) - 1]
        tightest = min(space[row] for row in fits)
        row = max(row for row in fits if space[row] == tightest)
        rows[segment] = row
        space[row] -= sizes[segment]
    return rows, space


@settings(max_examples=80)
@given(sizes=lengths)
def test_best_fit_matches_the_slow_reference(sizes):
    rows = best_fit(np.array(sizes), 64)
    used = np.bincount(rows, weights=sizes)
    assert used.max() <= 64
    assert (used > 0).all()
    _, space = slow_best_fit(sizes, 64)
    assert sorted(used.tolist()) == sorted(64.0 - np.array(space))


@settings(max_examples=80, deadline=None)
@given(sizes=lengths, seed=st.integers(0, 3), num_rows=st.integers(1, 60))
def test_every_segment_is_packed_once_into_exactly_num_rows(sizes, seed, num_rows):
    array = np.array(sizes)
    rows = pack(array, 64, seed)
    assert (rows >= 0).all()
    assert sorted(set(rows.tolist())) == list(range(rows.max() + 1))
    assert np.bincount(rows, weights=sizes).max() <= 64
    if num_rows > rows.max() + 1:
        with pytest.raises(ValueError, match=rf"rows, expected {num_rows}; pass a longer stream"):
            pack(array, 64, seed, num_rows)
        return
    first_rows = pack(array, 64, seed, num_rows)
    kept = first_rows >= 0
    assert sorted(set(first_rows[kept].tolist())) == list(range(num_rows))
    assert np.bincount(first_rows[kept], weights=array[kept]).max() <= 64
    assert kept[: kept.sum()].all()  # from the start of the stream, none skipped


def test_rows_are_nearly_full_and_long_ones_do_not_come_first(monkeypatch):
    monkeypatch.setattr(packing, "WINDOW", 512)
    generator = np.random.default_rng(0)
    sizes = np.clip(generator.lognormal(4.5, 0.9, 6000).astype(np.int64), 4, 1024)
    rows = pack(sizes, 1024, 0)
    used = np.bincount(rows, weights=sizes)
    assert used.mean() / 1024 > 0.97
    segments = np.bincount(rows)
    early, late = segments[: len(segments) // 2].mean(), segments[len(segments) // 2 :].mean()
    assert abs(early - late) < 0.1 * segments.mean()
    # Rows are in the order of the windows of the stream.
    windows = np.array([np.flatnonzero(rows == row)[0] // 512 for row in range(len(used))])
    assert (np.diff(windows) >= 0).all()
