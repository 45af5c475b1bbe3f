"""Step time, memory saved for backward, and their ratios: frozen base, PEFT LoRA, branch-by-branch MultiLoRA, ours.

Each configuration trains the same small LLaMA; rounds are interleaved so that a slow moment of the machine hits all;
medians are reported. Ratios within one run are what counts; the seconds belong to the machine.

Run: python benchmarks/adapter.py [--rounds 15] [--out benchmarks/results/adapter.md]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from multilora import MultiLoraConfig

LAYERS, HIDDEN, MLP, BATCH, LENGTH, BRANCHES, RANK = 4, 1024, 2816, 2, 512, 3, 32


def make_base() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=16,
        max_position_embeddings=LENGTH,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16).requires_grad_(False)
    # As under an adapter below: gradients flow to the first layer's input.
    model.model.embed_tokens.register_forward_hook(lambda _, __, output: output.requires_grad_())
    return model.train()


class BranchByBranch(nn.Module):
    """The published form: every branch a module of its own."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        d_in, d_out = base.in_features, base.out_features
        self.A = nn.ModuleList(nn.Linear(d_in, RANK, bias=False) for _ in range(BRANCHES))
        self.B = nn.ModuleList(nn.Linear(RANK, d_out, bias=False) for _ in range(BRANCHES))
        self.s = nn.ParameterList(nn.Parameter(torch.zeros(d_out)) for _ in range(BRANCHES))
        self.to(base.weight.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base(x)
        for A, B, s in zip(self.A, self.B, self.s, strict=True):
            y = y + B(A(x)) * s
        return y


def branch_by_branch() -> Any:
    model = make_base()
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, BranchByBranch(child))
    return model


def adapted(config: Any, dtype: torch.dtype | None = None) -> Any:
    model = get_peft_model(make_base(), config)
    if dtype is not None:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
    return model


def variants() -> dict[str, Any]:
    total = BRANCHES * RANK
    lora = {"r": total, "lora_alpha": total, "target_modules": "all-linear"}
    ours = MultiLoraConfig(r=RANK, num_branches=BRANCHES, target_modules="all-linear")
    return {
        "frozen base": make_base(),
        f"PEFT LoRA r={total}, float32 (its default)": adapted(LoraConfig(**lora)),
        f"PEFT LoRA r={total}, bfloat16": adapted(LoraConfig(**lora), torch.bfloat16),
        f"MultiLoRA {BRANCHES}x{RANK}, branch by branch, bfloat16": branch_by_branch(),
        f"MultiLoRA {BRANCHES}x{RANK}, ours, float32": adapted(ours),
    }


def step(model: Any, ids: torch.Tensor) -> None:
    model(input_ids=ids, labels=ids).loss.backward()
    for parameter in model.parameters():
        parameter.grad = None


def saved_bytes(model: Any, ids: torch.Tensor) -> int:
    """Bytes of distinct tensors that autograd keeps for backward, parameters left out."""
    owned = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=ids).loss
    total = sum(kept.values())
    loss.backward()
    return total


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    models = variants()
    ids = torch.randint(0, 1024, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    saved = {name: saved_bytes(model, ids) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(arguments.rounds):
        for name, model in models.items():
            start = time.perf_counter()
            step(model, ids)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    base, linears = "frozen base", LAYERS * 7
    lines = [
        f"{LAYERS} layers, hidden {HIDDEN}, MLP {MLP}, bfloat16 base, {BATCH} x {LENGTH} tokens, "
        f"{arguments.rounds} rounds; torch {torch.__version__}, {platform.machine()}, "
        f"{torch.get_num_threads()} threads",
        "",
        "| | step (s) | x base | saved above base, bytes per token and linear |",
        "|---|---|---|---|",
    ]
    for name, median in medians.items():
        extra = (saved[name] - saved[base]) / (BATCH * LENGTH * linears)
        lines.append(f"| {name} | {median:.3f} | {median / medians[base]:.2f} | {extra:,.0f} |")
    table = "\n".join(lines)
    print(table)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        command = f"`python benchmarks/adapter.py --rounds {arguments.rounds}`"
        arguments.out.write_text(f"{command}\n\n{table}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
