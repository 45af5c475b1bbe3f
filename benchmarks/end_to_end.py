"""Train the same model on the same examples through this library and through others, end to end.

Every run is a process of its own, from the imports to the last step, and the runs take turns. All have the same base,
examples, total rank, constant learning rate, rows per step and maximum length; the loss counts responses only. Each run
stops at the first step after the same number of trained tokens, and then the same held-out examples are scored in the
same way. Reported: tokens and trained tokens per second (from the second step on), processor time of the whole process,
the time until the first step has ended, the peak memory of the process, and the loss on the held-out examples.

Rows: this library with MultiLoRA and with LoRA; TRL's SFTTrainer with PEFT's LoRA, whose adapter is in float32, and,
for a bfloat16 base, also in bfloat16; LLaMA-Factory and ms-swift, where the Python of an environment with one of them
is given. Packed rows: `packing: true` here, `packing=True` in TRL, `neat_packing` in LLaMA-Factory; ms-swift packs only
with FlashAttention, so its rows stay padded. See end_to_end_peers.py for the settings of the other libraries.

Run: python benchmarks/end_to_end.py --model DIR --data GSM8K_FOLDER [--dtype bfloat16] [--packing] [--rounds 3] \
    [--llamafactory-python PYTHON] [--ms-swift-python PYTHON] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

BRANCHES, RANK = 3, 8
TOTAL = BRANCHES * RANK
HELD_OUT = 64
CARRIED = (
    "model", "data", "dtype", "device", "tokens", "max_steps", "batch", "length", "learning_rate", "threads",
    "examples",
)  # fmt: skip
VARIANTS = {
    "multilora": "MultiLoRA 3x8, this library",
    "lora": "LoRA r=24, this library",
    "trl": "LoRA r=24, TRL + PEFT",
    "trl-bfloat16": "LoRA r=24 in bfloat16, TRL + PEFT",
    "llamafactory": "LoRA r=24, LLaMA-Factory",
    "ms-swift": "LoRA r=24, ms-swift",
}
PEERS = ("llamafactory", "ms-swift")  # each run by the Python of an environment of its own


def examples(folder: Path, seed: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training and held-out examples of GSM8K as prompt and response; the order depends on the seed."""
    found: list[list[dict[str, str]]] = []
    for split in ("train", "test"):
        lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        found.append([{"prompt": f"{r['question']}\n", "completion": r["answer"]} for r in records])
    random.Random(seed).shuffle(found[0])
    return found[0], found[1][:HELD_OUT]


class Clock:
    """Times and tokens of the steps of a Trainer, which it stops after `budget` trained tokens and two steps."""

    def __init__(self, budget: int) -> None:
        from transformers import TrainerCallback

        clock = self
        self.model: Any = None
        self.ends: list[float] = []
        self.tokens: list[tuple[int, int]] = []  # of every step: all, trained

        class Callback(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, _: Any, __: Any, control: Any, **___: Any) -> None:
                clock.ends.append(time.perf_counter())
                control.should_training_stop = clock.trained >= budget and len(clock.ends) > 1

        self.callback = Callback()

    @property
    def trained(self) -> int:
        return sum(trained for _, trained in self.tokens)

    def count(self, trainer_class: Any) -> None:
        """Count the tokens of every batch that a trainer of this class trains on, and keep its model."""
        plain = trainer_class.training_step

        def counted(trainer: Any, model: Any, inputs: Any, *rest: Any) -> Any:
            labels = inputs["labels"]
            mask = inputs.get("attention_mask")
            if mask is not None and mask.ndim == 4:  # added to the scores, so zero where a token sees itself
                mask = mask.diagonal(dim1=-2, dim2=-1) == 0
            every = labels.numel() if mask is None else int(mask.sum())
            self.tokens.append((every, int((labels != -100).sum())))
            self.model = trainer.model
            return plain(trainer, model, inputs, *rest)

        trainer_class.training_step = counted


def train_ours(options: argparse.Namespace, folder: Path, clock: Clock) -> None:
    """Train through the recipe."""
    import multilora
    from multilora.training.trainer import MultiTaskTrainer

    clock.count(MultiTaskTrainer)
    adapter: dict[str, Any] = {"method": "lora", "r": TOTAL}
    if options.variant == "multilora":
        adapter = {"method": "multilora", "r": RANK, "num_branches": BRANCHES}
    recipe = {
        "model": {"name_or_path": str(options.model), "dtype": options.dtype},
        "adapter": {**adapter, "target_modules": "all-linear"},
        "tasks": [
            {
                "name": "gsm",
                "path": str(folder / "train.jsonl"),
                "prompt": "{{ prompt }}",
                "response": "{{ completion }}",
            }
        ],
        "data": {"max_length": options.length, "packing": options.packing, "template": "question"},
        "training": {**schedule(options), "save_strategy": "no"},
        "output_dir": str(folder / "run"),
    }
    multilora.train(recipe, callbacks=[clock.callback])


