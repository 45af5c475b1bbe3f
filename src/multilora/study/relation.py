"""Whether runs with more intruder dimensions forget more, as Shuttleworth et al. (arXiv 2410.21228) report.

The measure is Spearman's rank correlation over the runs of a study. Runs also differ in how well they have learned the
tasks, which may change both, so it is computed at equal task loss too, as a partial correlation:

    r(x, y | z) = corr(e(x), e(y)),    e(v) = rank(v) - the least-squares fit of rank(v) on 1 and rank(z)

Without z, this is Spearman's correlation. Trials and final runs have their task loss on different splits, so at equal
task loss ranks and fits are those among the runs of one split, and the correlation is over all of them. The 95 %
interval is Fisher's, with the variance of Bonett and Wright (2000, "Sample size requirements for estimating Pearson,
Kendall and Spearman correlations") for n runs and p parameters that are fitted:

    tanh(atanh(r) ± 1.96 sqrt((1 + r² / 2) / (n - 2 - p)))

It holds for independent runs. Those of one method, or with one setting, are alike, so it is too narrow for a study.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from multilora.evaluation.statistics.intervals import Floats, indices_of, normal_quantile


@dataclass(frozen=True)
class RankCorrelation:
    """A rank correlation; None for what is not defined.

    value: None if a variable is constant or determined by the one that is held equal, or there are too few runs
    low, high: bounds of the 95 % interval; None for a perfect correlation, which says nothing about its spread, and
        for too few runs
    """

    value: float | None
    low: float | None = None
    high: float | None = None


def rank_correlation(
    first: Sequence[float],
    second: Sequence[float],
    equal: Sequence[float] | None = None,
    groups: Sequence[Hashable] | None = None,
) -> RankCorrelation:
    """Compute Spearman's correlation of two variables, or their partial correlation at equal values of a third.

    Args:
        first, second: one value per run
        equal: the variable that is held equal, one value per run
        groups: only runs of one group are compared; by default all are in one
    """
    values = np.asarray([first, second, *([] if equal is None else [equal])], dtype=np.float64)  # [variables, runs]
    labels = indices_of([0] * len(first) if groups is None else groups)
    errors, fitted = np.zeros((2, len(first))), 0
    for group in range(int(labels.max()) + 1):
        members = labels == group
        ranks = np.stack([_ranks(row[members]) for row in values], axis=1)  # [runs, variables]
        known = np.column_stack([np.ones(len(ranks)), ranks[:, 2:]])
        fit, _, rank, _ = np.linalg.lstsq(known, ranks[:, :2], rcond=None)
        errors[:, members] = (ranks[:, :2] - known @ fit).T
        fitted += int(rank)
    norms = np.linalg.norm(errors, axis=1)
    freedom = len(first) - 2 - fitted
    if freedom < 0 or norms.min() < 1e-9:  # rounding, where a variable is constant
        return RankCorrelation(None)
    value = float(np.clip(errors[0] @ errors[1] / norms.prod(), -1.0, 1.0))
    if freedom < 1 or abs(value) > 1 - 1e-9:
        return RankCorrelation(value)
    margin = normal_quantile() * math.sqrt((1 + value**2 / 2) / freedom)
    return RankCorrelation(value, math.tanh(math.atanh(value) - margin), math.tanh(math.atanh(value) + margin))


def _ranks(values: Floats) -> Floats:
    """Ranks between 0 and 1; equal values have the mean of their ranks."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (counts.cumsum() - counts / 2)[index] / len(values)
    return ranks


def comparable_runs(runs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The trials and final runs whose forgetting and intruder dimensions were measured."""
    measured = [run for run in runs if run.get("forgetting") is not None and run.get("intruders") is not None]
    return [run for run in measured if run["stage"] in ("trial", "final")]


def forgetting_by_intruders(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The relation of forgetting and intruder dimensions as JSON-compatible values; None if they were not measured.

    Args:
        runs: of the results of a study
    """
    runs = comparable_runs(runs)
    if not runs:
        return None
    forgetting, intruders = ([run[name] for run in runs] for name in ("forgetting", "intruders"))
    losses, splits = ([run[name] for run in runs] for name in ("macro_loss", "split"))
    return {
        "runs": len(runs),
        "spearman": asdict(rank_correlation(forgetting, intruders)),
        "at_equal_loss": asdict(rank_correlation(forgetting, intruders, losses, splits)),
    }
