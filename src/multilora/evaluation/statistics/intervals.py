"""Standard errors and 95 % confidence intervals of values in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

LEVEL = 0.95


def normal_quantile() -> float:
    """The z for which a standard normal variable is in [-z, z] with probability `LEVEL`: 1.96."""
    return NormalDist().inv_cdf((1 + LEVEL) / 2)


@lru_cache(maxsize=1024)
def t_quantile(freedom: int) -> float:
    """The t for which Student's t with `freedom` degrees of freedom is in [-t, t] with probability `LEVEL`."""
    if freedom > 1000:  # Abramowitz and Stegun 26.7.5; the error is below 1e-9
        z = normal_quantile()
        return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_probability(middle, freedom) < LEVEL else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def t_probability(value: float, freedom: int) -> float:
    """The probability that Student's t with `freedom` degrees of freedom is in [-value, value]."""
    if freedom > 1000:  # Abramowitz and Stegun 26.7.8; the error is below 1e-6
        normal = value * (1 - 1 / (4 * freedom)) / math.sqrt(1 + value**2 / (2 * freedom))
        return 2 * NormalDist().cdf(normal) - 1
    return _t_probability(math.atan(value / math.sqrt(freedom)), freedom)


def _t_probability(angle: float, freedom: int) -> float:
    """P(|T| <= sqrt(freedom) tan(angle)), Abramowitz and Stegun 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    return (angle + sine * total) * 2 / math.pi if odd else sine * total


def score_interval(value: float, stderr: float | None, units: int, quantile: float) -> tuple[float, float]:
    """Compute Wilson's interval with the effective number of independent items, value (1 - value) / stderr².

    It is inside [0, 1], and wider on the side of the middle. For independent items of 0 or 1 the effective number is n,
    and this is Wilson's interval (Wilson 1927). For clusters and other metrics it is that of Dean and Pagano (2015,
    "Evaluating confidence interval methods for binomial proportions in clustered surveys"). Without an estimate of the
    variance (value 0 or 1, or a standard error of 0), each unit counts as one item.

    Args:
        value: in [0, 1]
        stderr: standard error of the value; None if it is not known
        units: number of independent units: items or clusters
        quantile: of the normal or Student's t distribution
    """
    variance = value * (1 - value)
    known = stderr is not None and stderr > 1e-9 and variance > 0  # less is rounding
    effective = variance / stderr**2 if known and stderr is not None else units
    share = quantile**2 / effective
    center = (value + share / 2) / (1 + share)
    half = quantile / (1 + share) * math.sqrt((variance + share / 4) / effective)
    # Rounding must not exclude the value itself.
    return max(0.0, min(center - half, value)), min(1.0, max(center + half, value))


def mean_stderr(values: Sequence[float] | Floats) -> float | None:
    """Compute the standard error of the mean of n values, s / sqrt(n); None for a single value.

    For values of 0 or 1 with mean p, this is sqrt(p (1 - p) / (n - 1)).
    """
    n = len(values)
    return float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None


def clustered_stderr(values: Sequence[float] | Floats, clusters: Indices) -> float | None:
    """Compute the cluster-robust standard error of a mean; None for a single cluster.

    sqrt(G / (G - 1) * sum over the G clusters of (sum of the cluster's residuals)²) / n. Miller (2024, arXiv
    2411.00640) has no factor, and divides the squares of single residuals by n (n - 1) instead of n². With the usual
    factor G / (G - 1) (Cameron and Miller 2015), clusters of one item each have s / sqrt(n).

    Args:
        values: one per item
        clusters: index of each item's cluster, from 0 to G - 1
    """
    numbers = np.asarray(values, dtype=np.float64)
    count = int(clusters.max()) + 1
    if count < 2:
        return None
    sums = np.bincount(clusters, numbers - numbers.mean(), count)
    return math.sqrt(count / (count - 1) * float(sums @ sums)) / len(numbers)


def indices_of(names: Sequence[Hashable]) -> Indices:
    """Number the names from 0 in order of appearance; returns the number of each item's name."""
    numbers: dict[Hashable, int] = {}
    return np.asarray([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)
