"""Shares, counts and order of the mixture."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multilora.data import mixture
from multilora.data.mixture import Draws

shares = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.floats(0.01, 100), min_size=1, max_size=6)
tasks = st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=60), min_size=1, max_size=5)


def draws_of(costs, seed=0):
    return [Draws(f"task{i}", np.array(cost, dtype=np.int64), seed) for i, cost in enumerate(costs)]


@given(total=st.integers(0, 5000), shares=shares)
def test_apportioned_counts_sum_to_the_total_and_are_within_one_of_the_quota(total, shares):
    counts = mixture.apportion(total, shares)
    assert sum(counts.values()) == total
    weight = sum(shares.values())
    for name, share in shares.items():
        assert abs(counts[name] - total * share / weight) < 1 + 1e-6


def test_strategies():
    sizes = {"a": 100.0, "b": 400.0}
    assert mixture.shares_of("proportional", sizes) == {"a": 0.2, "b": 0.8}
    assert mixture.shares_of("equal", sizes) == {"a": 0.5, "b": 0.5}
    assert mixture.shares_of("weights", sizes, weights={"a": 3, "b": 1}) == {"a": 0.75, "b": 0.25}
    assert mixture.shares_of("temperature", sizes, temperature=2) == pytest.approx({"a": 1 / 3, "b": 2 / 3})
    assert mixture.shares_of("temperature", sizes, temperature=1) == pytest.approx({"a": 0.2, "b": 0.8})


@given(size=st.integers(1, 40), count=st.integers(0, 200), seed=st.integers(0, 9))
def test_every_example_comes_once_before_any_comes_twice(size, count, seed):
    examples = Draws("t", np.ones(size, dtype=np.int64), seed).first(count)
    assert len(examples) == count
    for start in range(0, count, size):
        epoch = examples[start : start + size]
        assert len(set(epoch.tolist())) == len(epoch)


def test_every_epoch_has_a_different_order():
    examples = Draws("t", np.ones(50, dtype=np.int64), 0).first(100)
    assert not np.array_equal(examples[:50], examples[50:])


@settings(max_examples=60)
@given(cost=st.lists(st.integers(1, 30), min_size=1, max_size=40), amount=st.floats(0, 5000))
def test_until_returns_the_closest_number_of_draws(cost, amount):
    source = draws_of([cost])[0]
    count = source.until(amount)
    ends = np.concatenate([[0], np.cumsum(source.cost[source.first(count + 2)])])
    assert abs(ends[count] - amount) == np.abs(ends - amount).min()


@settings(max_examples=60)
@given(costs=tasks, seed=st.integers(0, 5), total=st.integers(1, 400), data=st.data())
def test_exact_counts_match_the_shares_within_one_example(costs, seed, total, data):
    draws = draws_of(costs, seed)
    raw = data.draw(st.lists(st.floats(0.05, 1), min_size=len(costs), max_size=len(costs)))
    requested = [value / sum(raw) for value in raw]
    counts = mixture.exact_counts(draws, requested, total)
    assert sum(counts) == total
    assert min(counts) >= 0
    amounts = [source.cost[source.first(count)].sum() for source, count in zip(draws, counts, strict=True)]
    longest = max(max(cost) for cost in costs)
    for amount, share in zip(amounts, requested, strict=True):
        # Half an example for the task itself, plus its share of the error of the other tasks.
        assert abs(amount - share * sum(amounts)) <= longest * (1 + share * len(costs) / 2)


@settings(max_examples=60)
@given(costs=tasks, seed=st.integers(0, 5), epochs=st.floats(0.2, 3), data=st.data())
def test_every_stretch_of_the_stream_is_close_to_the_requested_shares(costs, seed, epochs, data):
    draws = draws_of(costs, seed)
    raw = data.draw(st.lists(st.floats(0.05, 1), min_size=len(costs), max_size=len(costs)))
    requested = [value / sum(raw) for value in raw]
    amount = epochs * sum(sum(cost) for cost in costs)
    stream = mixture.stream(draws, requested, amount)
    cost = np.array(
        [draws[t].cost[draws[t].first(int(d) + 1)[d]] for t, d in zip(stream.task, stream.draw, strict=True)], dtype=int
    )
    longest = max(max(c) for c in costs)
    for length in {len(stream), len(stream) // 2, len(stream) // 3}:
        total = cost[:length].sum()
        for task, share in enumerate(requested):
            task_cost = cost[:length][stream.task[:length] == task].sum()
            assert abs(task_cost - share * total) <= longest * (1 + share * len(costs))
    for task in range(len(costs)):  # no draw is skipped or repeated
        assert stream.draw[stream.task == task].tolist() == list(range((stream.task == task).sum()))


def test_one_proportional_epoch_has_every_example_once():
    draws = draws_of([[3, 5, 7] * 9, [2] * 40, [11, 1]])
    sizes = [float(source.cost.sum()) for source in draws]
    stream = mixture.stream(draws, [size / sum(sizes) for size in sizes], sum(sizes))
    assert [(stream.task == task).sum() for task in range(3)] == [27, 40, 2]


def test_seeds_and_names_give_different_orders():
    def order(seed):
        return mixture.in_order(draws_of([[1] * 50, [1] * 50], seed), [50, 50]).task.tolist()

    assert order(0) != order(1)
    a, b = (Draws(name, np.ones(50, dtype=np.int64), 0) for name in "ab")
    assert a.first(50).tolist() != b.first(50).tolist()


def test_the_order_is_the_same_in_another_process():
    script = (
        "import numpy as np; from multilora.data import mixture as m;"
        "d = [m.Draws(n, np.array(c), 3) for n, c in (('a', [1, 2, 3]), ('b', [4, 1]))];"
        "s = m.stream(d, [0.3, 0.7], 50); print(s.task.tolist(), s.draw.tolist(), d[0].first(7).tolist())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
