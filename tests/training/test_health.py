"""Non-finite steps stop the run or are skipped; logged scale norms and throughput; warnings about zero scales."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from conftest import make_llama
from peft import get_peft_model
from transformers import TrainerCallback

import multilora
from multilora import MultiLoraConfig
from multilora.errors import InputError, RunError
from multilora.training.callbacks.health import Health, describe_rows, scale_norms, warn_of_zero_scales


class Poison(TrainerCallback):
    """Sets a trained weight to NaN during one step (counted from 0) and restores it afterwards."""

    def __init__(self, step, kind="weight"):
        self.step, self.kind, self.saved = step, kind, None

    @staticmethod
    def weight(model):
        return next(p for name, p in model.named_parameters() if "multilora_A" in name)

    def on_step_begin(self, args, state, control, model, **_):
        if state.global_step == self.step and self.kind == "weight":
            weight = self.weight(model)
            self.saved = weight.detach().clone()
            weight.data[0, 0] = math.nan

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        if self.saved is not None:
            self.weight(model).data.copy_(self.saved)
            self.saved = None


class PoisonGradient(TrainerCallback):
    """Makes a gradient infinite without changing the loss."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, model, **_):
        if state.global_step == self.step:
            weight = Poison.weight(model)
            handle = weight.register_hook(lambda gradient: handle.remove() or gradient / 0)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_nonfinite_step_stops_the_run_and_is_described(recipe, accumulation):
    overrides = [
        f"training.gradient_accumulation_steps={accumulation}",
        f"training.per_device_train_batch_size={4 // accumulation}",
    ]
    plan = multilora.plan(recipe, overrides)
    with pytest.raises(RunError) as caught:
        multilora.train(recipe, overrides, callbacks=[Poison(2)])
    text = str(caught.value)
    assert "step 3 is not finite (loss nan, gradient norm nan)" in text
    assert f"rows {describe_rows(plan, 2)}" in text
    assert "rows 8 to 11 of the plan: " in text
    for line in plan.table.slice(8, 4).to_pylist():
        assert plan.task_names[line["task"]] in text
        assert str(line["example"]) in text
    assert "loss not finite in: even, echo" in text
    assert "on_nonfinite: skip" in text


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_an_infinite_gradient_stops_the_run(recipe, max_grad_norm):
    with pytest.raises(RunError, match=r"step 2 is not finite \(loss [\d.]+, gradient norm (inf|nan)\)") as caught:
        multilora.train(recipe, [f"training.max_grad_norm={max_grad_norm}"], callbacks=[PoisonGradient(1)])
    assert "loss not finite in: no task" in str(caught.value)


@pytest.mark.parametrize("poison", [Poison, PoisonGradient])
def test_skipped_steps_are_counted_and_do_not_change_weights(recipe, poison, caplog):
    class Watch(TrainerCallback):
        def __init__(self):
            self.weights = []

        def on_step_end(self, args, state, control, model, **_):
            self.weights.append(torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]))

    watch = Watch()
    run = multilora.train(recipe, ["loss.on_nonfinite=skip"], callbacks=[poison(2), watch])
    assert torch.equal(watch.weights[2], watch.weights[1])
    assert not torch.equal(watch.weights[3], watch.weights[2])
    lines = [line for line in run.metrics if "scale_norm/branch_0" in line]
    assert [line.get("skipped_steps") for line in lines] == [None, None, 1, 1]
    assert ["loss" in line for line in lines] == [True, True, False, True]
    assert all(math.isfinite(v) for line in lines for k, v in line.items() if k != "grad_norm")
    assert "The step is skipped (1 so far)" in caplog.text


def test_the_logged_loss_excludes_skipped_steps(recipe, tmp_path):
    reference = multilora.train(recipe, [f"output_dir={tmp_path / 'reference'}", "training.max_steps=2"])
    run = multilora.train(
        recipe,
        [f"output_dir={tmp_path / 'skipping'}", "training.logging_steps=4", "loss.on_nonfinite=skip"],
        callbacks=[Poison(2), Poison(3)],
    )
    (line,) = [line for line in run.metrics if "loss" in line]
    assert line["skipped_steps"] == 2
    # The learning-rate schedules differ, so the weights differ slightly in the second step.
    assert line["loss"] == pytest.approx(sum(entry["loss"] for entry in reference.metrics[:2]) / 2, rel=1e-2)


def test_norms_and_throughput_are_logged(recipe):
    run = multilora.train(recipe)
    lines = [line for line in run.metrics if "loss" in line]
    for line in lines:
        assert {f"scale_norm/branch_{i}" for i in range(3)} <= line.keys()
        assert line["tokens_per_second"] > 0
        assert {"grad_norm", "learning_rate"} <= line.keys()
    assert lines[0]["scale_norm/branch_0"] < lines[-1]["scale_norm/branch_0"]
    assert scale_norms(run.load_model()) == []  # a loaded model has no trainable scales


def test_scale_norms_of_known_scales():
    model = get_peft_model(make_llama(), MultiLoraConfig(r=2, num_branches=2, target_modules=["q_proj", "k_proj"]))
    scales = [p for name, p in model.named_parameters() if "multilora_scale" in name]
    for index, scale in enumerate(scales):
        scale.data.fill_(index + 1.0)
    expected = sum(scale[:, 0].norm().item() for scale in scales) / len(scales)
    assert scale_norms(model) == pytest.approx([expected] * 2)


@pytest.mark.parametrize("scaling", ["vector", "scalar"])
def test_zero_scales_are_counted(scaling, caplog):
    model = get_peft_model(make_llama(), MultiLoraConfig(r=2, scaling=scaling, target_modules=["q_proj"]))
    scales = [p for name, p in model.named_parameters() if "multilora_scale" in name]
    assert len(scales) == 2
    scales[0].data.fill_(1.0)
    scales[1].data[..., 1].fill_(1.0)
    warn_of_zero_scales(model, 50)
    (record,) = caplog.records
    assert "after 50 steps 2 of 6 branches still have a scale of exactly zero" in record.getMessage()
    assert "layers.1.self_attn.q_proj" in record.getMessage()


def test_zero_scales_are_reported_once_after_fifty_steps(recipe, caplog):
    multilora.train(recipe, ["training.max_steps=52", "training.learning_rate=0.0", "training.logging_steps=60"])
    messages = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "exactly zero" in r.message]
    assert len(messages) == 1
    assert messages[0].startswith("after 50 steps 42 of 42 branches")


def test_an_unknown_on_nonfinite_raises(recipe):
    with pytest.raises(InputError, match="on_nonfinite 'ignore'; expected stop or skip"):
        Health(multilora.plan(recipe), None, None, "ignore")
