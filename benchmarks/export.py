"""Peak memory and time of `export --to merged`: shard by shard, against merging the whole model in memory.

The base is a random LLaMA in several shards, the adapter a random MultiLoRA. Each path runs in a process of its own.
Memory is the peak of what the process keeps above what it had after the imports, as a multiple of the largest adapted
weight in float32 (in which it is merged) and of the size of the model's files. The proof that follows an export loads
the model, and is not part of this.

Run: python benchmarks/export.py [--hidden 1024] [--layers 12] [--dtype bfloat16] [--folder DIR] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from multilora import MultiLoraConfig
from multilora.export.merged.base_files import base_files
from multilora.export.merged.export_merged import merge_by_shards
from multilora.export.merged.in_memory import save_merged
from multilora.export.merged.tensor_files import NAMES, TensorWriter, new_layout
from multilora.export.sources.source import open_source
from multilora.files import write_json

TARGETS = {
    "linear layers": "all-linear",
    "linear layers and head": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"],
}
PATHS = ("shards", "memory")


def make_base(folder: Path, config: LlamaConfig, dtype: torch.dtype, shard_size: int) -> None:
    """Write a random LLaMA, tensor by tensor."""
    config.dtype, config.architectures = dtype, ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(config).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    shards: list[dict[str, tuple[str, tuple[int, ...]]]] = [{}]
    used = 0
    for key, shape in shapes.items():
        size = torch.Size(shape).numel() * dtype.itemsize
        if shards[-1] and used + size > shard_size:
            shards.append({})
            used = 0
        shards[-1][key] = (NAMES[dtype], shape)
        used += size
    weight_map = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(tensors, name)
        with TensorWriter(folder / name, new_layout(folder / name, tensors, {"format": "pt"})) as writer:
            for key, (_, shape) in tensors.items():
                value = torch.ones(shape) if len(shape) == 1 else torch.randn(shape) * 0.02
                writer.write(key, value.to(dtype))
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def make_adapter(folder: Path, base: Path, targets: Any) -> int:
    """Write a random MultiLoRA of r = 8 with 3 branches; returns the size of the largest adapted weight in float32."""
    config = LlamaConfig.from_pretrained(base)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.name_or_path = str(base)
    adapter = MultiLoraConfig(target_modules=targets, task_type="CAUSAL_LM")
    adapter.base_model_name_or_path = str(base)
    model = get_peft_model(model, adapter)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    adapter.save_pretrained(str(folder))
    save_file(
        {key: 0.02 * torch.randn(value.shape) for key, value in state.items()}, folder / "adapter_model.safetensors"
    )
    layers = [module for module in model.modules() if hasattr(module, "multilora_A")]
    return max(4 * layer.in_features * layer.out_features for layer in layers)


def memory(field: str) -> int:
    """A value of this process in bytes: VmRSS, what it keeps now, or VmHWM, the peak since it was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measure(path: str, adapter: Path) -> None:
    """Export in this process, and print the peak memory and the seconds."""
    torch.set_num_threads(1)
    source: Any = open_source(adapter)
    with tempfile.TemporaryDirectory(dir=adapter.parent) as out:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before, start = memory("VmRSS"), time.perf_counter()
        if path == "shards":
            merge_by_shards(source, Path(out))
        else:
            save_merged(source.load_model(), Path(out))
        seconds = time.perf_counter() - start
        print(json.dumps({"peak": memory("VmHWM") - before, "seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--folder", type=Path, help="for the models; by default, a temporary one")
    parser.add_argument("--out", type=Path, help="Markdown file for the result")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure[0], Path(args.measure[1]))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        text = report(args, Path(place))
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


def report(args: argparse.Namespace, place: Path) -> str:
    """Measure all paths, and return the table."""
    config = LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 11 // 4,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
    )
    base = place / "base"
    make_base(base, config, getattr(torch, args.dtype), 200 * 2**20)
    files = base_files(str(base))
    command = " ".join(["python", "benchmarks/export.py", *(item for item in sys.argv[1:])])
    lines = [
        f"`{command}`",
        "",
        f"LLaMA of {files.size / 2**20:,.0f} MiB in {len(files.shards)} shards of {args.dtype}: hidden {args.hidden}, "
        f"{args.layers} layers, vocabulary {args.vocabulary:,}; MultiLoRA 3 x 8; torch {torch.__version__}, "
        f"{platform.machine()}, CPU, 1 thread.",
        "",
        "| adapted | path | peak (MiB) | of the largest adapted weight in float32 | of the model's files | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name, targets in TARGETS.items():
        adapter = place / name.replace(" ", "_")
        largest = make_adapter(adapter, base, targets)
        for path in PATHS:
            process = [sys.executable, __file__, "--measure", path, str(adapter)]
            output = subprocess.run(process, check=True, capture_output=True, text=True).stdout
            result = json.loads(output.splitlines()[-1])
            lines.append(
                f"| {name} | {path} | {result['peak'] / 2**20:,.0f} | {result['peak'] / largest:.1f} x "
                f"{largest / 2**20:,.0f} MiB | {result['peak'] / files.size:.2f} x | {result['seconds']:.1f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
