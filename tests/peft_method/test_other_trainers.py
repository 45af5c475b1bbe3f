"""The adapter in other trainers: transformers' Trainer and TRL's SFTTrainer."""

from __future__ import annotations

import pytest
import torch
from conftest import make_llama, make_tokenizer
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments

from multilora import MultiLoraConfig

CONFIG = {"r": 2, "num_branches": 3, "target_modules": "all-linear", "lora_dropout": 0.1}
ARGUMENTS = {
    "max_steps": 6,
    "save_steps": 3,
    "per_device_train_batch_size": 2,
    "learning_rate": 2e-2,
    "logging_steps": 1,
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
}
IDS = torch.arange(3, 27).reshape(2, 12)


def with_trainer(folder):
    rows = Dataset.from_list([{"input_ids": [1, i, 7, 7], "labels": [1, i, 7, 7]} for i in range(10, 34)])
    model = get_peft_model(make_llama(), MultiLoraConfig(**CONFIG))
    return Trainer(model, TrainingArguments(str(folder), **ARGUMENTS), train_dataset=rows)


def with_trl(folder):
    trl = pytest.importorskip("trl")
    rows = Dataset.from_list([{"prompt": f"one {i} ", "completion": "three"} for i in range(24)])
    return trl.SFTTrainer(
        model=make_llama(),
        args=trl.SFTConfig(str(folder), bf16=False, **ARGUMENTS),
        train_dataset=rows,
        processing_class=make_tokenizer(),
        peft_config=MultiLoraConfig(**CONFIG),
    )


def trained(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if "multilora_" in name}


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize("make", [with_trainer, with_trl], ids=["Trainer", "SFTTrainer"])
def test_trains_saves_resumes_and_reloads(tmp_path, make):
    torch.manual_seed(0)
    uninterrupted = make(tmp_path / "run")
    before = trained(uninterrupted)
    uninterrupted.train()
    losses = [entry["loss"] for entry in uninterrupted.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    after = trained(uninterrupted)
    assert len(after) == 2 * 7 * 3
    assert not any(torch.equal(before[name], after[name]) for name in after)

    torch.manual_seed(0)
    resumed = make(tmp_path / "run")
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    for name, parameter in trained(resumed).items():
        assert torch.equal(parameter, after[name]), name

    uninterrupted.save_model(str(tmp_path / "adapter"))
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    reloaded = PeftModel.from_pretrained(make_llama(), tmp_path / "adapter")
    assert torch.equal(logits(reloaded), logits(uninterrupted.model))


def test_one_call_loads_base_and_adapter(tmp_path):
    make_llama().save_pretrained(tmp_path / "base")
    base = type(make_llama()).from_pretrained(tmp_path / "base")
    model = get_peft_model(base, MultiLoraConfig(**CONFIG, init_weights=False, task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(model))


def test_the_adapter_methods_of_transformers(tmp_path):
    """`add_adapter`, `load_adapter` and others, which insert adapters without wrapping the model."""
    model = make_llama()
    before = logits(model)
    model.add_adapter(MultiLoraConfig(**CONFIG, init_weights=False), adapter_name="first")
    after = logits(model)
    assert not torch.equal(after, before)
    model.disable_adapters()
    assert torch.equal(logits(model), before)
    model.enable_adapters()
    model.save_pretrained(tmp_path / "adapter")

    fresh = make_llama()
    fresh.load_adapter(str(tmp_path / "adapter"), adapter_name="loaded")
    assert torch.equal(logits(fresh), after)
    fresh.add_adapter(MultiLoraConfig(r=1, target_modules=["q_proj"]), adapter_name="second")
    assert fresh.active_adapters() == ["second"]
    assert torch.equal(logits(fresh), before)
    fresh.set_adapter("loaded")
    assert torch.equal(logits(fresh), after)
    fresh.delete_adapter("loaded")
    assert set(fresh.peft_config) == {"second"}
