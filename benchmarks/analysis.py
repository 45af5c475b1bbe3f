"""Time and memory of `analyze`: from factors against dense decompositions, and for a pair of full checkpoints.

1. A MultiLoRA with the shapes of LLaMA-7B (32 layers, all linear layers, n = 3, r = 32) with random factors is analysed
   from its file. The time of dense decompositions of the same matrices is extrapolated: one matrix of each shape is
   decomposed, by `torch.linalg.svdvals` in float64, and its time multiplied by the number of such matrices.
2. A pair of random LLaMA checkpoints in several shards is analysed, with the largest singular values at random, and
   with less address space left than one of the checkpoints has bytes.

Every analysis runs in a process of its own. Memory is the peak above what the process kept after the imports.

Run: python benchmarks/analysis.py [--hidden 2048] [--layers 8] [--folder DIR] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from export import make_base, memory
from transformers import LlamaConfig

from multilora.analysis.compare import Options, analyze_updates
from multilora.analysis.sources import open_updates
from multilora.export.merged.tensor_files import TensorWriter, new_layout
from multilora.files import write_json

HIDDEN, INNER, LAYERS = 4096, 11008, 32  # of LLaMA-7B
BRANCHES, RANK, RANDOMISED = 3, 32, 32
# Module -> (d_out, d_in).
MODULES = {
    **{f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"},
    **{f"mlp.{name}_proj": (INNER, HIDDEN) for name in ("gate", "up")},
    "mlp.down_proj": (HIDDEN, INNER),
}
PREFIX = "base_model.model.model.layers"


def make_adapter(folder: Path, layers: int = LAYERS) -> None:
    """Write a MultiLoRA with random factors, tensor by tensor."""
    folder.mkdir()
    config = {"peft_type": "MULTILORA", "r": RANK, "num_branches": BRANCHES, "task_type": "CAUSAL_LM"}
    write_json(folder / "adapter_config.json", {**config, "base_model_name_or_path": "none", "lora_alpha": RANK})
    total = BRANCHES * RANK
    tensors = {}
    for layer in range(layers):
        for module, (d_out, d_in) in MODULES.items():
            name = f"{PREFIX}.{layer}.{module}"
            tensors[f"{name}.multilora_A"] = ("F32", (total, d_in))
            tensors[f"{name}.multilora_B"] = ("F32", (d_out, total))
            tensors[f"{name}.multilora_scale"] = ("F32", (d_out, BRANCHES))
    file = folder / "adapter_model.safetensors"
    with TensorWriter(file, new_layout(file, tensors, {"format": "pt"})) as writer:
        for name, (_, shape) in tensors.items():
            writer.write(name, 0.02 * torch.randn(shape))


def dense_seconds() -> dict[str, float]:
    """Shape -> seconds of one dense decomposition."""
    seconds = {}
    for d_out, d_in in sorted(set(MODULES.values())):
        matrix = torch.randn(d_out, d_in, dtype=torch.float64)
        start = time.perf_counter()
        torch.linalg.svdvals(matrix)
        seconds[f"{d_out} x {d_in}"] = time.perf_counter() - start
    return seconds


def measure(source: str, base: str | None, left: int | None) -> None:
    """Analyse in this process, and print the seconds and the peak memory.

    Args:
        source: an adapter, or a model with a base
        base: of a model
        left: bytes of address space that the process may still take
    """
    options = Options(randomised=None if base is None else RANDOMISED)
    torch.linalg.svdvals(torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64))[1])  # starts the threads
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory("VmRSS")
    if left is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + left,) * 2)
    start = time.perf_counter()
    opened = open_updates(source, base=base)
    spectrum = analyze_updates([opened], options=options).spectra[opened.label]
    seconds = time.perf_counter() - start
    residual = max(matrix.residual / matrix.measures.norm for matrix in spectrum.matrices)
    result = {"matrices": len(spectrum.matrices), "seconds": seconds, "peak": memory("VmHWM") - before}
    print(json.dumps({**result, "residual": residual}))


def in_process(*arguments: str) -> dict[str, float]:
    output = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True).stdout
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


def factors_report(place: Path) -> list[str]:
    """Measure part 1."""
    make_adapter(place / "adapter")
    size = (place / "adapter" / "adapter_model.safetensors").stat().st_size
    cost = in_process("--measure", str(place / "adapter"))
    dense = dense_seconds()
    count = {shape: LAYERS * sum(f"{o} x {i}" == shape for o, i in MODULES.values()) for shape in dense}
    total = sum(count[shape] * seconds for shape, seconds in dense.items())
    largest = 4 * BRANCHES * RANK * (INNER + HIDDEN)
    lines = [
        "## From factors",
        "",
        f"MultiLoRA {BRANCHES} x {RANK} on all linear layers of LLaMA-7B's shapes: {cost['matrices']:.0f} matrices, "
        f"{size / 2**20:,.0f} MiB of float32.",
        "",
        "| | seconds | peak (MiB) |",
        "|---|---|---|",
        f"| `analyze`, all matrices, with branches | {cost['seconds']:.1f} | {cost['peak'] / 2**20:,.0f} |",
    ]
    lines += [f"| dense, one matrix of {shape} ({count[shape]} of them) | {dense[shape]:.1f} | |" for shape in dense]
    lines.append(f"| dense, all matrices (extrapolated) | {total:,.0f} | |")
    ratio, layers = total / cost["seconds"], cost["peak"] / largest
    return [
        *lines,
        "",
        f"`analyze` is {ratio:,.0f} times as fast; its peak is {layers:.1f} times the factors of the largest layer.",
    ]


def pair_report(place: Path, args: argparse.Namespace) -> list[str]:
    """Measure part 2."""
    config = LlamaConfig(
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 11 // 4,
        num_hidden_layers=args.layers,
        num_attention_heads=16,
        vocab_size=32_000,
    )
    for name in ("before", "after"):
        make_base(place / name, config, torch.bfloat16, 200 * 2**20)
    size = sum(file.stat().st_size for file in (place / "before").glob("*.safetensors"))
    left = size * 3 // 4
    cost = in_process("--measure", str(place / "after"), "--base", str(place / "before"), "--left", str(left))
    largest = 4 * args.hidden * config.intermediate_size
    return [
        "## A pair of full checkpoints",
        "",
        f"Two LLaMA checkpoints of {size / 2**20:,.0f} MiB each (bfloat16, hidden {args.hidden}, {args.layers} layers, "
        f"{cost['matrices']:.0f} matrices), the largest {RANDOMISED} singular values of each at random, with "
        f"{left / 2**20:,.0f} MiB of address space left after the imports: {cost['seconds']:.0f} seconds, peak "
        f"{cost['peak'] / 2**20:,.0f} MiB, {cost['peak'] / largest:.1f} times the largest matrix in float32. The "
        f"differences are random: {RANDOMISED} values leave out up to {100 * cost['residual']:.0f} % of the norm of a "
        "matrix, as the analysis says.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="for the models; by default, a temporary one")
    parser.add_argument("--out", type=Path, help="Markdown file for the result")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--base", help=argparse.SUPPRESS)
    parser.add_argument("--left", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure, args.base, args.left)
        return
    command = " ".join(["python", "benchmarks/analysis.py", *sys.argv[1:]])
    machine = f"torch {torch.__version__}, {platform.machine()}, CPU, {torch.get_num_threads()} threads."
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        parts = [*factors_report(Path(place)), "", *pair_report(Path(place), args)]
    text = "\n".join([f"`{command}`", "", machine, "", *parts])
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
