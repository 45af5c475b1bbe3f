"""Results that must not depend on the way they are computed."""

from __future__ import annotations

import pytest
import torch
from conftest import make_llama
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

import multilora
from multilora.data.collate import Collator


def test_lora_equals_plain_peft_and_trainer(recipe, tmp_path):
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    recipe["adapter"] = {"method": "lora", **options}
    recipe["training"] |= {"max_steps": 8, "weight_decay": 0.1}
    run = multilora.train(recipe)
    weights = load_file(run.weights / "adapter_model.safetensors")

    plan = multilora.plan(recipe, [f"output_dir={tmp_path / 'unused'}"])
    dataset = plan.dataset()
    base = make_llama()
    torch.manual_seed(42)
    model = get_peft_model(base, LoraConfig(**options))
    collate = Collator(0)

    def collate_without_tasks(rows):
        batch = collate(rows)
        del batch["task_ids"]
        return batch

    arguments = TrainingArguments(
        str(tmp_path / "plain"),
        max_steps=8,
        learning_rate=0.01,
        weight_decay=0.1,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        per_device_train_batch_size=4,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=[dataset[row] for row in range(len(dataset))],
        data_collator=collate_without_tasks,
    )
    trainer.train()
    expected = {name.replace(".default", ""): p for name, p in model.named_parameters() if "lora_" in name}
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value.detach(), rtol=1e-6, atol=1e-6, msg=name)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert [line["loss"] for line in run.metrics if "loss" in line] == pytest.approx(losses, abs=1e-5)


def test_a_packed_epoch_has_the_loss_of_the_unpacked_one(recipe):
    from multilora.loss.token_losses import token_losses

    del recipe["training"]["max_steps"]
    recipe["training"] |= {"num_train_epochs": 1, "per_device_train_batch_size": 1}
    model = make_llama()
    results = []
    for packing in (True, False):
        plan = multilora.plan(recipe, [f"data.packing={str(packing).lower()}"])
        dataset = plan.dataset()
        total = count = 0.0
        for row in range(len(dataset)):
            batch = Collator(0, packed=packing)([dataset[row]])
            labels = batch.pop("labels")
            batch.pop("task_ids")
            with torch.no_grad():
                losses = token_losses(model, batch, labels)[0]
            total, count = total + losses.double().sum().item(), count + losses.numel()
        results.append((total, count, len(plan.table)))
    packed, unpacked = results
    assert packed[1:] == unpacked[1:]  # with one example per step, no step needs extra examples
    assert packed[0] == pytest.approx(unpacked[0], rel=1e-6)


def test_logs_reach_tensorboard(recipe, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    run = multilora.train(recipe, ["training.report_to=tensorboard", "evaluation.every=2"])
    accumulator = EventAccumulator(str(tmp_path / "board"))
    accumulator.Reload()
    tags = set(accumulator.Tags()["scalars"])
    for tag in ("loss", "loss/even", "grad_norm", "learning_rate", "scale_norm/branch_2", "eval/macro"):
        assert any(name.endswith(tag) for name in tags), (tag, tags)
    task_loss = next(name for name in tags if name.endswith("loss/even"))
    logged = {line["step"]: line["loss/even"] for line in run.metrics if "loss/even" in line}
    assert {event.step: event.value for event in accumulator.Scalars(task_loss)} == pytest.approx(logged)
