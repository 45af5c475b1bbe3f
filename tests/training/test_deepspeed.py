"""ZeRO-2 and ZeRO-3 through accelerate: two gloo processes train like one. Run with `make test-deepspeed`."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from processes import accelerate_train, assert_same_log, assert_same_run, saved_weights, split_recipe

import multilora
from multilora.runs.directory import Run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed; see `make test-deepspeed`"),
]


def train(config, recipe, *options):
    return accelerate_train(config, recipe, *options, DS_ACCELERATOR="cpu")


@pytest.mark.parametrize("stage", [2, 3])
def test_two_processes_equal_one(recipe, tmp_path, stage):
    recipe["training"] |= {"max_steps": 6, "save_steps": 2}
    recipe["evaluation"] |= {"every": 2, "keep": "best", "best_by": "echo"}
    recipe["data"]["packing"] = True
    reference = multilora.train(recipe, ["training.use_cpu=true"])
    split = split_recipe(recipe)
    code, output = train(f"deepspeed_zero{stage}.yaml", split)
    assert code == 0, output
    assert "not used as a plain linear map" not in output  # the loss is chunked
    run = Run(split["output_dir"])
    assert_same_run(run, reference, 1e-4)
    assert run.training["total_parameters"] == reference.training["total_parameters"]
    # As if killed after step 4.
    uninterrupted = saved_weights(run)
    shutil.rmtree(run.weights)
    shutil.rmtree(run.path / "checkpoints" / "checkpoint-6")
    code, output = train(f"deepspeed_zero{stage}.yaml", split, "--resume")
    assert code == 0, output
    assert run.training["resumed_from_step"] == 4
    for key, value in saved_weights(run).items():
        assert torch.equal(value, uninterrupted[key]), key
    multilora.export_lora(run, tmp_path / "lora")


@pytest.mark.parametrize("stage", [2, 3])
def test_all_parameters_sharded(recipe, tmp_path, stage):
    """By default, DeepSpeed does not shard parameters as small as those of the test model."""
    zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
    sizes = dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), "auto")
    settings = {"zero_optimization": zero, "gradient_clipping": "auto", "bf16": {"enabled": "auto"}, **sizes}
    (tmp_path / "zero.json").write_text(json.dumps(settings))
    config = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "DEEPSPEED", "num_machines": 1}
    config["deepspeed_config"] = {"deepspeed_config_file": str(tmp_path / "zero.json"), "zero3_init_flag": True}
    (tmp_path / "accelerate.yaml").write_text(json.dumps(config | {"num_processes": 2}))
    recipe["training"] |= {"max_steps": 4, "save_steps": 2, "gradient_accumulation_steps": 2}
    for method, options in {"full": {}, "multilora": {"r": 2}}.items():
        recipe["adapter"] = {"method": method, **options}
        recipe["output_dir"] = str(tmp_path / method)
        reference = multilora.train(recipe, ["training.use_cpu=true"])
        split = split_recipe(recipe)
        code, output = train(tmp_path / "accelerate.yaml", split)
        assert code == 0, output
        run = Run(split["output_dir"])
        assert_same_run(run, reference, 1e-4)
        multilora.evaluate(run)


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("method", ["multilora", "full"])
def test_a_bfloat16_base_has_float32_master_weights(recipe, tmp_path, stage, method):
    recipe["model"]["dtype"] = "bfloat16"
    recipe["adapter"] = {"method": method}
    recipe["training"] |= {"max_steps": 4, "learning_rate": 1e-3}
    reference = multilora.train(recipe, ["training.use_cpu=true"])
    split = split_recipe(recipe)
    code, output = train(f"deepspeed_zero{stage}.yaml", split)
    assert code == 0, output
    assert "not used as a plain linear map" not in output
    run = Run(split["output_dir"])
    assert_same_log(run, reference, 3e-2)
    weights = saved_weights(run)
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert any(not torch.equal(value, value.bfloat16().float()) for value in weights.values())


def test_unsupported_deepspeed_settings_raise_together(recipe):
    recipe["loss"] = {"on_nonfinite": "skip"}
    code, output = train("deepspeed_zero3.yaml", split_recipe(recipe, torch_compile_backend="aot_eager"))
    assert code != 0
    assert "error: loss.on_nonfinite: skip is not supported with DeepSpeed" in output
    assert "training.torch_compile is not supported with ZeRO-3" in output
