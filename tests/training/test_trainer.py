"""The trainer: per-task losses, reproducibility, arguments, precision."""

from __future__ import annotations

import pytest
import torch
from conftest import make_gpt2, make_llama
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainingArguments

import multilora
from multilora import MultiTaskTrainer
from multilora.data.collate import Collator
from multilora.errors import InputError
from multilora.loss.token_losses import token_losses
from multilora.recipe import Recipe
from multilora.training.prepare import prepare


def batch_of(recipe, count=6):
    dataset = multilora.plan(recipe).dataset()
    return Collator(0)([dataset[line] for line in range(count)])


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_token_losses_equal_the_models_own_loss(recipe, make):
    batch, model = batch_of(recipe), make()
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        losses, trained = token_losses(model, inputs, batch["labels"])
        expected = model(**inputs, labels=batch["labels"]).loss
    assert losses.numel() == trained.sum() == (batch["labels"] != -100).sum()
    torch.testing.assert_close(losses.mean(), expected, rtol=1e-5, atol=1e-5)


def test_logits_are_computed_only_for_trained_positions(recipe):
    batch, model = batch_of(recipe), make_llama()
    shapes = []
    model.lm_head.register_forward_hook(lambda _, __, output: shapes.append(output.shape))
    with torch.no_grad():
        token_losses(model, {"input_ids": batch["input_ids"]}, batch["labels"])
    needed = (batch["labels"][:, 1:] != -100).any(dim=0).sum()
    assert shapes == [(6, needed, 320)]
    assert needed < batch["labels"].shape[1] / 2


def test_task_losses_add_up_to_the_logged_loss(recipe):
    run = multilora.train(recipe)
    lines = [line for line in run.metrics if "loss" in line]
    assert len(lines) == 4
    plan = multilora.plan(recipe, [f"output_dir={run.path}-unused"])
    per_step = plan.rows_per_step
    for step, line in enumerate(lines):
        rows = plan.table.slice(step * per_step, per_step).to_pylist()
        total = count = 0.0
        for index, name in enumerate(plan.task_names):
            tokens = sum(row["trained_tokens"] for row in rows if row["task"] == index)
            assert (f"loss/{name}" in line) == (tokens > 0)
            total += tokens * line.get(f"loss/{name}", 0.0)
            count += tokens
        assert line["loss"] == pytest.approx(total / count, rel=1e-4)


def trained_weights(recipe, path, *overrides):
    run = multilora.train(recipe, [f"output_dir={path}", *overrides])
    return run, load_file(run.weights / "adapter_model.safetensors")


def test_training_is_reproducible(recipe, tmp_path):
    _, first = trained_weights(recipe, tmp_path / "a")
    _, second = trained_weights(recipe, tmp_path / "b")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_plan_for_another_batch_size_raises(recipe, tmp_path):
    prepared = prepare(Recipe.load(recipe))
    args = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=3, report_to="none")
    with pytest.raises(InputError, match=r"3 rows per step.*the plan has 4"):
        MultiTaskTrainer(prepared.model, args, prepared.plan)


def test_custom_arguments_and_callbacks(recipe, tmp_path):
    steps = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    prepared = prepare(Recipe.load(recipe))
    args = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4, max_steps=2, report_to="none", save_strategy="no"
    )
    MultiTaskTrainer(model=prepared.model, args=args, plan=prepared.plan, callbacks=[Watch()]).train()
    assert steps == [1, 2]


@pytest.mark.parametrize(("method", "ratio"), [("multilora", 0.95), ("full", 0.5)])
def test_training_lowers_the_loss(recipe, method, ratio):
    """On random weights with a frozen output head, an adapter lowers the loss less than full fine-tuning."""
    run = multilora.train(
        recipe, [f"adapter={{method: {method}}}", "training.max_steps=60", "training.learning_rate=0.02"]
    )
    losses = [line["loss"] for line in run.metrics if "loss" in line]
    assert sum(losses[-5:]) < ratio * sum(losses[:5])


class Dtypes(TrainerCallback):
    """Records the output dtype and the weight dtype of a linear layer during training."""

    def on_train_begin(self, args, state, control, model=None, **_):
        layer = model.get_submodule("model.layers.0.mlp.up_proj")
        self.weight = layer.weight.dtype
        self.hook = layer.register_forward_hook(lambda _, __, output: setattr(self, "output", output.dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_full_fine_tuning_of_a_bfloat16_base_uses_mixed_precision(recipe, dtype):
    recipe["model"]["dtype"] = dtype
    recipe["adapter"] = {"method": "full"}
    dtypes = Dtypes()
    run = multilora.train(recipe, ["training.max_steps=1"], callbacks=[dtypes])
    assert (dtypes.weight, dtypes.output) == (torch.float32, getattr(torch, dtype))
    assert load_file(run.weights / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].dtype == torch.float32
