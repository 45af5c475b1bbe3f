"""FSDP2 through accelerate: two gloo processes train, evaluate, resume and save like one process."""

from __future__ import annotations

import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import make_llama
from peft import LoraConfig, get_peft_model
from processes import accelerate_train, assert_same_log, assert_same_run, saved_weights, split_recipe
from torch.distributed.checkpoint import FileSystemReader

import multilora
from multilora.errors import InputError, RunError
from multilora.runs.directory import Run
from multilora.training.sharding import check_sharding, check_written

CONFIG = "fsdp2.yaml"


@pytest.mark.slow
def test_two_processes_equal_one(recipe, tmp_path):
    recipe["training"] |= {"max_steps": 6, "use_cpu": True, "save_steps": 2}
    recipe["evaluation"] |= {"every": 2, "keep": "best", "best_by": "echo"}
    recipe["data"]["packing"] = True
    reference = multilora.train(recipe)
    split = split_recipe(recipe)
    code, output = accelerate_train(CONFIG, split)
    assert code == 0, output
    assert output.count("first logged loss") == 1  # only one process prints
    assert "not used as a plain linear map" not in output  # the loss is chunked
    run = Run(split["output_dir"])
    assert_same_run(run, reference, 1e-4)
    assert run.training["weights_of_step"] == reference.training["weights_of_step"]
    saved = run.path / "checkpoints" / "checkpoint-6"
    assert {"pytorch_model_fsdp_0", "optimizer_0", "rng_state_0.pth", "rng_state_1.pth"} <= set(os.listdir(saved))
    names = FileSystemReader(saved / "pytorch_model_fsdp_0").read_metadata().state_dict_metadata
    assert names.keys() == {f"model.{name}" for name in saved_weights(run)}  # without the frozen base

    uninterrupted_path = run.path.rename(tmp_path / "uninterrupted")
    code, output = accelerate_train(CONFIG, split)
    assert code == 0, output
    # As if killed after step 4, while writing the next checkpoint.
    shutil.rmtree(run.weights)
    shutil.rmtree(saved)
    (run.path / "checkpoints" / ".writing" / "checkpoint-6").mkdir(parents=True)
    code, output = accelerate_train(CONFIG, split, "--resume")
    assert code == 0, output
    assert run.training["resumed_from_step"] == 4
    resumed, uninterrupted = saved_weights(run), saved_weights(Run(uninterrupted_path))
    for key, value in uninterrupted.items():
        assert torch.equal(resumed[key], value), key

    best = json.loads(
        (reference.path / f"best-{reference.training['weights_of_step']}" / "evaluation.json").read_text()
    )
    lora = multilora.export_lora(run, tmp_path / "lora")
    assert (lora / "adapter_model.safetensors").is_file()
    assert multilora.evaluate(run).after["even"].loss == pytest.approx(best["tasks"]["even"]["loss"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("state", ["SHARDED_STATE_DICT", "FULL_STATE_DICT"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_other_methods_and_full_checkpoints(recipe, tmp_path, method, state):
    recipe["adapter"] = {"method": method} | ({"r": 4} if method == "lora" else {})
    recipe["training"] |= {"max_steps": 4, "use_cpu": True, "save_steps": 2, "gradient_accumulation_steps": 2}
    reference = multilora.train(recipe)
    split = split_recipe(recipe)
    config = ["--fsdp_state_dict_type", state]
    code, output = accelerate_train(CONFIG, split, arguments=config)
    assert code == 0, output
    run = Run(split["output_dir"])
    assert_same_run(run, reference, 1e-4)
    uninterrupted = saved_weights(run)
    shutil.rmtree(run.weights)
    shutil.rmtree(run.path / "checkpoints" / "checkpoint-4")
    code, output = accelerate_train(CONFIG, split, "--resume", arguments=config)
    assert code == 0, output
    for key, value in saved_weights(run).items():
        assert torch.equal(value, uninterrupted[key]), key
    multilora.evaluate(run)  # a plain model can be loaded without FSDP


def test_fsdp_that_accelerate_does_not_use_raises(recipe, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    recipe["training"] |= {"use_cpu": True}
    with pytest.raises(InputError, match="one process per accelerator"):
        multilora.train(recipe)


@pytest.mark.slow
def test_a_bfloat16_base_compiled_and_checkpointed(recipe):
    """The frozen base stays in bfloat16 and the adapter in float32; compiled layers are gathered as usual."""
    recipe["model"]["dtype"] = "bfloat16"
    recipe["training"] |= {"max_steps": 4, "use_cpu": True, "gradient_checkpointing": True}
    reference = multilora.train(recipe)
    split = split_recipe(recipe, torch_compile_backend="aot_eager")
    code, output = accelerate_train(CONFIG, split)
    assert code == 0, output
    assert "not used as a plain linear map" not in output
    assert_same_log(Run(split["output_dir"]), reference, 2e-2)


@pytest.mark.slow
def test_full_fine_tuning_in_mixed_precision(recipe):
    recipe["model"]["dtype"] = "bfloat16"
    recipe["adapter"] = {"method": "full"}
    recipe["training"] |= {"max_steps": 4, "use_cpu": True, "learning_rate": 1e-3}
    reference = multilora.train(recipe)
    split = split_recipe(recipe)
    code, output = accelerate_train(CONFIG, split)
    assert code == 0, output
    assert "not used as a plain linear map" not in output
    run = Run(split["output_dir"])
    assert {value.dtype for value in saved_weights(run).values()} == {torch.float32}
    assert_same_log(run, reference, 2e-2)


def trainer_with(model, *, muon=False, **plugin):
    settings = {"fsdp_version": 2, "activation_checkpointing": False} | plugin
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=SimpleNamespace(**settings)))
    return SimpleNamespace(
        is_sharded=True,
        is_fsdp_enabled=True,
        is_deepspeed_enabled=False,
        accelerator=accelerator,
        model=model,
        muon=muon,
    )


def test_unsupported_fsdp_settings_raise_together():
    check_sharding(trainer_with(make_llama()))
    model = make_llama()
    model.is_loaded_in_8bit = True
    with pytest.raises(InputError) as error:
        check_sharding(trainer_with(model, muon=True, fsdp_version=1, activation_checkpointing=True))
    for part in (
        "optimizer.muon needs whole matrices",
        "fsdp_version is 1, expected 2",
        "training.gradient_checkpointing to true",
        "use 4bit",
    ):
        assert part in str(error.value)


def test_adapters_that_would_be_saved_incompletely_raise(tmp_path):
    model = get_peft_model(make_llama(), LoraConfig(r=2, target_modules="all-linear"))
    check_sharding(trainer_with(model))
    model.save_pretrained(tmp_path)
    check_written(model, tmp_path)
    model.save_pretrained(tmp_path, state_dict={"renamed": torch.zeros(1)})
    with pytest.raises(RunError, match="only 0 of the 28 trained weights"):
        check_written(model, tmp_path)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad = False  # as in methods with frozen projections
    with pytest.raises(InputError, match="PEFT saves 14 frozen weights of this adapter"):
        check_sharding(trainer_with(model))
