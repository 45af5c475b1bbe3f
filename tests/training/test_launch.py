"""Runs started by torchrun in two processes train like one process; accelerate can start runs, too."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

import multilora
from multilora.runs.directory import Run

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def launch(*command):
    """Run `python -m <command>` and return its exit code and output."""
    result = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, env=ENVIRONMENT)
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.slow
def test_two_processes_equal_one(recipe, tmp_path, packing):
    recipe["data"]["packing"] = packing
    recipe["training"] |= {"max_steps": 6, "use_cpu": True, "save_steps": 3}
    reference = multilora.train(recipe, [f"output_dir={tmp_path / 'reference'}"])
    recipe["training"] |= {"per_device_train_batch_size": 2, "ddp_backend": "gloo"}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))  # JSON is YAML
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    code, output = launch(*torchrun, "-m", "multilora", "train", str(tmp_path / "recipe.json"))
    assert code == 0, output
    run = Run(recipe["output_dir"])
    weights, expected = (load_file(r.weights / "adapter_model.safetensors") for r in (run, reference))
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, rtol=1e-3, atol=1e-4, msg=key)
    lines, expected_lines = ([line for line in r.metrics if "loss" in line] for r in (run, reference))
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]  # only one process writes
    for line, expected_line in zip(lines, expected_lines, strict=True):
        losses, expected_losses = (
            {key: value for key, value in values.items() if key.startswith("loss")} for values in (line, expected_line)
        )
        assert losses == pytest.approx(expected_losses, rel=1e-4)
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == ["checkpoint-3", "checkpoint-6"]


@pytest.mark.slow
def test_two_machines_equal_one(recipe, tmp_path):
    """Two torchrun agents that connect to one address, as on two machines with a shared folder."""
    recipe["training"] |= {"max_steps": 4, "use_cpu": True, "save_steps": 2}
    reference = multilora.train(recipe, [f"output_dir={tmp_path / 'reference'}"])
    recipe["training"] |= {"per_device_train_batch_size": 2, "ddp_backend": "gloo"}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    with socket.socket() as free_socket:
        free_socket.bind(("127.0.0.1", 0))
        port = free_socket.getsockname()[1]
    agent = ["torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
    agent += [f"--rdzv-endpoint=127.0.0.1:{port}", "-m", "multilora", "train", str(tmp_path / "recipe.json")]
    with ThreadPoolExecutor() as machines:
        results = list(machines.map(lambda _: launch(*agent), range(2)))
    assert [code for code, _ in results] == [0, 0], results
    run = Run(recipe["output_dir"])
    weights, expected = (load_file(r.weights / "adapter_model.safetensors") for r in (run, reference))
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, rtol=1e-3, atol=1e-4, msg=key)
    assert {path.name for path in (run.path / "checkpoints" / "checkpoint-4").glob("rng_state_*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all(recipe, tmp_path):
    recipe["training"] |= {"max_steps": 40, "use_cpu": True, "per_device_train_batch_size": 2, "ddp_backend": "gloo"}
    train = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "multilora", "train"]
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    train.append(str(tmp_path / "recipe.json"))
    code, output = launch(*train, "--set", f"output_dir={tmp_path / 'reference'}")
    assert code == 0, output
    with subprocess.Popen([sys.executable, "-m", *train], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as agent:
        log = Path(recipe["output_dir"]) / "metrics.jsonl"
        while not log.exists() or len(log.read_text().splitlines()) < 3:
            assert agent.poll() is None
            time.sleep(0.05)
        workers = psutil.Process(agent.pid).children()
        assert len(workers) == 2
        workers[1].terminate()
        _, errors = agent.communicate()
    assert agent.returncode != 0
    assert "stopped by a signal to another process after step" in errors
    assert "--resume` continues from it" in errors
    code, output = launch(*train, "--resume")
    assert code == 0, output
    run = Run(recipe["output_dir"])
    assert 0 < run.training["resumed_from_step"] < 40
    runs = (run, Run(tmp_path / "reference"))
    weights, expected = (load_file(r.weights / "adapter_model.safetensors") for r in runs)
    for key, value in expected.items():
        assert torch.equal(weights[key], value), key


def test_accelerate_starts_a_run(recipe, tmp_path):
    recipe["training"] |= {"max_steps": 2, "use_cpu": True}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    accelerate = ["accelerate.commands.launch", "--cpu", "--num_processes=1"]
    code, output = launch(*accelerate, "-m", "multilora", "train", str(tmp_path / "recipe.json"))
    assert code == 0, output
    assert Run(recipe["output_dir"]).training["steps"] == 2
