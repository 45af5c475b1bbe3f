"""Run work in two processes on this machine, connected by gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import REPOSITORY
from safetensors.torch import load_file

WORLD = 2


def run_in_two_processes(work: Callable[..., None], folder: Path, *arguments: Any) -> None:
    """Call `work(rank, folder, *arguments)` in two processes of one group; `work` must be importable.

    Raises:
        torch.multiprocessing.ProcessRaisedException: a process raised an exception.
    """
    mp.spawn(_process, (work, folder, arguments), nprocs=WORLD)


def _process(rank: int, work: Callable[..., None], folder: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    os.environ["MASTER_ADDR"] = "127.0.0.1"  # accelerate needs one; the processes meet at a file
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    work(rank, folder, *arguments)
    dist.barrier()
    dist.destroy_process_group()
    # Gloo's threads outlive their group, and a normal interpreter shutdown sometimes aborts because of them.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def split_recipe(recipe: dict[str, Any], **training: Any) -> dict[str, Any]:
    """Return the recipe for two processes, with half the batch size each."""
    size = recipe["training"]["per_device_train_batch_size"] // 2
    section = recipe["training"] | {"per_device_train_batch_size": size} | training
    return recipe | {"training": section, "output_dir": recipe["output_dir"] + "-split"}


def accelerate_train(
    config: str | Path, recipe: dict[str, Any], *options: str, arguments: Sequence[str] = (), **environment: str
) -> tuple[int, str]:
    """Train a recipe in two processes with `accelerate launch`.

    Args:
        config: a file in recipes/accelerate, or an absolute path
        recipe: from `split_recipe`
        options: of `multilora train`
        arguments: of `accelerate launch`
        environment: additional environment variables

    Returns:
        (exit code, stdout and stderr)
    """
    path = Path(recipe["output_dir"] + ".json")
    path.write_text(json.dumps(recipe))  # JSON is YAML
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
    launch += ["--config_file", str(REPOSITORY / "recipes" / "accelerate" / config), *arguments]
    script = str(REPOSITORY / "tests" / "training" / "accelerate_on_cpu.py")
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    result = subprocess.run(
        [*launch, script, "train", str(path), *options], capture_output=True, text=True, env=variables
    )
    return result.returncode, result.stdout + result.stderr


def saved_weights(run: Any) -> dict[str, torch.Tensor]:
    """Load the weights of a run."""
    (file,) = run.weights.glob("*.safetensors")
    return load_file(file)


def assert_same_run(run: Any, reference: Any, tolerance: float) -> None:
    """Assert that losses, norms and saved weights agree with a reference run of one process."""
    assert_same_log(run, reference, tolerance)
    weights, expected = saved_weights(run), saved_weights(reference)
    assert weights.keys() == expected.keys()
    for key, value in expected.items():
        # Adam divides by the size of the gradient. Where that is nearly zero, rounding affects the step.
        torch.testing.assert_close(weights[key], value, rtol=1e-3, atol=1e-3, msg=key)


def assert_same_log(run: Any, reference: Any, tolerance: float) -> None:
    """Assert that losses and norms agree with a reference run of one process."""
    for line, expected in zip(run.metrics, reference.metrics, strict=True):
        for key in expected:
            if key.startswith(("loss", "grad_norm", "eval/", "scale_norm")):
                assert line[key] == pytest.approx(expected[key], rel=tolerance, abs=tolerance), (line["step"], key)
