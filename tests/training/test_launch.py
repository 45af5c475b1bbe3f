"""Started by torchrun in two processes a recipe trains as in one; accelerate starts it too."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import multilora
from multilora.rundir import Run


def launch(*command):
    """The exit code and output of `python -m <command>`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("packing", [False, True])
def test_two_processes_equal_one(recipe, tmp_path, packing):
    recipe["data"]["packing"] = packing
    recipe["training"] |= {"max_steps": 6, "use_cpu": True, "save_steps": 3}
    whole = multilora.train(recipe, [f"output_dir={tmp_path / 'whole'}"])
    recipe["training"] |= {"per_device_train_batch_size": 2, "ddp_backend": "gloo"}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))  # JSON is YAML
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    code, output = launch(*torchrun, "-m", "multilora", "train", str(tmp_path / "recipe.json"))
    assert code == 0, output
    run = Run(recipe["output_dir"])
    mine, theirs = (load_file(item.weights / "adapter_model.safetensors") for item in (run, whole))
    for key, value in theirs.items():
        torch.testing.assert_close(mine[key], value, rtol=1e-3, atol=1e-4, msg=key)
    ours = [line for line in run.metrics if "loss" in line]
    assert [line["step"] for line in ours] == [1, 2, 3, 4, 5, 6]  # one process writes
    for line, expected in zip(ours, (line for line in whole.metrics if "loss" in line), strict=True):
        losses = {key: value for key, value in line.items() if key.startswith("loss")}
        assert losses == pytest.approx({key: expected[key] for key in expected if key.startswith("loss")}, rel=1e-4)
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == ["checkpoint-3", "checkpoint-6"]


def test_accelerate_starts_it(recipe, tmp_path):
    recipe["training"] |= {"max_steps": 2, "use_cpu": True}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    accelerate = ["accelerate.commands.launch", "--cpu", "--num_processes=1"]
    code, output = launch(*accelerate, "-m", "multilora", "train", str(tmp_path / "recipe.json"))
    assert code == 0, output
    assert Run(recipe["output_dir"]).training["steps"] == 2