def schedule(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments that all trainers get."""
    return {
        "max_steps": options.max_steps,
        "per_device_train_batch_size": options.batch,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "seed": options.seed,
        "logging_steps": 10,
        "dataloader_pin_memory": False,
    }


def held_out_loss(model: Any, tokenizer: Any, records: Sequence[dict[str, str]], length: int) -> float:
    """Mean loss per token of the responses and their end."""
    import torch

    model.eval()
    total, count = 0.0, 0
    for record in records:
        prompt = tokenizer(record["prompt"])["input_ids"]
        response = tokenizer(record["completion"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        ids = torch.tensor([(prompt + response)[:length]], device=model.device)
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
        targets = ids[0, len(prompt) :]
        total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        count += len(targets)
    return total / count


def child(options: argparse.Namespace) -> None:
    """One run; prints its figures as JSON."""
    start = time.perf_counter()
    import end_to_end_peers
    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(options.threads)
    clock = Clock(options.tokens)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train, held_out = examples(options.data, options.seed)
        rows = [json.dumps(record) for record in train[: options.examples]]
        (folder / "train.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        if options.variant in ("multilora", "lora"):
            train_ours(options, folder, clock)
        else:
            end_to_end_peers.train(options, folder, clock, schedule(options), TOTAL)
        used = sum(os.times()[:2])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated() / 2**20
        loss = held_out_loss(clock.model, AutoTokenizer.from_pretrained(options.model), held_out, options.length)
    if clock.trained < options.tokens:
        raise SystemExit(f"{clock.trained} trained tokens after {len(clock.ends)} steps; use a higher --max-steps")
    seconds = clock.ends[-1] - clock.ends[0]
    after_first = clock.tokens[1:]
    figures: dict[str, Any] = {
        "tokens_per_second": sum(every for every, _ in after_first) / seconds,
        "trained_per_second": sum(trained for _, trained in after_first) / seconds,
        "trained": clock.trained,
        "steps": len(clock.ends),
        "processor": used,
        "first_step": clock.ends[0] - start,
        "peak_mib": peak,
        "loss": loss,
    }
    if options.variant in PEERS:
        figures["versions"] = end_to_end_peers.versions(options.variant)
    print("FIGURES " + json.dumps(figures), flush=True)


def python_of(options: argparse.Namespace, variant: str) -> str | None:
    """The Python that runs the variant; none if it is not to be measured."""
    return getattr(options, f"{variant.replace('-', '_')}_python") if variant in PEERS else sys.executable


def run(options: argparse.Namespace, variant: str, seed: int) -> dict[str, Any]:
    """The figures of one run in a fresh process."""
    command = [str(python_of(options, variant)), __file__, "--variant", variant, "--seed", str(seed)]
    for name in CARRIED:
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    command += ["--packing"] if options.packing else []
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FIGURES ")]
    if done.returncode or not lines:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(lines[-1].removeprefix("FIGURES "))


def table(options: argparse.Namespace, results: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: medians, and ratios to TRL with a float32 adapter."""
    medians = {
        name: {key: statistics.median(figures[key] for figures in runs) for key in runs[0] if key != "versions"}
        for name, runs in results.items()
    }
    reference = medians["trl"]
    kind = "packed" if options.packing else "padded"
    peers = [name for name in results if name in PEERS]
    versions = [f"{label} {version(label.lower())}" for label in ("torch", "TRL", "PEFT")]
    versions += [results[name][0]["versions"] for name in peers]
    lines = [
        f"`python benchmarks/end_to_end.py --model {Path(options.model).name} --dtype {options.dtype} --tokens "
        f"{options.tokens} --batch {options.batch} --length {options.length} --learning-rate {options.learning_rate:g} "
        f"--rounds {options.rounds}"
        f"{' --packing' if options.packing else ''}{''.join(f' --{name}-python PYTHON' for name in peers)}` on "
        f"{platform.machine()}, {options.device}, {options.threads} threads, {', '.join(versions)}",
        "",
        f"| {kind} | tokens/s | x TRL | trained tokens/s | x TRL | peak MiB | x TRL | first step s | processor s | "
        "steps | trained tokens | held-out loss |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, figures in medians.items():
        losses = [one["loss"] for one in results[name]]
        spread = f" ±{statistics.stdev(losses):.3f}" if len(losses) > 1 else ""
        cells = [VARIANTS[name] + (", padded" if options.packing and name == "ms-swift" else "")]
        for key in ("tokens_per_second", "trained_per_second", "peak_mib"):
            cells += [f"{figures[key]:,.0f}", f"{figures[key] / reference[key]:.2f}"]
        cells += [f"{figures['first_step']:.1f}", f"{figures['processor']:.0f}"]
        cells += [f"{figures['steps']:.0f}", f"{figures['trained']:,.0f}"]
        cells.append(f"{statistics.mean(losses):.3f}{spread}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with GSM8K's train.jsonl and test.jsonl")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=20_000, help="trained tokens after which a run stops")
    parser.add_argument("--max-steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llamafactory-python", help="Python of an environment with LLaMA-Factory")
    parser.add_argument("--ms-swift-python", help="Python of an environment with ms-swift")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        child(options)
        return
    names = [name for name in VARIANTS if python_of(options, name)]
    if options.dtype != "bfloat16":
        names.remove("trl-bfloat16")
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for seed in range(options.rounds):
        for name in names:
            results[name].append(run(options, name, seed))
            print(name, seed, json.dumps(results[name][-1]), file=sys.stderr, flush=True)
    text = table(options, results)
    print(text)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
