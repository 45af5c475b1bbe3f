"""Paired comparisons: the interval covers the true difference, the test is exact."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multilora.errors import DataError, InputError
from multilora.evaluation.samples import Sample, read_samples, write_samples
from multilora.evaluation.statistics import paired
from multilora.evaluation.statistics.intervals import t_probability, t_quantile
from multilora.evaluation.statistics.paired import compare, compare_samples, matching_samples, mcnemar


def coverage(intervals, truth):
    return np.mean([low - 1e-12 <= truth <= high + 1e-12 for low, high in intervals])


@pytest.mark.parametrize("n", [10, 20, 50, 300])
@pytest.mark.parametrize(("up", "down"), [(0.05, 0.02), (0.1, 0.1), (0.3, 0.1)])
def test_coverage_for_independent_items(n, up, down):
    """If few items flip, the mean ± t standard errors and the percentile bootstrap fall to 0.4."""
    rng = np.random.default_rng(0)
    intervals = []
    for _ in range(1000):
        first = (rng.random(n) < 0.5).astype(float)
        second = np.where(rng.random(n) < np.where(first == 0, 2 * up, 2 * down), 1 - first, first)
        comparison = compare(first, second)
        assert comparison.method == "agresti-min"
        intervals.append((comparison.low, comparison.high))
    assert 0.93 <= coverage(intervals, up - down) <= 1.0


@pytest.mark.parametrize("clusters", [10, 20, 50])
def test_coverage_for_clusters(clusters, monkeypatch):
    monkeypatch.setattr(paired, "RESAMPLES", 1000)
    rng = np.random.default_rng(0)
    intervals, as_if_independent = [], []
    for _ in range(600):
        index = np.repeat(np.arange(clusters), rng.integers(1, 10, size=clusters))
        shift = rng.uniform(-0.2, 0.4, size=clusters)[index]  # mean 0.1
        first = rng.random(len(index)) * 0.5
        second = first + shift
        comparison = compare(first, second, clusters=list(index))
        assert (comparison.method, comparison.clusters) == ("bootstrap over clusters", clusters)
        intervals.append((comparison.low, comparison.high))
        comparison = compare(first, second)
        as_if_independent.append((comparison.low, comparison.high))
    assert 0.91 <= coverage(intervals, 0.1) <= 0.98
    assert coverage(as_if_independent, 0.1) < 0.75


@pytest.mark.parametrize("clusters", [10, 20, 50])
@pytest.mark.parametrize(("up", "down", "correlation"), [(0.03, 0.01, 0.1), (0.2, 0.1, 0.3), (0.1, 0.1, 0.3)])
def test_coverage_for_answers_in_clusters(clusters, up, down, correlation):
    rng = np.random.default_rng(0)
    intervals = []
    for _ in range(800):
        index = np.repeat(np.arange(clusters), rng.integers(1, 10, size=clusters))
        flips, scale = up + down, 1 / correlation - 1
        flipped = rng.random(len(index)) < rng.beta(flips * scale, (1 - flips) * scale, size=clusters)[index]
        first = (rng.random(len(index)) < np.where(flipped, down / flips, 0.5)).astype(float)
        comparison = compare(first, np.where(flipped, 1 - first, first), list(index))
        assert comparison.method == "agresti-min"
        intervals.append((comparison.low, comparison.high))
    assert 0.92 <= coverage(intervals, up - down) <= 1.0


def test_p_values_are_uniform_if_the_models_are_equal():
    """Exact tests reject at most as often as they say; the t-test of clusters about as often."""
    rng = np.random.default_rng(0)
    exact, clustered = [], []
    for _ in range(500):
        first, second = (rng.random((2, 60)) < 0.5).astype(float)
        exact.append(compare(first, second).p_value)
        index = np.repeat(np.arange(20), 3)
        first, second = rng.random((2, 20))[:, index] * 0.9
        clustered.append(compare(first, second, list(index)).p_value)
    assert np.mean(np.array(exact) < 0.05) <= 0.06
    assert 0.02 <= np.mean(np.array(clustered) < 0.05) <= 0.08


@pytest.mark.parametrize(
    ("up", "down", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 32),
        (6, 0, 2 / 64),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (3, 4, 1.0),
        (9, 1, 2 * 11 / 1024),
    ],
)
def test_mcnemar_by_hand(up, down, p):
    assert mcnemar(up, down) == mcnemar(down, up) == pytest.approx(p)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_equals_the_binomial_sum(up, down):
    n = up + down
    expected = min(1.0, 2 * sum(math.comb(n, k) for k in range(min(up, down) + 1)) / 2**n)
    assert mcnemar(up, down) == pytest.approx(expected)


def test_mcnemar_of_many_items():
    assert mcnemar(7000, 7000) == 1.0
    assert mcnemar(7200, 6800) == pytest.approx(7.4e-4, rel=0.02)  # normal with continuity: z = 399 / sqrt(14000)
    assert 0 <= mcnemar(14000, 0) < 1e-300


def test_students_t_is_the_inverse_of_its_quantile():
    for freedom in (1, 2, 3, 10, 999, 1000, 1001, 10**6):
        assert t_probability(t_quantile(freedom), freedom) == pytest.approx(0.95, abs=2e-6)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=12))
def test_exchanging_the_models_changes_the_sign(pairs):
    first, second = ([pair[k] for pair in pairs] for k in (0, 1))
    forward, backward = compare(first, second), compare(second, first)
    assert forward.difference == pytest.approx(-backward.difference)
    assert (forward.low, forward.high) == pytest.approx((-backward.high, -backward.low), abs=0.05)
    assert forward.p_value == pytest.approx(backward.p_value)
    assert (forward.flipped_up, forward.flipped_down) == (backward.flipped_down, backward.flipped_up)
    assert forward.low <= forward.difference <= forward.high


def test_paired_standard_error_is_that_of_the_differences():
    """Miller (2024): Var(a) + Var(b) - 2 Cov(a, b)."""
    rng = np.random.default_rng(0)
    first = rng.random(40)
    second = 0.7 * first + 0.3 * rng.random(40)
    covariance = np.cov(first, second, ddof=1)
    expected = math.sqrt((covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]) / 40)
    assert compare(first, second).stderr == pytest.approx(expected)


def test_few_units():
    one = compare([0.5], [1.0])
    assert (one.low, one.high, one.stderr, one.p_value) == (-1.0, 1.0, None, 1.0)
    cluster = compare([0.0, 0.0], [1.0, 1.0], ["a", "a"])
    assert (cluster.low, cluster.high, cluster.p_value, cluster.clusters) == (-1.0, 1.0, 1.0, 1)
    assert compare([0.1, 0.1, 0.1], [0.2, 0.2, 0.2]).p_value == 0.25


def test_no_flip_leaves_room_for_some():
    for clusters in (None, [i // 4 for i in range(40)]):
        comparison = compare([0.0, 1.0] * 20, [0.0, 1.0] * 20, clusters)
        assert comparison.low == pytest.approx(-comparison.high)
        assert 0.03 < comparison.high < 0.3
    assert compare([0.5] * 40, [0.5] * 40).high > 0.03


def test_the_seed_decides():
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 30))
    assert compare(first, second) == compare(first, second)
    assert compare(first, second, seed=1).low != compare(first, second).low


@pytest.mark.parametrize(("first", "second", "clusters"), [([], [], None), ([1.0], [], None), ([1.0], [0.0], [])])
def test_scores_of_the_same_items(first, second, clusters):
    with pytest.raises(InputError, match=r"scores.*; pass one score of each model per item"):
        compare(first, second, clusters)


def sample(task, index, prompt, score, **options):
    return Sample(task=task, index=index, prompt=prompt, score=score, **options)


def test_samples_are_matched_by_task_and_prompt(tmp_path):
    first = [sample("a", i, f"p{i}", float(i % 2)) for i in range(8)] + [sample("b", 0, "p0", 0.5)]
    second = [sample("a", 99 - i, f"p{i}", 1.0) for i in reversed(range(2, 10))] + [sample("c", 0, "p0", 1.0)]
    write_samples(tmp_path / "first.parquet", first)
    write_samples(tmp_path / "second.parquet", second)
    compared = compare_samples(tmp_path / "first.parquet", tmp_path / "second.parquet")
    assert list(compared.tasks) == ["a"]
    assert (compared.tasks["a"].n, compared.tasks["a"].difference) == (6, 0.5)
    assert (compared.tasks["a"].flipped_up, compared.tasks["a"].flipped_down) == (3, 0)
    assert compared.only_first == {"a": [0, 1], "b": [0]}
    assert compared.only_second == {"a": [90, 91], "c": [0]}
    write_samples(tmp_path / "second.parquet", [sample("a", 0, "other", 1.0)])
    with pytest.raises(DataError, match=r"none of its 1 samples has the task and prompt of one of the 8"):
        compare_samples(tmp_path / "first.parquet", tmp_path / "second.parquet", ["a"])


def test_a_file_equals_itself(tmp_path):
    rows = [sample("a", i, "same prompt", float(i % 3 == 0), cluster=f"{i % 4}") for i in range(20)]
    rows += [sample("b", i, f"{i}", i / 10) for i in range(10)]
    write_samples(tmp_path / "x.parquet", rows)
    compared = compare_samples(tmp_path / "x.parquet", tmp_path / "x.parquet")
    for comparison in compared.tasks.values():
        assert comparison.difference == 0
        assert comparison.low <= 0 <= comparison.high
        assert (comparison.p_value, comparison.flipped_up, comparison.flipped_down) == (1.0, 0, 0)
    assert compared.tasks["a"].clusters == 4
    assert compared.only_first == compared.only_second == {}
    # Repeated prompts are matched in their order.
    assert all(a == b for a, b in matching_samples(rows, read_samples(tmp_path / "x.parquet")))


def test_choices_without_a_score_are_compared_by_accuracy(tmp_path):
    options = {"choices": ["yes", "no"], "references": ["yes"]}
    first = [sample("m", i, str(i), None, prediction="no", **options) for i in range(10)]
    second = [replace(row, prediction="yes" if row.index < 4 else "no") for row in first]
    text = sample("bleu", 0, "p", None, prediction="a")
    write_samples(tmp_path / "first.parquet", [*first, text])
    write_samples(tmp_path / "second.parquet", [*second, text])
    compared = compare_samples(tmp_path / "first.parquet", tmp_path / "second.parquet")
    assert compared.tasks["m"].difference == pytest.approx(0.4)
    assert compared.tasks["m"].p_value == pytest.approx(2 / 16)
    assert compared.unscored == ["bleu"]


def test_fewer_errors_are_better(tmp_path):
    """Of an error rate, the difference is negative, and the items whose error vanished count as better."""
    first = [sample("wrong", i, str(i), 1.0, higher_is_better=False) for i in range(10)]
    second = [replace(row, score=0.0 if row.index < 4 else 1.0) for row in first]
    write_samples(tmp_path / "first.parquet", first)
    write_samples(tmp_path / "second.parquet", second)
    comparison = compare_samples(tmp_path / "first.parquet", tmp_path / "second.parquet").tasks["wrong"]
    assert comparison.difference == pytest.approx(-0.4)
    assert (comparison.flipped_up, comparison.flipped_down, comparison.higher_is_better) == (4, 0, False)
