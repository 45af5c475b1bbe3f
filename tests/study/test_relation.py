"""Forgetting against intruder dimensions: rank correlations, also at equal task loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multilora.study.relation import forgetting_by_intruders, rank_correlation
from multilora.study.tables import markdown, relation_table

STAGES = {"validation": "trial", "eval": "final"}
few_values = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=12)  # with ties


@settings(deadline=None, max_examples=50)
@given(few_values)
def test_it_is_spearmans_correlation(pairs):
    stats = pytest.importorskip("scipy.stats")
    first, second = zip(*pairs, strict=True)
    correlation = rank_correlation(first, second).value
    if min(len(set(first)), len(set(second))) < 2:
        assert correlation is None
    else:
        assert correlation == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-9)


def test_ranks_do_not_depend_on_the_scale():
    rng = np.random.default_rng(0)
    x, y, z = rng.normal(size=(3, 15))
    expected = rank_correlation(x, y, z)
    assert rank_correlation(np.exp(3 * x), y**3, np.exp(z)) == expected
    assert rank_correlation(y, x, z).value == pytest.approx(expected.value)


def test_one_variable_held_equal_is_the_partial_correlation():
    """(r_xy - r_xz r_yz) / sqrt((1 - r_xz²) (1 - r_yz²)), the partial correlation of textbooks."""
    rng = np.random.default_rng(1)
    x, y, z = rng.normal(size=(3, 20))
    x, y = x + z, y + 2 * z
    xy, xz, yz = (rank_correlation(*pair).value for pair in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert rank_correlation(x, y, z).value == pytest.approx(expected)


def test_the_interval_covers_the_truth():
    """Two variables that depend on a third one only: their partial correlation is 0, their correlation is not."""
    rng = np.random.default_rng(2)
    covered = apparent = 0
    for _ in range(400):
        z = rng.normal(size=16)
        x, y = z + rng.normal(size=(2, 16))
        correlation = rank_correlation(x, y, z)
        covered += correlation.low <= 0 <= correlation.high
        apparent += rank_correlation(x, y).low > 0
    assert 0.92 <= covered / 400 <= 0.98
    assert apparent / 400 > 0.3


def test_what_is_not_defined():
    assert rank_correlation([1, 2, 3, 4, 5], [2, 2, 2, 2, 2]).value is None
    assert rank_correlation([1, 2, 3, 4, 5], [5, 4, 3, 1, 2], [10, 20, 30, 40, 50]).value is None
    assert rank_correlation([1, 2], [2, 1]).value is None
    perfect = rank_correlation([1, 2, 3, 4, 5], [1, 4, 9, 16, 25])
    assert perfect.value == pytest.approx(1.0)
    assert (perfect.low, perfect.high) == (None, None)
    assert rank_correlation([1, 2, 3], [1, 3, 2]).low is None


def runs_of(forgetting, intruders, losses, splits=None):
    splits = splits or ["eval"] * len(losses)
    return [
        {"stage": STAGES[split], "split": split, "forgetting": text, "intruders": count, "macro_loss": loss}
        for text, count, loss, split in zip(forgetting, intruders, losses, splits, strict=True)
    ]


def test_a_relation_through_task_loss_alone_is_gone_at_equal_task_loss():
    rng = np.random.default_rng(3)
    loss = rng.uniform(0.5, 2.0, 40)
    forgetting, intruders = 3 - loss + 0.1 * rng.normal(size=40), 4 - loss + 0.1 * rng.normal(size=40)
    relation = forgetting_by_intruders(runs_of(forgetting, intruders, loss))
    assert relation["runs"] == 40
    assert relation["spearman"]["low"] > 0.8
    assert relation["at_equal_loss"]["low"] < 0 < relation["at_equal_loss"]["high"]


def test_the_split_on_which_the_loss_is_measured_does_not_matter():
    """Trials have their loss on another split, on which all losses may be higher."""
    rng = np.random.default_rng(4)
    loss, splits = rng.uniform(0.5, 2.0, 40), ["validation", "eval"] * 20
    forgetting, intruders = 3 - loss + 0.05 * rng.normal(size=40), 4 - loss + 0.05 * rng.normal(size=40)
    shifted = loss + np.where(np.array(splits) == "validation", 5.0, 0.0)
    relation = forgetting_by_intruders(runs_of(forgetting, intruders, shifted, splits))
    assert relation == forgetting_by_intruders(runs_of(forgetting, intruders, loss, splits))
    assert relation["at_equal_loss"]["low"] < 0 < relation["at_equal_loss"]["high"]


def test_groups_are_compared_within():
    """Two groups with opposite means of the two variables, which rise together in both."""
    first, second = [1, 2, 3, 4, 11, 12, 13, 14], [11, 12, 14, 13, 1, 2, 3, 4]
    assert rank_correlation(first, second).value < -0.5
    assert rank_correlation(first, second, groups=[0] * 4 + [1] * 4).value > 0.8


def test_other_runs_do_not_count():
    runs = runs_of([1, 2, 3, 4, 5, 6], [1, 3, 2, 4, 6, 5], [3, 1, 2, 5, 4, 6])
    more = [
        {**runs[0], "stage": "single"},
        {**runs[0], "intruders": None},
        {"stage": "final", "split": "eval", "error": "diverged"},
    ]
    assert forgetting_by_intruders([*runs, *more]) == forgetting_by_intruders(runs)
    assert forgetting_by_intruders(more) is None


def test_the_table_has_the_numbers_and_says_what_is_not_defined():
    relation = forgetting_by_intruders(runs_of([1, 2, 3, 4, 5, 6], [1, 3, 2, 4, 6, 5], [3, 1, 2, 5, 4, 6]))
    _, rows = relation_table({"forgetting_by_intruders": relation})
    expected = [text_of(relation[name]) for name in ("spearman", "at_equal_loss")]
    assert [row[1:] for row in rows] == [["6", text] for text in expected]
    constant = forgetting_by_intruders(runs_of([1, 2, 3, 4, 5], [0, 0, 0, 0, 0], [3, 1, 2, 5, 4]))
    assert {row[2] for row in relation_table({"forgetting_by_intruders": constant})[1]} == {"not defined"}


def text_of(item):
    return f"{item['value']:+.2f} ({item['low']:+.2f} to {item['high']:+.2f})"


def test_without_the_measures_the_summary_says_nothing_of_it():
    results = {
        "reference": "m", "tasks": {}, "base": None, "methods": {}, "single_task": None, "runs": [], "differences": [],
        "notes": [], "other_cells": [], "forgetting_by_intruders": None,
    }  # fmt: skip
    assert "intruder" not in markdown(results)
