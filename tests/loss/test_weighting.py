"""Loss weightings, which do not depend on how a step is split into batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import multilora
from multilora.errors import InputError, RecipeError
from multilora.loss.token_losses import token_losses
from multilora.loss.weighting import check, examples_of, totals, weighted_loss

WEIGHTINGS = ["token", "example", "task"]


def make_batch(packed):
    labels = torch.tensor([[-100, -100, 5, 6, -100, 7], [-100, 5, -100, -100, -100, -100]])
    tasks = torch.tensor([[0, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0]])
    batch = {"labels": labels, "task_ids": tasks}
    if packed:
        batch["position_ids"] = torch.tensor([[0, 1, 2, 3, 0, 1], [0, 1, 0, 1, 2, 3]])
    return batch


LOSSES = torch.tensor([1.0, 3.0, 8.0, 4.0])


@pytest.mark.parametrize(
    ("weighting", "packed", "expected"),
    [
        ("token", True, 16 / 4),
        ("example", True, (2 + 8 + 4) / 3),
        ("example", False, (4 + 4) / 2),
        ("task", True, (2 + 6) / 2),
        ("task", False, (2 + 6) / 2),
    ],
)
def test_weighted_loss_of_a_known_batch(weighting, packed, expected):
    batch = make_batch(packed)
    total = totals(weighting, batch, num_tasks=3)
    assert weighted_loss(weighting, LOSSES, batch, total).item() == pytest.approx(expected)


def test_example_index_of_every_token():
    assert examples_of(make_batch(True)).tolist() == [[0, 0, 0, 0, 1, 1], [2, 2, 3, 3, 3, 3]]
    assert examples_of(make_batch(False)).tolist() == [[0] * 6, [1] * 6]


def test_unknown_weightings_raise(recipe):
    with pytest.raises(InputError, match=r"'tokens'; expected one of token, example, task"):
        check("tokens")
    with pytest.raises(RecipeError, match=r"loss.weighting"):
        multilora.plan(recipe, ["loss.weighting=tokens"])


def trained(recipe, path, *overrides):
    run = multilora.train(recipe, [f"output_dir={path}", *overrides])
    return run, load_file(run.weights / "adapter_model.safetensors")


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_accumulation_equals_one_large_batch(recipe, tmp_path, weighting, packing):
    options = [f"loss.weighting={weighting}", f"data.packing={packing}", "training.max_steps=3"]
    run, large = trained(recipe, tmp_path / "large", *options)
    accumulated_run, accumulated = trained(
        recipe,
        tmp_path / "accumulated",
        *options,
        "training.per_device_train_batch_size=1",
        "training.gradient_accumulation_steps=4",
    )
    for key, value in large.items():
        torch.testing.assert_close(accumulated[key], value, rtol=1e-3, atol=1e-5)
    for expected, actual in zip(run.metrics, accumulated_run.metrics, strict=True):
        for key in expected.keys() & {"loss", "loss/even", "loss/echo"}:
            assert actual[key] == pytest.approx(expected[key], rel=1e-4)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_first_logged_loss_is_the_weighted_mean(recipe, weighting, packing):
    """The expected value is computed from the plan, one example at a time."""
    overrides = [f"loss.weighting={weighting}", f"data.packing={packing}", "training.max_steps=1"]
    run = multilora.train(recipe, [*overrides, "training.gradient_accumulation_steps=2"])
    plan = multilora.plan(recipe, [*overrides, "training.gradient_accumulation_steps=2", f"output_dir={run.path}-2"])
    model = multilora.modeling.load_base(multilora.recipe.Recipe.load(recipe).model)
    sums: dict[int, list[np.ndarray]] = {}
    for line in plan.table.to_pylist():
        example = plan.tokenized[plan.task_names[line["task"]]].dataset[line["example"]]
        ids = torch.tensor([example["input_ids"]])
        labels = torch.full_like(ids, -100)
        for start, end in zip(example["spans"][::2], example["spans"][1::2], strict=True):
            labels[0, start:end] = ids[0, start:end]
        with torch.no_grad():
            sums.setdefault(line["task"], []).append(token_losses(model, {"input_ids": ids}, labels)[0].numpy())
    if weighting == "token":
        expected = np.concatenate([losses for task in sums.values() for losses in task]).mean()
    elif weighting == "example":
        expected = np.mean([losses.mean() for task in sums.values() for losses in task])
    else:
        expected = np.mean([np.concatenate(task).mean() for task in sums.values()])
    assert run.metrics[0]["loss"] == pytest.approx(expected, rel=1e-4)
