"""Peak memory and time of the loss with a vocabulary of 128,000: full logits against chunked logits.

`full` is what a causal language model does by default: all logits in float32, then torch's cross-entropy. `chunked`
is this library's `linear_cross_entropy`. Both run forward and backward from the same hidden states to per-token losses,
each in a fresh process, with a frozen output head (as with an adapter) and with a trained one. Memory is what a step
needs in addition to its inputs, parameters and their gradients.

Run: python benchmarks/loss.py [--tokens 8192] [--hidden 512] [--dtype float32] [--device cuda] [--out FILE]
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from multilora.loss.linear_cross_entropy import linear_cross_entropy


@dataclass(frozen=True)
class Setting:
    """Sizes of the batch and of the head."""

    device: str
    dtype: str
    tokens: int
    hidden: int
    vocabulary: int
    rounds: int


def full(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none")


def chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return linear_cross_entropy(hidden, weight, None, targets)


PATHS = {"full": full, "chunked": chunked}


def make_inputs(setting: Setting, trained: bool) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, setting.dtype)
    hidden = torch.randn(setting.tokens, setting.hidden, generator=generator)
    weight = torch.randn(setting.vocabulary, setting.hidden, generator=generator) / setting.hidden**0.5
    targets = torch.randint(0, setting.vocabulary, (setting.tokens,), generator=generator)
    hidden, weight = (part.to(setting.device, dtype) for part in (hidden, weight))
    # Allocate the gradients beforehand, as in training, so that they do not count as memory of the loss.
    hidden.requires_grad_().grad = torch.zeros_like(hidden)
    if trained:
        weight.requires_grad_().grad = torch.zeros_like(weight)
    return hidden, weight, targets.to(setting.device)


def step(path: str, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    for part in inputs[:2]:
        if part.grad is not None:
            part.grad.zero_()
    losses = PATHS[path](*inputs)
    losses.mean().backward()
    if losses.is_cuda:
        torch.cuda.synchronize()
    return (losses.detach(), *(part.grad for part in inputs[:2] if part.grad is not None))


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def measure(path: str, setting: Setting, trained: bool) -> tuple[float, float]:
    """Return (MiB, median seconds) of a step. Call it in a fresh process."""
    inputs = make_inputs(setting, trained)
    warm = make_inputs(Setting(setting.device, setting.dtype, 8, 8, 8, 1), trained)
    step(path, warm)  # the libraries allocate their own memory
    if setting.device == "cuda":
        before = torch.cuda.memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
    else:
        # Reset the peak: that of creating the inputs would hide that of a step.
        Path("/proc/self/clear_refs").write_text("5")
        before = resident()
    seconds = []
    for _ in range(setting.rounds):
        start = time.perf_counter()
        step(path, inputs)
        seconds.append(time.perf_counter() - start)
    if setting.device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        status = Path("/proc/self/status").read_text()
        peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 2**10
    return peak - before, statistics.median(seconds)


def largest_difference(setting: Setting, trained: bool) -> float:
    """Largest difference of losses and gradients between the paths, relative to the largest entry of each tensor.

    Uses an eighth of the tokens.
    """
    part = Setting(setting.device, setting.dtype, setting.tokens // 8, setting.hidden, setting.vocabulary, 1)
    results = [[t.clone() for t in step(path, make_inputs(part, trained))] for path in PATHS]
    pairs = zip(*results, strict=True)
    return max(((expected - actual).abs().max() / expected.abs().max()).item() for expected, actual in pairs)


def table(setting: Setting) -> str:
    context = multiprocessing.get_context("spawn")
    machine = torch.cuda.get_device_name() if setting.device == "cuda" else f"{platform.machine()}, CPU"
    threads = torch.get_num_threads()
    lines = [
        f"{setting.tokens:,} trained tokens, vocabulary {setting.vocabulary:,}, hidden {setting.hidden:,}, "
        f"{setting.dtype}, {setting.rounds} rounds; torch {torch.__version__}, {machine}, {threads} threads.",
        "",
        "| head | logits | peak above the inputs (MiB) | full / this | seconds | this / full | largest difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for trained in (False, True):
        results = {}
        for path in PATHS:
            with context.Pool(1) as pool:
                results[path] = pool.apply(measure, (path, setting, trained))
        with context.Pool(1) as pool:
            difference = pool.apply(largest_difference, (setting, trained))
        full_peak, full_seconds = results["full"]
        for path, (peak, seconds) in results.items():
            lines.append(
                f"| {'trained' if trained else 'frozen'} | {path} | {peak:,.0f} | {full_peak / peak:.1f} | "
                f"{seconds:.2f} | {seconds / full_seconds:.2f} | {'–' if path == 'full' else f'{difference:.1e}'} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=128_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    setting = Setting(
        arguments.device,
        arguments.dtype,
        arguments.tokens,
        arguments.hidden,
        arguments.vocabulary,
        arguments.rounds,
    )
    text = table(setting)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        flags = " ".join(
            f"--{name} {getattr(arguments, name)}"
            for name in ("device", "dtype", "tokens", "hidden", "vocabulary", "rounds")
        )
        arguments.out.write_text(f"`python benchmarks/loss.py {flags}`\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
