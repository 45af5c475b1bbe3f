"""DeepSpeed's ZeRO-2 and ZeRO-3 through accelerate: two gloo processes train as one; `make test-deepspeed`."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from processes import accelerated, assert_same_course, assert_same_log, in_two, weights_of

import multilora
from multilora.runs.directory import Run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed; see `make test-deepspeed`"),
]


def train(config, recipe, *options):
    return accelerated(config, recipe, *options, DS_ACCELERATOR="cpu")


@pytest.mark.parametrize("stage", [2, 3])
def test_two_processes_equal_one(recipe, tmp_path, stage):
    recipe["training"] |= {"max_steps": 6, "save_steps": 2}
    recipe["evaluation"] |= {"every": 2, "keep": "best", "best_by": "echo"}
    recipe["data"]["packing"] = True
    whole = multilora.train(recipe, ["training.use_cpu=true"])
    split = in_two(recipe)
    code, output = train(f"deepspeed_zero{stage}.yaml", split)
    assert code == 0, output
    assert "not used as a plain linear map" not in output  # the loss is taken in chunks
    run = Run(split["output_dir"])
    assert_same_course(run, whole, 1e-4)
    assert run.training["total_parameters"] == whole.training["total_parameters"]
    # As if killed after step 4.
    uninterrupted = weights_of(run)
    shutil.rmtree(run.weights)
    shutil.rmtree(run.path / "checkpoints" / "checkpoint-6")
    code, output = train(f"deepspeed_zero{stage}.yaml", split, "--resume")
    assert code == 0, output
    assert run.training["resumed_from_step"] == 4
    for key, value in weights_of(run).items():
        assert torch.equal(value, uninterrupted[key]), key
    multilora.export_lora(run, tmp_path / "lora")


@pytest.mark.parametrize("stage", [2, 3])
def test_all_weights_and_no_parameter_kept_whole(recipe, tmp_path, stage):
    """DeepSpeed leaves parameters as small as a test's on every process; here it may not."""
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
        whole = multilora.train(recipe, ["training.use_cpu=true"])
        split = in_two(recipe)
        code, output = train(tmp_path / "accelerate.yaml", split)
        assert code == 0, output
        run = Run(split["output_dir"])
        assert_same_course(run, whole, 1e-4)
        multilora.evaluate(run)


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("method", ["multilora", "full"])
def test_a_bfloat16_base_stays_one_and_its_masters_are_float32(recipe, tmp_path, stage, method):
    recipe["model"]["dtype"] = "bfloat16"
    recipe["adapter"] = {"method": method}
    recipe["training"] |= {"max_steps": 4, "learning_rate": 1e-3}
    whole = multilora.train(recipe, ["training.use_cpu=true"])
    split = in_two(recipe)
    code, output = train(f"deepspeed_zero{stage}.yaml", split)
    assert code == 0, output
    assert "not used as a plain linear map" not in output
    run = Run(split["output_dir"])
    assert_same_log(run, whole, 3e-2)
    weights = weights_of(run)
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert any(not torch.equal(value, value.bfloat16().float()) for value in weights.values())


def test_what_deepspeed_cannot_do_is_refused_at_once(recipe):
    recipe["loss"] = {"on_nonfinite": "skip"}
    code, output = train("deepspeed_zero3.yaml", in_two(recipe, torch_compile_backend="aot_eager"))
    assert code != 0
    assert "error: loss.on_nonfinite: skip cannot be had with DeepSpeed" in output
    assert "training.torch_compile finds no fixed shapes under ZeRO-3" in output
