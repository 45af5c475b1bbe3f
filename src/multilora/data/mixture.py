"""How many examples each task gives and in which order: pure functions of numbers and a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


def apportion(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers that add up to `total` in proportion to `shares`, each within one of its exact quota.

    Largest remainders; ties go to the earlier name.
    """
    weight = sum(shares.values())
    exact = {name: total * share / weight for name, share in shares.items()}
    counts = {name: int(value) for name, value in exact.items()}
    missing = total - sum(counts.values())
    by_remainder = sorted(shares, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[:missing]:
        counts[name] += 1
    return counts


def generator(seed: int, *path: str | int) -> np.random.Generator:
    """A generator that depends on the seed and on what it is for, not on what else was drawn."""
    digest = hashlib.sha256("/".join(map(str, (seed, *path))).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def draw(name: str, size: int, count: int, seed: int) -> tuple[Int64, Int64]:
    """(positions, epochs): `count` draws from a task of `size` examples, each epoch a new shuffled order.

    Every example comes once before any comes twice.
    """
    epochs = -(-count // size)
    orders = [generator(seed, "epoch", name, epoch).permutation(size) for epoch in range(epochs)]
    positions = np.concatenate(orders)[:count] if orders else np.empty(0, dtype=np.int64)
    return positions.astype(np.int64), np.arange(count, dtype=np.int64) // size


def interleave(counts: Mapping[str, int], seed: int) -> Int64:
    """The task (by its place in `counts`) of every step of the mixture.

    Draw j of a task with c draws falls at a random point of the j-th of c equal parts of the run, so every stretch of
    the run holds about the asked shares, and the order is still random.
    """
    points, tasks = [], []
    for place, (name, count) in enumerate(counts.items()):
        jitter = generator(seed, "place", name).random(count)
        points.append((np.arange(count) + jitter) / max(count, 1))
        tasks.append(np.full(count, place, dtype=np.int64))
    order = np.argsort(np.concatenate(points), kind="stable")
    return np.concatenate(tasks)[order]
