"""The endless sequence of draws of a task."""

from __future__ import annotations

import numpy as np
import pytest

import multilora
from multilora.data.mixture import Draws, generator


def test_requesting_more_draws_rarely_copies_the_earlier_ones():
    draws = Draws("t", np.ones(10, dtype=np.int64), seed=0)
    buffers = set()
    for count in range(0, 30_000, 7):
        draws.first(count)
        buffers.add(draws._order.__array_interface__["data"][0])
    assert len(buffers) < 20
    epochs = [generator(0, "epoch", "t", epoch).permutation(10) for epoch in range(3_000)]
    assert (draws.first(30_000) == np.concatenate(epochs)).all()


@pytest.mark.parametrize("total", ["mixture.total_tokens=1", "mixture.total_examples=1", "mixture.total_tokens=200"])
@pytest.mark.parametrize("packing", ["true", "false"])
@pytest.mark.parametrize("unit", ["examples", "tokens", "trained_tokens"])
@pytest.mark.parametrize("homogeneous", ["true", "false"])
def test_a_total_below_one_step_is_rounded_up_to_one_step(total, packing, unit, homogeneous, recipe):
    del recipe["training"]["max_steps"]
    options = [total, f"data.packing={packing}", f"mixture.unit={unit}", f"mixture.homogeneous_batches={homogeneous}"]
    plan = multilora.plan(recipe, options)
    assert plan.rows == plan.steps * plan.rows_per_step
    assert plan.steps >= 1
    if total.endswith("=1"):
        assert plan.steps == 1
