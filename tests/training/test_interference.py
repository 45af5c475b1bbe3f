"""Cosines between the tasks' gradients: equal to those of separate backward passes, and without effect on training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import make_llama, randomise
from peft import get_peft_model
from processes import run_in_two_processes, saved_weights
from torch.nn import functional as F
from transformers import TrainerCallback

import multilora
from multilora import MultiLoraConfig
from multilora.data.collate import Collator
from multilora.errors import InputError, RunError
from multilora.loss.task_gradients import task_cosines, task_products, trained_by_type
from multilora.loss.token_losses import token_losses
from multilora.training.callbacks import interference
from multilora.training.callbacks.interference import SECONDS, Interference

TIMES = (
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "tokens_per_second",
    SECONDS,
)


def log_of(run):
    """The log without times, and without the lines that then have nothing but their step and epoch."""
    lines = [{key: value for key, value in line.items() if key not in TIMES} for line in run.metrics]
    return [line for line in lines if line.keys() - {"step", "epoch"}]


def cosines_of(run):
    """Step -> key -> cosine."""
    found = {}
    for line in run.metrics:
        if SECONDS in line:
            found[line["step"]] = {key: value for key, value in line.items() if key.startswith("interference/")}
    return found


def separate_gradients(model, batch, task):
    """The gradient of one task's mean loss, from the model's own logits, by module type."""
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "task_ids")}
    labels = batch["labels"].masked_fill(batch["task_ids"] != task, -100)
    model.zero_grad(set_to_none=True)
    logits = model(**inputs, use_cache=False).logits[:, :-1]  # a cache would ignore the segments
    F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()).backward()
    by_type: dict[str, list[torch.Tensor]] = {"all": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (module_type,) = [part for part in name.split(".") if part.endswith("_proj")]
            by_type.setdefault(module_type, []).append(parameter.grad.flatten())
            by_type["all"].append(parameter.grad.flatten())
    model.zero_grad(set_to_none=True)
    return {name: torch.cat(parts).double() for name, parts in by_type.items()}


@pytest.mark.parametrize("packed", [False, True])
def test_equal_to_separate_backward_passes(recipe, packed):
    plan = multilora.plan(recipe, [f"data.packing={str(packed).lower()}", "data.max_length=256"])
    rows = [plan.dataset()[row] for row in range(4)]
    assert any(len(set(row["task_ids"])) == 2 for row in rows) == packed
    batch = Collator(0, packed=packed)(rows)
    model = get_peft_model(make_llama(), MultiLoraConfig(r=2, num_branches=2, target_modules="all-linear"))
    randomise(model)
    expected = [separate_gradients(model, batch, task) for task in (0, 1)]
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "task_ids")}
    losses, trained = token_losses(model, inputs, batch["labels"])
    groups = trained_by_type(model)
    products = task_products(losses, batch["task_ids"][:, 1:][trained], [0, 1], groups)
    cosines = task_cosines(products, plan.task_names)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert cosines.keys() == expected[0].keys() == expected[1].keys()
    assert len(cosines) == 8
    for module_type, pairs in cosines.items():
        first, second = (gradients[module_type] for gradients in expected)
        assert pairs == {("even", "echo"): pytest.approx(float(F.cosine_similarity(first, second, dim=0)), abs=1e-5)}


def test_tasks_without_a_gradient_have_no_cosine():
    products = {"q_proj": torch.tensor([[4.0, -2.0, 0.0], [-2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])}
    products["v_proj"] = torch.full((3, 3), float("nan"))
    assert task_cosines(products, ["a", "b", "c"]) == {"all": {}, "q_proj": {("a", "b"): -1.0}, "v_proj": {}}


class StopAt(TrainerCallback):
    """Fails at the end of a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise RuntimeError("power cut")


def test_training_and_its_log_are_as_without_it_and_it_resumes(recipe, tmp_path):
    recipe["training"] |= {"max_steps": 6, "save_steps": 2, "logging_steps": 3}
    recipe["training"] |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    recipe["adapter"]["lora_dropout"] = 0.1
    recipe["data"] |= {"packing": True, "max_length": 256}
    measured = [f"output_dir={tmp_path / 'measured'}", "loss.interference_every=1"]
    plain = multilora.train(recipe)
    with pytest.raises(RunError, match="power cut"):
        multilora.train(recipe, measured, callbacks=[StopAt(5)])
    resumed = multilora.train(recipe, measured, resume=True)
    assert resumed.training["resumed_from_step"] == 4
    found = cosines_of(resumed)
    assert list(found) == [1, 2, 3, 4, 5, 6]
    both = [values for values in found.values() if values]  # a batch may hold a single task
    assert both
    assert all("interference/q_proj/even x echo" in values and len(values) == 8 for values in both)
    weights, expected = saved_weights(resumed), saved_weights(plain)
    assert all(torch.equal(weights[key], value) for key, value in expected.items())
    others = [line for line in log_of(resumed) if not any(key.startswith("interference/") for key in line)]
    assert others == log_of(plain)
    uninterrupted = multilora.train(recipe, [*measured, f"output_dir={tmp_path / 'whole'}"])
    assert log_of(resumed) == log_of(uninterrupted)


def test_the_tasks_gradients_add_up_to_the_gradient_of_the_step(recipe, monkeypatch):
    """Also with dropout, since both use the same random numbers; and with activations that are recomputed."""
    kept = []

    def products_of(losses, *arguments):
        products = task_products(losses, *arguments)
        kept.append((sum(products.values()).sum().sqrt(), len(losses)))
        return products

    monkeypatch.setattr(interference, "task_products", products_of)
    recipe["adapter"]["lora_dropout"] = 0.3
    run = multilora.train(
        recipe, ["loss.interference_every=2", "training.gradient_checkpointing=true", "training.max_steps=4"]
    )
    norms = {line["step"]: line["grad_norm"] for line in run.metrics if "grad_norm" in line}
    assert [float(norm) / tokens for norm, tokens in kept] == pytest.approx([norms[2], norms[4]], rel=1e-4)


def test_a_task_that_is_not_in_the_batch_is_left_out(recipe):
    run = multilora.train(recipe, ["mixture.homogeneous_batches=true", "loss.interference_every=1"])
    assert list(cosines_of(run).values()) == [{}] * 4


def test_what_is_not_supported_is_refused_and_nothing_is_written(recipe):
    with pytest.raises(InputError, match="FSDP and DeepSpeed shard"):
        Interference(SimpleNamespace(is_sharded=True), 1)
    options = ["training.gradient_checkpointing=true", "training.gradient_checkpointing_kwargs={use_reentrant: true}"]
    with pytest.raises(InputError, match="reentrant"):
        multilora.train(recipe, [*options, "loss.interference_every=1"])
    assert [path for path in Path(recipe["output_dir"]).rglob("*") if path.is_file()] == []


def train(rank, folder, recipe, size=1):
    options = [f"output_dir={folder / f'batch-{size}'}", "loss.interference_every=1", "data.num_proc=1"]
    options += [f"training.per_device_train_batch_size={size}", "training.use_cpu=true"]
    options += ["data.packing=true", "data.max_length=256"]
    return multilora.train(recipe, options)


@pytest.mark.slow
def test_two_processes_equal_one(recipe, tmp_path):
    recipe["training"]["max_steps"] = 3
    one = train(0, tmp_path, recipe, 2)
    run_in_two_processes(train, tmp_path, recipe)
    two = cosines_of(multilora.Run(tmp_path / "batch-1"))
    for step, values in cosines_of(one).items():
        assert two[step] == pytest.approx(values, abs=1e-4)
    assert any(len(values) == 8 for values in two.values())
