"""Two processes on this machine that speak gloo, each in an interpreter of its own."""

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


def together(work: Callable[..., None], folder: Path, *given: Any) -> None:
    """Call `work(rank, folder, *given)` in two processes of one group; it must be importable.

    Raises:
        torch.multiprocessing.ProcessRaisedException: what either of them raised.
    """
    mp.spawn(_process, (work, folder, given), nprocs=WORLD)


def _process(rank: int, work: Callable[..., None], folder: Path, given: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    os.environ["MASTER_ADDR"] = "127.0.0.1"  # accelerate asks for one; the processes meet at a file
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    work(rank, folder, *given)
    dist.barrier()
    dist.destroy_process_group()
    # Gloo's threads outlive their group, and an interpreter that winds down beside them aborts now and then.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def in_two(recipe: dict[str, Any], **training: Any) -> dict[str, Any]:
    """The recipe for two processes that together take the same batches."""
    size = recipe["training"]["per_device_train_batch_size"] // 2
    changed = recipe["training"] | {"per_device_train_batch_size": size} | training
    return recipe | {"training": changed, "output_dir": recipe["output_dir"] + "-spread"}


def accelerated(
    config: str | Path, recipe: dict[str, Any], *options: str, arguments: Sequence[str] = (), **environment: str
) -> tuple[int, str]:
    """Train a recipe in two processes with a shipped config of accelerate's.

    Args:
        config: file under recipes/accelerate, or one elsewhere
        recipe: as from `in_two`
        options: of `multilora train`
        arguments: of `accelerate launch`
        environment: further variables

    Returns:
        exit code, and both streams of output
    """
    path = Path(recipe["output_dir"] + ".json")
    path.write_text(json.dumps(recipe))  # JSON is YAML
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
    launch += ["--config_file", str(REPOSITORY / "recipes" / "accelerate" / config), *arguments]
    script = str(REPOSITORY / "tests" / "training" / "accelerate_on_cpu.py")
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    done = subprocess.run(
        [*launch, script, "train", str(path), *options], capture_output=True, text=True, env=variables
    )
    return done.returncode, done.stdout + done.stderr


def weights_of(run: Any) -> dict[str, torch.Tensor]:
    """What a run has saved."""
    (file,) = run.weights.glob("*.safetensors")
    return load_file(file)


def assert_same_course(run: Any, whole: Any, tolerance: float) -> None:
    """Losses, norms and what is saved agree with the run of a single process."""
    assert_same_log(run, whole, tolerance)
    mine, theirs = weights_of(run), weights_of(whole)
    assert mine.keys() == theirs.keys()
    for key, value in theirs.items():
        # Adam divides by the size of the gradient: where that is nearly zero, rounding decides a part of the step.
        torch.testing.assert_close(mine[key], value, rtol=1e-3, atol=1e-3, msg=key)


def assert_same_log(run: Any, whole: Any, tolerance: float) -> None:
    """Losses and norms agree with the run of a single process."""
    for ours, theirs in zip(run.metrics, whole.metrics, strict=True):
        for key in theirs:
            if key.startswith(("loss", "grad_norm", "eval/", "scale_norm")):
                assert ours[key] == pytest.approx(theirs[key], rel=tolerance, abs=tolerance), (ours["step"], key)
