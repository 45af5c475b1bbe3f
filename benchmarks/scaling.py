"""The estimate of `multilora estimate` against measurements: memory and time of a step on three small models.

Each model is a LLaMA with random weights in float32 and MultiLoRA 3 x 8 on all linear layers, in a process of its own.
Measured: the peak memory of a step above weights, gradients and the rest of the process, and the median time of a step
in which every token is trained on, with activations kept and with activations recomputed. Memory is measured in a
process of its own whose allocator returns freed memory at once (MALLOC_MMAP_THRESHOLD_), since the estimate is of what
is in use, not of what an allocator keeps. Estimated times use one speed: the operations per second that the middle
model reached with activations kept.

Run: python benchmarks/scaling.py [--steps 5] [--threads 2] [--out FILE]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from multilora.estimate.trace import traces
from multilora.loss.token_losses import token_losses
from multilora.modeling import attach
from multilora.recipe import Recipe
from multilora.study.memory import peak_memory, reset_peak_memory

# layers, hidden, feed-forward, rows, tokens per row
SIZES = ((4, 256, 704, 8, 256), (8, 384, 1056, 8, 256), (12, 512, 1408, 4, 512))


def config(index: int) -> LlamaConfig:
    layers, hidden, mlp, _, tokens = SIZES[index]
    return LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_attention_heads=hidden // 64,
        vocab_size=8192,
        max_position_embeddings=tokens,
    )


def recipe(index: int, folder: str) -> Recipe:
    config(index).save_pretrained(folder)
    *_, rows, tokens = SIZES[index]
    return Recipe.load(
        {
            "model": {"name_or_path": folder, "dtype": "float32"},
            "adapter": {"method": "multilora", "r": 8, "num_branches": 3, "target_modules": "all-linear"},
            "tasks": [{"name": "nano/arithmetic"}],
            "data": {"max_length": tokens},
            "training": {"per_device_train_batch_size": rows},
            "output_dir": f"{folder}/run",
        }
    )


def resident() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def measure(index: int, checkpointing: bool, steps: int) -> dict[str, float]:
    """Peak bytes above the state before the step, and seconds of a step."""
    with tempfile.TemporaryDirectory() as folder:
        plan = recipe(index, folder)
    model: Any = attach(AutoModelForCausalLM.from_config(config(index), dtype=torch.float32), plan.adapter, seed=0)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    *_, rows, tokens = SIZES[index]
    ids = torch.randint(8192, (rows, tokens))

    def step() -> None:
        losses, _ = token_losses(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids)
        torch.autograd.backward(losses.mean())

    short = ids[:1, :16]
    losses, _ = token_losses(model, {"input_ids": short, "attention_mask": torch.ones_like(short)}, short)
    torch.autograd.backward(losses.mean())
    gc.collect()
    before = resident()
    reset_peak_memory()
    step()
    peak = (peak_memory() or 0) - before
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return {"peak": peak, "seconds": statistics.median(seconds)}


def child(index: int, checkpointing: bool, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", str(index), str(int(checkpointing)), "--steps", str(options.steps)]
    command += ["--threads", str(options.threads)]

    def values(environment: dict[str, str]) -> dict[str, float]:
        done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environment})
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found

    returned_at_once = {"MALLOC_MMAP_THRESHOLD_": "100000", "MALLOC_TRIM_THRESHOLD_": "100000"}
    return {"peak": values(returned_at_once)["peak"], "seconds": values({})["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps(measure(options.child[0], bool(options.child[1]), options.steps)))
        return
    estimates, measured = [], []
    for index in range(len(SIZES)):
        with tempfile.TemporaryDirectory() as folder:
            estimates.append(traces(recipe(index, folder)))
        measured.append([child(index, checkpointing, options) for checkpointing in (False, True)])
    speed = estimates[1][0].operations / measured[1][0]["seconds"]
    lines = [
        f"`python benchmarks/scaling.py --steps {options.steps} --threads {options.threads}` on {platform.machine()}, "
        f"torch {torch.__version__}; the speed is {speed / 1e9:,.0f} x 10^9 operations per second",
        "",
        "| model | activations | memory estimated | measured | ratio | time estimated | measured | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for index, (layers, hidden, _, rows, tokens) in enumerate(SIZES):
        for kind, estimate, real in zip(("kept", "recomputed"), estimates[index], measured[index], strict=True):
            cells = [f"{layers} layers of {hidden}, {rows} x {tokens} tokens", kind]
            cells += [f"{size / 2**20:,.0f} MiB" for size in (estimate.working_bytes, real["peak"])]
            cells.append(f"{estimate.working_bytes / real['peak']:.2f}")
            seconds = estimate.operations / speed
            cells += [f"{value:.2f} s" for value in (seconds, real["seconds"])]
            cells.append(f"{seconds / real['seconds']:.2f}")
            lines.append(f"| {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
