"""Where a training step spends its time: torch's profiler over some steps of an ordinary run, by kind of operation.

A run with MultiLoRA on GSM8K is profiled after its first steps. Every operation counts its own time, without that of
the operations it calls; `outside of operations` is the wall time of the steps that no operation accounts for: Python,
the data loader, callbacks. With one thread, the parts add up to the wall time.

Run: python benchmarks/profile_step.py --model DIR --data GSM8K_FOLDER [--dtype float32] [--packing] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

import multilora

SKIPPED = 3
KINDS = {
    "matrix products": ("mm", "addmm", "addmm_", "bmm", "baddbmm", "matmul", "linear", "mkldnn", "dot"),
    "attention": ("attention", "flash"),
    "optimizer and gradient norm": ("_foreach", "fused_adam", "adam", "optimizer", "norm_except", "linalg_vector_norm"),
    "loss and softmax": ("softmax", "logsumexp", "nll", "cross_entropy", "gather", "log"),
    "copies and new tensors": (
        "copy", "cat", "empty", "fill", "zero", "clone", "contiguous", "to", "index", "embedding", "stack", "new",
        "resize", "set",
    ),
    "views": (
        "view", "reshape", "transpose", "t", "slice", "select", "expand", "unsqueeze", "squeeze", "as_strided",
        "detach", "alias", "permute", "split", "narrow", "unflatten", "flatten",
    ),
}  # fmt: skip


def kind_of(name: str) -> str:
    """The kind of an operation of the profiler, such as `aten::addmm`."""
    short = name.removeprefix("aten::").lower()
    for kind, parts in KINDS.items():
        for part in parts:
            if short == part or (len(part) > 3 and part in short) or short.split("_")[0] == part:
                return kind
    return "element-wise operations and sums" if name.startswith("aten::") else "autograd and other operations"


class Profiler(TrainerCallback):  # type: ignore[misc]
    """Profiles the steps after the first `SKIPPED`."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.profile = profile(activities=[ProfilerActivity.CPU])
        self.seconds = 0.0

    def on_step_end(self, _: Any, state: Any, __: Any, **___: Any) -> None:
        if state.global_step == SKIPPED:
            self.profile.__enter__()
            self.seconds = time.perf_counter()
        elif state.global_step == SKIPPED + self.steps:
            self.seconds = time.perf_counter() - self.seconds
            self.profile.__exit__(None, None, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of GSM8K")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--top", type=int, default=12, help="single operations to list")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    profiler = Profiler(options.steps)
    with tempfile.TemporaryDirectory() as folder:
        multilora.train(
            {
                "model": {"name_or_path": str(options.model), "dtype": options.dtype},
                "tasks": [{"name": "gsm8k", "path": str(options.data), "max_examples": 1000}],
                "data": {"max_length": options.length, "packing": options.packing},
                "training": {
                    "max_steps": SKIPPED + options.steps,
                    "per_device_train_batch_size": options.batch,
                    "save_strategy": "no",
                },
                "output_dir": f"{folder}/run",
            },
            callbacks=[profiler],
        )
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        tokens = max(json.loads(line).get("num_input_tokens_seen", 0) for line in lines)
    events = profiler.profile.key_averages()
    kinds: dict[str, list[float]] = {}
    for event in events:
        entry = kinds.setdefault(kind_of(event.key), [0.0, 0])
        entry[0] += event.self_cpu_time_total / 1e6
        entry[1] += event.count
    inside = sum(seconds for seconds, _ in kinds.values())
    if options.threads == 1:
        kinds["outside of operations"] = [max(profiler.seconds - inside, 0.0), 0]
    text = [
        f"`python benchmarks/profile_step.py --model {options.model.name} --dtype {options.dtype} --batch "
        f"{options.batch} --length {options.length} --steps {options.steps} --threads {options.threads}"
        f"{' --packing' if options.packing else ''}` on {platform.machine()}, torch {torch.__version__}: "
        f"{profiler.seconds / options.steps:.2f} s per step" + (f", {tokens:,} tokens in all" if tokens else ""),
        "",
        "| kind | ms per step | share | operations per step |",
        "|---|---|---|---|",
    ]
    for kind, (seconds, count) in sorted(kinds.items(), key=lambda item: -item[1][0]):
        share = seconds / profiler.seconds
        text.append(f"| {kind} | {seconds / options.steps * 1e3:,.1f} | {share:.0%} | {count / options.steps:,.0f} |")
    text += ["", "| operation | ms per step | calls per step |", "|---|---|---|"]
    for event in sorted(events, key=lambda event: -event.self_cpu_time_total)[: options.top]:
        per_step = event.self_cpu_time_total / 1e3 / options.steps
        text.append(f"| `{event.key}` | {per_step:,.1f} | {event.count / options.steps:,.0f} |")
    table = "\n".join(text) + "\n"
    print(table)
    if options.out is not None:
        options.out.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
