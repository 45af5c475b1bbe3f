"""Differences per item are means over what the task's score and loss are means over."""

from __future__ import annotations

import pytest

from multilora.evaluation.samples import Sample
from multilora.study.items import loss_differences, task_differences


def run(nats, scores=(1.0, 0.0, 0.0)):
    """The samples of a task with answers of 2, 1 and 5 tokens."""
    samples = [
        Sample(
            task="sums", index=index, prompt=f"{index} + 1", score=score, reference_nats=loss, reference_tokens=tokens
        )
        for index, (score, loss, tokens) in enumerate(zip(scores, nats, (2, 1, 5), strict=True))
    ]
    return {(sample.task, sample.index, sample.prompt_hash): sample for sample in samples}


def test_the_mean_over_items_is_the_difference_of_the_losses_per_token():
    """Losses 8 / 8, 16 / 8 and 6 / 8, 10 / 8 nats per token: differences of -0.25 and -0.75."""
    first = [run((2.0, 1.0, 5.0)), run((4.0, 4.0, 8.0))]
    second = [run((3.0, 1.0, 2.0)), run((4.0, 1.0, 5.0))]
    found = loss_differences(first, second)["sums"]
    assert found.values.mean(axis=1).tolist() == pytest.approx([-0.25, -0.75])
    # In nats, over the mean of 8 / 3 tokens per item.
    assert found.values.tolist() == [pytest.approx([0.375, 0.0, -1.125]), pytest.approx([0.0, -1.125, -1.125])]


def test_only_items_that_all_runs_have_count():
    first, second = run((2.0, 1.0, 5.0)), run((3.0, 1.0, 2.0))
    del second[next(iter(second))]
    found = loss_differences([first], [second])["sums"]
    assert found.values.mean() == pytest.approx((1 + 2) / 6 - (1 + 5) / 6)


def test_a_task_with_an_item_of_unknown_loss_or_score_is_left_out():
    unknown = [run((2.0, None, 5.0), scores=(1.0, None, 0.0))]
    assert loss_differences(unknown, unknown) == task_differences(unknown, unknown) == {}
