"""Intervals over seeds and items cover the true difference about 95 % of the time, also with few seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from multilora.errors import InputError
from multilora.study.crossed import TaskDifferences, crossed_difference, holm, seed_difference

EFFECT = 0.1
TRIALS = 400


def simulated(rng, seeds, spread, *, items=60, tasks=1, clusters=None):
    """Differences of which seeds, items (or clusters) and the rest each vary with a standard deviation of `spread`."""
    by_seed, by_item, rest = spread
    count = items if clusters is None else clusters
    units = np.arange(items) % count
    shared = rng.normal(0, by_seed, seeds)
    return {
        str(task): TaskDifferences(
            EFFECT + shared[:, None] + rng.normal(0, by_item, count)[units] + rng.normal(0, rest, (seeds, items)), units
        )
        for task in range(tasks)
    }


def covers(difference):
    return difference.low <= EFFECT <= difference.high


SPREADS = {
    "items only": (0.0, 0.4, 0.4),
    "both": (0.05, 0.4, 0.4),
    "mostly seeds": (0.2, 0.4, 0.4),
    "neither": (0.0, 0.0, 0.4),
}


@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("layout", [{}, {"tasks": 4}, {"clusters": 15}], ids=str)
def test_coverage_over_seeds_and_items(seeds, spread, layout):
    rng = np.random.default_rng(seeds)
    hits = sum(covers(crossed_difference(simulated(rng, seeds, spread, **layout))) for _ in range(TRIALS))
    assert 0.925 <= hits / TRIALS <= 1.0  # the error of the estimate is 0.011
    if seeds == 5:
        assert hits / TRIALS <= 0.995  # not merely wide


def test_resampling_seeds_and_then_items_covers_less():
    """Why the interval is not the percentile bootstrap."""
    rng = np.random.default_rng(0)
    hits = {"interval": 0, "bootstrap": 0}
    for _ in range(150):
        tasks = simulated(rng, 2, SPREADS["mostly seeds"])
        values = tasks["0"].values
        means = []
        for _ in range(100):
            chosen = values[rng.integers(0, 2, 2)]
            means.append(np.mean([row[rng.integers(0, len(row), len(row))].mean() for row in chosen]))
        low, high = np.quantile(means, [0.025, 0.975])
        hits["bootstrap"] += low <= EFFECT <= high
        hits["interval"] += covers(crossed_difference(tasks))
    assert hits["bootstrap"] / 150 < 0.85
    assert hits["interval"] / 150 > 0.92


def test_the_p_value_belongs_to_the_interval():
    rng = np.random.default_rng(1)
    for _ in range(40):
        difference = crossed_difference(simulated(rng, 3, (0.03, 0.2, 0.2)))
        assert (difference.p_value < 0.05) == (not difference.low <= 0 <= difference.high)


def test_no_effect_is_found_in_5_percent():
    rng = np.random.default_rng(2)
    found = 0
    for _ in range(TRIALS):
        (task,) = simulated(rng, 3, (0.05, 0.3, 0.3)).values()
        difference = crossed_difference({"task": TaskDifferences(task.values - EFFECT, task.clusters)})
        found += not difference.low <= 0 <= difference.high
    assert found / TRIALS < 0.07


def test_seeds_with_equal_means_do_not_make_the_interval_narrower_than_that_of_the_items():
    values = np.random.default_rng(0).normal(size=(2, 50))
    values -= values.mean(axis=1, keepdims=True)
    values[1] = -values[0]  # equal means over seeds, and over items
    crossed = crossed_difference({"task": TaskDifferences(values + 0.1, np.arange(50))})
    alone = crossed_difference({"task": TaskDifferences(values[:1] + 0.1, np.arange(50))})
    assert crossed.high - crossed.low > 0.5 * (alone.high - alone.low)
    assert crossed.p_value > 0.05


def test_a_single_seed_counts_items_only():
    rng = np.random.default_rng(3)
    results = [crossed_difference(simulated(rng, 1, (0.0, 0.4, 0.4))) for _ in range(TRIALS)]
    assert {result.over for result in results} == {"items"}
    assert 0.92 <= sum(map(covers, results)) / TRIALS <= 0.98


def test_a_single_seed_without_items_has_no_interval():
    difference = seed_difference([0.3])
    assert (difference.low, difference.high, difference.p_value) == (-math.inf, math.inf, 1.0)


def test_seed_differences_are_a_paired_t_test():
    """With 2 degrees of freedom, P(|T| > t) = 1 - t / sqrt(2 + t^2)."""
    values = [0.1, 0.2, 0.6]
    stderr = np.std(values, ddof=1) / math.sqrt(3)
    difference = seed_difference(values)
    statistic = 0.3 / stderr
    assert difference.p_value == pytest.approx(1 - statistic / math.sqrt(2 + statistic**2), abs=1e-6)
    quantile = 0.95 * math.sqrt(2 / (1 - 0.95**2))
    assert (difference.low, difference.high) == pytest.approx((0.3 - quantile * stderr, 0.3 + quantile * stderr))


def test_different_seeds_are_refused():
    tasks = {str(seeds): TaskDifferences(np.zeros((seeds, 4)), np.arange(4)) for seeds in (2, 3)}
    with pytest.raises(InputError, match=r"\[2, 3\] seeds"):
        crossed_difference(tasks)


def test_holm():
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.5), "holm")
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([]) == []
