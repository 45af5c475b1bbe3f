"""Compare step time and memory: frozen base, PEFT's LoRA, MultiLoRA branch by branch, and this library's MultiLoRA.

Memory is the peak, and the bytes saved for backward. All variants train the same LLaMA layers (same base, same total
rank). Rounds are interleaved, so a slow moment of the machine affects all variants; medians are reported. Compare
ratios within one run, since seconds depend on the machine.

Shapes: `wide` (4 layers of 1,024), `small` (24 layers of 256 and few tokens, where overhead counts), and `llama-7b` (4
layers of its sizes, 2 x 2,048 tokens; the default on a GPU).

Run: python benchmarks/adapter.py [--shape wide] [--dtype bfloat16] [--rounds 15] [--device cuda] [--compile] \
    [--out benchmarks/results/adapter.md]
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from multilora import MultiLoraConfig

BRANCHES, RANK = 3, 32
TOTAL = BRANCHES * RANK


@dataclass(frozen=True)
class Setting:
    """Sizes of the layers and of the batch, and where and how the base is computed."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    batch: int
    length: int
    device: str = "cpu"
    dtype: torch.dtype = torch.bfloat16

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    def arithmetic(self) -> float:
        """Operations of the adapted linear layers relative to the frozen ones: 1 + 1.5 n r (1/d_in + 1/d_out).

        A frozen linear layer computes two products of 2 d_in d_out operations per token (forward and input gradient).
        The branches add three pairs of products (forward, input gradient, weight gradients), of 2 n r (d_in + d_out)
        operations per pair.
        """
        shapes = [(self.hidden, self.hidden)] * 4 + [(self.hidden, self.mlp)] * 3
        extra = sum(3 * TOTAL * (d_in + d_out) for d_in, d_out in shapes)
        return 1 + extra / sum(2 * d_in * d_out for d_in, d_out in shapes)


SHAPES = {
    "wide": Setting(layers=4, hidden=1024, mlp=2816, heads=16, batch=2, length=512),
    "small": Setting(layers=24, hidden=256, mlp=704, heads=4, batch=2, length=64),
    "llama-7b": Setting(layers=4, hidden=4096, mlp=11008, heads=32, batch=2, length=2048),
    "tiny": Setting(layers=1, hidden=32, mlp=64, heads=2, batch=1, length=8),  # for a test of this program
}


def make_base(setting: Setting) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=setting.hidden,
        intermediate_size=setting.mlp,
        num_hidden_layers=setting.layers,
        num_attention_heads=setting.heads,
        max_position_embeddings=setting.length,
        use_cache=False,
    )
    # Building in float32 first would hide the peak of a step.
    torch.set_default_dtype(setting.dtype)
    try:
        model = LlamaForCausalLM(config).to(setting.device).requires_grad_(False)
    finally:
        torch.set_default_dtype(torch.float32)
    # As with an adapter: gradients flow to the first layer's input.
    model.model.embed_tokens.register_forward_hook(lambda _, __, output: output.requires_grad_())
    return model.train()


class BranchByBranch(nn.Module):
    """The published form: one module per branch."""

    def __init__(self, base: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.base = base
        d_in, d_out = base.in_features, base.out_features
        self.A = nn.ModuleList(nn.Linear(d_in, RANK, bias=False) for _ in range(BRANCHES))
        self.B = nn.ModuleList(nn.Linear(RANK, d_out, bias=False) for _ in range(BRANCHES))
        self.s = nn.ParameterList(nn.Parameter(torch.zeros(d_out)) for _ in range(BRANCHES))
        for part in (self.A, self.B, self.s):
            part.to(base.weight.device, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base(x)
        cast = x.to(self.A[0].weight.dtype)  # activations are cast to the parameters' dtype, as in PEFT
        for A, B, s in zip(self.A, self.B, self.s, strict=True):
            y = y + (B(A(cast)) * s).to(y.dtype)
        return y


def branch_by_branch(setting: Setting, dtype: torch.dtype) -> Any:
    model = make_base(setting)
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, BranchByBranch(child, dtype))
    return model


def adapted(setting: Setting, config: Any, dtype: torch.dtype | None = None) -> Any:
    model = get_peft_model(make_base(setting), config)
    if dtype is not None:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
    return model


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(r=TOTAL, lora_alpha=TOTAL, target_modules="all-linear", **options)


def multilora(**options: Any) -> MultiLoraConfig:
    return MultiLoraConfig(r=RANK, num_branches=BRANCHES, target_modules="all-linear", **options)


BASE = "frozen base"
VARIANTS: dict[str, Callable[[Setting], Any]] = {
    BASE: make_base,
    f"PEFT LoRA r={TOTAL}, float32 (its default)": lambda s: adapted(s, lora()),
    f"PEFT LoRA r={TOTAL}, bfloat16": lambda s: adapted(s, lora(), torch.bfloat16),
    f"PEFT LoRA r={TOTAL}, bfloat16, dropout": lambda s: adapted(s, lora(lora_dropout=0.05), torch.bfloat16),
    f"MultiLoRA {BRANCHES}x{RANK}, branch by branch, float32": lambda s: branch_by_branch(s, torch.float32),
    f"MultiLoRA {BRANCHES}x{RANK}, branch by branch, bfloat16": lambda s: branch_by_branch(s, torch.bfloat16),
    f"MultiLoRA {BRANCHES}x{RANK}, this library, float32": lambda s: adapted(s, multilora()),
    f"MultiLoRA {BRANCHES}x{RANK}, this library, float32, dropout": lambda s: adapted(s, multilora(lora_dropout=0.05)),
}


def variants(setting: Setting) -> list[str]:
    """Those that this base has: no bfloat16 adapter on a float32 base."""
    return [name for name in VARIANTS if setting.dtype == torch.bfloat16 or "bfloat16" not in name]


def make_ids(setting: Setting) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 1024, (setting.batch, setting.length), generator=generator).to(setting.device)


