"""Shares, draws and order are pure functions with the properties a mixture needs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from multilora.data import mixture

shares = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.floats(0.01, 100), min_size=1, max_size=6)


@given(total=st.integers(0, 5000), shares=shares)
def test_apportioned_counts_add_up_and_stay_within_one(total, shares):
    counts = mixture.apportion(total, shares)
    assert sum(counts.values()) == total
    whole = sum(shares.values())
    for name, share in shares.items():
        assert abs(counts[name] - total * share / whole) < 1 + 1e-6


@given(size=st.integers(1, 40), count=st.integers(0, 200), seed=st.integers(0, 9))
def test_every_example_comes_once_before_any_comes_twice(size, count, seed):
    positions, epochs = mixture.draw("t", size, count, seed)
    assert len(positions) == count
    for epoch in range(-(-count // size)):
        mine = positions[epochs == epoch]
        assert len(set(mine.tolist())) == len(mine)
        if (epoch + 1) * size <= count:
            assert sorted(mine.tolist()) == list(range(size))


def test_every_epoch_has_its_own_order():
    positions, epochs = mixture.draw("t", 50, 100, 0)
    assert not np.array_equal(positions[epochs == 0], positions[epochs == 1])


@settings(max_examples=30)
@given(
    counts=st.dictionaries(st.text("abcd", min_size=1, max_size=2), st.integers(0, 300), min_size=1, max_size=4),
    seed=st.integers(0, 5),
)
def test_every_stretch_holds_about_the_asked_shares(counts, seed):
    order = mixture.interleave(counts, seed)
    total = sum(counts.values())
    assert len(order) == total
    for place, count in enumerate(counts.values()):
        assert (order == place).sum() == count
        # Each draw falls in its own part of the run, so a prefix is off by at most one draw per task and boundary.
        seen = np.cumsum(order == place)
        asked = np.arange(1, total + 1) * count / total if total else np.zeros(0)
        assert np.abs(seen - asked).max(initial=0) <= len(counts) + 1


def test_seeds_and_names_give_different_orders():
    counts = {"a": 50, "b": 50}
    assert not np.array_equal(mixture.interleave(counts, 0), mixture.interleave(counts, 1))
    assert not np.array_equal(mixture.draw("a", 50, 50, 0)[0], mixture.draw("b", 50, 50, 0)[0])


def test_the_order_is_the_same_in_another_process():
    script = (
        "from multilora.data import mixture;"
        "print(mixture.interleave({'a': 9, 'b': 5}, 3).tolist(), mixture.draw('a', 7, 9, 3)[0].tolist())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    here = f"{mixture.interleave({'a': 9, 'b': 5}, 3).tolist()} {mixture.draw('a', 7, 9, 3)[0].tolist()}\n"
    assert outputs == {here}
