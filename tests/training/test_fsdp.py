"""FSDP2 through accelerate: two gloo processes train, evaluate, resume and save as one process does."""

from __future__ import annotations

import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import make_llama
from peft import LoraConfig, get_peft_model
from processes import accelerated, assert_same_course, assert_same_log, in_two, weights_of
from torch.distributed.checkpoint import FileSystemReader

import multilora
from multilora.errors import InputError, RunError
from multilora.runs.directory import Run
from multilora.training.sharding import check_sharding, check_written

CONFIG = "fsdp2.yaml"


def test_two_processes_equal_one(recipe, tmp_path):
    recipe["training"] |= {"max_steps": 6, "use_cpu": True, "save_steps": 2}
    recipe["evaluation"] |= {"every": 2, "keep": "best", "best_by": "echo"}
    recipe["data"]["packing"] = True
    whole = multilora.train(recipe)
    split = in_two(recipe)
    code, output = accelerated(CONFIG, split)
    assert code == 0, output
    assert output.count("first logged loss") == 1  # one process speaks
    assert "not used as a plain linear map" not in output  # the loss is taken in chunks
    run = Run(split["output_dir"])
    assert_same_course(run, whole, 1e-4)
    assert run.training["weights_of_step"] == whole.training["weights_of_step"]
    saved = run.path / "checkpoints" / "checkpoint-6"
    assert {"pytorch_model_fsdp_0", "optimizer_0", "rng_state_0.pth", "rng_state_1.pth"} <= set(os.listdir(saved))
    names = FileSystemReader(saved / "pytorch_model_fsdp_0").read_metadata().state_dict_metadata
    assert names.keys() == {f"model.{name}" for name in weights_of(run)}  # the frozen base is not among them

    before = run.path.rename(tmp_path / "uninterrupted")
    code, output = accelerated(CONFIG, split)
    assert code == 0, output
    # As if killed after step 4: no weights yet, and a checkpoint that was never finished.
    shutil.rmtree(run.weights)
    shutil.rmtree(saved)
    (run.path / "checkpoints" / ".writing" / "checkpoint-6").mkdir(parents=True)
    code, output = accelerated(CONFIG, split, "--resume")
    assert code == 0, output
    assert run.training["resumed_from_step"] == 4
    resumed, uninterrupted = weights_of(run), weights_of(Run(before))
    for key, value in uninterrupted.items():
        assert torch.equal(resumed[key], value), key

    best = json.loads((whole.path / f"best-{whole.training['weights_of_step']}" / "evaluation.json").read_text())
    lora = multilora.export_lora(run, tmp_path / "lora")
    assert (lora / "adapter_model.safetensors").is_file()
    assert multilora.evaluate(run).after["even"].loss == pytest.approx(best["tasks"]["even"]["loss"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("state", ["SHARDED_STATE_DICT", "FULL_STATE_DICT"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_other_methods_and_whole_checkpoints(recipe, tmp_path, method, state):
    recipe["adapter"] = {"method": method} | ({"r": 4} if method == "lora" else {})
    recipe["training"] |= {"max_steps": 4, "use_cpu": True, "save_steps": 2, "gradient_accumulation_steps": 2}
    whole = multilora.train(recipe)
    split = in_two(recipe)
    config = ["--fsdp_state_dict_type", state]
    code, output = accelerated(CONFIG, split, arguments=config)
    assert code == 0, output
    run = Run(split["output_dir"])
    assert_same_course(run, whole, 1e-4)
    uninterrupted = weights_of(run)
    shutil.rmtree(run.weights)
    shutil.rmtree(run.path / "checkpoints" / "checkpoint-4")
    code, output = accelerated(CONFIG, split, "--resume", arguments=config)
    assert code == 0, output
    for key, value in weights_of(run).items():
        assert torch.equal(value, uninterrupted[key]), key
    multilora.evaluate(run)  # loads in a process of its own kind: config and weights are those of a plain model


def test_what_is_not_sharded_is_refused(recipe, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    recipe["training"] |= {"use_cpu": True}
    with pytest.raises(InputError, match="one process per accelerator"):
        multilora.train(recipe)


@pytest.mark.slow
def test_a_bfloat16_base_compiled_and_checkpointed(recipe):
    """The frozen base stays in bfloat16, the adapter in float32; compiled layers are gathered as others are."""
    recipe["model"]["dtype"] = "bfloat16"
    recipe["training"] |= {"max_steps": 4, "use_cpu": True, "gradient_checkpointing": True}
    whole = multilora.train(recipe)
    split = in_two(recipe, torch_compile_backend="aot_eager")
    code, output = accelerated(CONFIG, split)
    assert code == 0, output
    assert "not used as a plain linear map" not in output
    assert_same_log(Run(split["output_dir"]), whole, 2e-2)


@pytest.mark.slow
def test_all_weights_in_mixed_precision(recipe):
    recipe["model"]["dtype"] = "bfloat16"
    recipe["adapter"] = {"method": "full"}
    recipe["training"] |= {"max_steps": 4, "use_cpu": True, "learning_rate": 1e-3}
    whole = multilora.train(recipe)
    split = in_two(recipe)
    code, output = accelerated(CONFIG, split)
    assert code == 0, output
    assert "not used as a plain linear map" not in output
    run = Run(split["output_dir"])
    assert {value.dtype for value in weights_of(run).values()} == {torch.float32}
    assert_same_log(run, whole, 2e-2)


def trainer_with(model, **plugin):
    settings = {"fsdp_version": 2, "activation_checkpointing": False} | plugin
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=SimpleNamespace(**settings)))
    return SimpleNamespace(
        is_spread=True, is_fsdp_enabled=True, is_deepspeed_enabled=False, accelerator=accelerator, model=model
    )


def test_what_fsdp_cannot_do_is_refused_at_once():
    check_sharding(trainer_with(make_llama()))
    model = make_llama()
    model.is_loaded_in_8bit = True
    with pytest.raises(InputError) as error:
        check_sharding(trainer_with(model, fsdp_version=1, activation_checkpointing=True))
    for part in ("FSDP version 1 was asked for, expected 2", "training.gradient_checkpointing to true", "use 4bit"):
        assert part in str(error.value)


def test_an_adapter_that_would_be_saved_in_part_is_refused(tmp_path):
    model = get_peft_model(make_llama(), LoraConfig(r=2, target_modules="all-linear"))
    check_sharding(trainer_with(model))
    model.save_pretrained(tmp_path)
    check_written(model, tmp_path)
    model.save_pretrained(tmp_path, state_dict={"renamed": torch.zeros(1)})
    with pytest.raises(RunError, match="only 0 of the 28 trained weights"):
        check_written(model, tmp_path)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad = False  # as methods with frozen projections do
    with pytest.raises(InputError, match="PEFT saves 14 frozen weights of this adapter"):
        check_sharding(trainer_with(model))