def step(model: Any, ids: torch.Tensor) -> None:
    model(input_ids=ids, labels=ids).loss.backward()
    for parameter in model.parameters():
        parameter.grad = None
    if ids.is_cuda:
        torch.cuda.synchronize()


def saved_bytes(model: Any, ids: torch.Tensor) -> int:
    """Bytes of the distinct tensors that autograd saves for backward, without parameters."""
    parameter_storages = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameter_storages:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=ids).loss
    total = sum(saved.values())
    loss.backward()
    return total


def peak_memory(name: str, setting: Setting, compiled: bool) -> float:
    """MiB that two steps need in addition to the model. Call it in a fresh process."""
    model, ids = VARIANTS[name](setting), make_ids(setting)
    if compiled:
        model = torch.compile(model)
    if ids.is_cuda:
        step(model, ids)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(model, ids)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**10
    step(model, ids)
    step(model, ids)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10


def measure(setting: Setting, rounds: int, compiled: bool) -> str:
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for name in variants(setting):
        with context.Pool(1) as pool:
            peaks[name] = pool.apply(peak_memory, (name, setting, compiled))
    ids = make_ids(setting)
    models = {name: VARIANTS[name](setting) for name in variants(setting)}
    saved = {} if compiled else {name: saved_bytes(model, ids) for name, model in models.items()}
    if compiled:
        models = {name: torch.compile(model) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for warm in [False, *[True] * rounds]:
        for name, model in models.items():
            start = time.perf_counter()
            step(model, ids)
            if warm:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    machine = (
        torch.cuda.get_device_name() if ids.is_cuda else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    lines = [
        f"{setting.layers} layers, hidden {setting.hidden}, MLP {setting.mlp}, {str(setting.dtype)[6:]} base, "
        f"{setting.batch} x {setting.length} tokens, {'compiled' if compiled else 'eager'}, {rounds} rounds; "
        f"torch {torch.__version__}, {machine}. Operations of the linear layers alone: {setting.arithmetic():.2f} x "
        "base.",
        "",
        "| | step (ms) | x base | peak above the model (MiB) | saved above base, bytes per token and linear layer |",
        "|---|---|---|---|---|",
    ]
    for name, median in medians.items():
        extra = "–" if compiled else f"{(saved[name] - saved[BASE]) / (setting.tokens * setting.layers * 7):,.0f}"
        lines.append(f"| {name} | {median * 1e3:.1f} | {median / medians[BASE]:.2f} | {peaks[name]:,.0f} | {extra} |")
    reference = medians[f"MultiLoRA {BRANCHES}x{RANK}, this library, float32"]
    lines += ["", "Step time of this library (float32, no dropout) relative to:", ""]
    lines += [
        f"- {name}: {reference / median:.2f}"
        for name, median in medians.items()
        if "dropout" not in name and "this library" not in name
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, help="by default, wide on a CPU and llama-7b on a GPU")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="dtype of the base")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    shape = arguments.shape or ("wide" if arguments.device == "cpu" else "llama-7b")
    setting = replace(SHAPES[shape], device=arguments.device, dtype=getattr(torch, arguments.dtype))
    table = measure(setting, arguments.rounds, arguments.compile)
    print(table)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        flags = f"--shape {shape} --dtype {arguments.dtype} --rounds {arguments.rounds} --device {arguments.device}"
        command = f"`python benchmarks/adapter.py {flags}{' --compile' if arguments.compile else ''}`"
        arguments.out.write_text(f"{command}\n\n{table}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
