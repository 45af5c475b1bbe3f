"""Tokenize and pack examples: speed against TRL's SFTTrainer, and how time and memory grow with the data.

`real`: the tasks of GSM8K, SuperGLUE, MMLU and Dolly, from a folder with their public files, as prompts and responses.
The two libraries take turns. Both start with an empty cache, tokenize the same examples with the same tokenizer and
pack them into rows of 1,024 tokens.

`million`: plan a generated mixture of a million short examples, in a fresh process.

Run: python benchmarks/data.py real --data DATA --model MODEL [--rounds 3]
     python benchmarks/data.py million --model MODEL [--examples 1000000]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_LENGTH = 1024
PROCESSES = 2


def real_tasks(data: Path) -> list[dict[str, Any]]:
    """Task sections of a recipe, for the tasks whose files exist in `data`."""
    superglue = {"rte": "RTE", "wic": "WiC", "cb": "CB", "copa": "COPA", "multirc": "MultiRC", "wsc": "WSC"}
    tasks = [
        {"name": "gsm8k", "path": data / "gsm8k"},
        {"name": "mmlu", "path": data / "mmlu"},
        {"name": "dolly", "path": data / "dolly15k" / "dolly.jsonl"},
        *({"name": f"superglue/{name}", "path": data / "superglue" / folder} for name, folder in superglue.items()),
    ]
    return [{**task, "path": str(task["path"])} for task in tasks if task["path"].exists()]


def recipe_of(tasks: list[dict[str, Any]], model: Path) -> dict[str, Any]:
    return {
        "model": {"name_or_path": str(model), "dtype": "float32"},
        "tasks": tasks,
        "data": {"max_length": MAX_LENGTH, "packing": True, "num_proc": PROCESSES, "template": "instruction"},
        "training": {"num_train_epochs": 1, "per_device_train_batch_size": 8},
        "output_dir": "runs/benchmark",
    }


def run_multilora(recipe: dict[str, Any]) -> tuple[float, float, int]:
    """Return (seconds, fill rate, examples) of tokenizing, mixing and packing, without reading the files."""
    from multilora.data.make_plan import make_plan
    from multilora.modeling import load_tokenizer
    from multilora.recipe import Recipe
    from multilora.tasks import make_task

    checked = Recipe.load(recipe)
    for section in checked.tasks:
        make_task(section).load("train")  # fills the cache of examples
    tokenizer = load_tokenizer(checked.model)
    start = time.perf_counter()
    plan = make_plan(checked, tokenizer, max_length=MAX_LENGTH, rows_per_step=8, max_steps=-1, epochs=1.0)
    return time.perf_counter() - start, plan.fill_rate, sum(len(task) for task in plan.tokenized.values())


def run_trl(recipe: dict[str, Any]) -> tuple[float, float, int]:
    """Return the same for SFTTrainer: one dataset of prompts and completions, packed by best-fit decreasing."""
    from datasets import Dataset, concatenate_datasets
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    from multilora.data.render import Renderer
    from multilora.modeling import load_tokenizer
    from multilora.recipe import Recipe
    from multilora.tasks import make_task

    checked = Recipe.load(recipe)
    tokenizer = load_tokenizer(checked.model)
    tokenizer.chat_template = None
    renderer = Renderer(tokenizer, "instruction")
    parts = []
    for section in checked.tasks:
        examples = make_task(section).load("train")
        prompts = [renderer.prefix_text(prompt) for prompt in examples["prompt"]]
        parts.append(Dataset.from_dict({"prompt": prompts, "completion": list(examples["response"])}))
    dataset = concatenate_datasets(parts)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    model = LlamaForCausalLM(config)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            folder,
            max_length=MAX_LENGTH,
            packing=True,
            dataset_num_proc=PROCESSES,
            use_cpu=True,
            bf16=False,
            report_to=[],
        )
        start = time.perf_counter()
        trainer = SFTTrainer(model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer)
        seconds = time.perf_counter() - start
        tokens = sum(len(ids) for ids in trainer.train_dataset["input_ids"])
        return seconds, tokens / (len(trainer.train_dataset) * MAX_LENGTH), len(dataset)


def _in_fresh_cache(library: str, recipe: dict[str, Any], folder: str) -> tuple[float, float, int]:
    os.environ["HF_DATASETS_CACHE"] = folder
    os.environ["HF_HUB_OFFLINE"] = "1"
    return {"multilora": run_multilora, "trl": run_trl}[library](recipe)


def real(data: Path, model: Path, rounds: int) -> str:
    recipe = recipe_of(real_tasks(data.resolve()), model.resolve())
    results: dict[str, list[tuple[float, float, int]]] = {"multilora": [], "trl": []}
    context = multiprocessing.get_context("spawn")
    for _ in range(rounds):
        for library, rows in results.items():
            with tempfile.TemporaryDirectory() as folder:
                rows.append(_Child(context, _in_fresh_cache, (library, recipe, folder)).result())
    names = [task["name"] for task in recipe["tasks"]]
    lines = [
        f"{len(names)} tasks ({', '.join(names)}), rows of {MAX_LENGTH} tokens, {PROCESSES} processes, {rounds} "
        f"rounds, medians; {_versions('trl')}, {platform.machine()}, {os.cpu_count()} cores.",
        "",
        "| | examples | seconds | examples per second | fill rate |",
        "|---|---|---|---|---|",
    ]
    speeds = {}
    labels = {"multilora": "multilora (tokenize, mix, pack)", "trl": "TRL SFTTrainer (tokenize, pack)"}
    for library, label in labels.items():
        seconds = statistics.median(result[0] for result in results[library])
        _, fill, examples = results[library][0]
        speeds[library] = examples / seconds
        lines.append(f"| {label} | {examples:,} | {seconds:.1f} | {examples / seconds:,.0f} | {100 * fill:.1f} % |")
    lines += ["", f"multilora / TRL, examples per second: {speeds['multilora'] / speeds['trl']:.2f}"]
    return "\n".join(lines)


class _Child:
    """A call in a fresh process, which may start processes itself (unlike the workers of a pool)."""

    def __init__(self, context: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._receiver, sender = context.Pipe()
        self._process = context.Process(target=_send, args=(sender, function, arguments))
        self._process.start()

    def result(self) -> Any:
        while self._process.is_alive() and not self._receiver.poll(1):
            pass
        if not self._receiver.poll():
            raise RuntimeError(f"the measured process exited with code {self._process.exitcode}")
        value = self._receiver.recv()
        self._process.join()
        return value


def _send(pipe: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    pipe.send(function(*arguments))


def _plan_of_many(folder: str, model: str, count: int) -> dict[str, float]:
    """Plan a generated mixture; return the time and the peak of anonymous memory (mapped files do not count)."""
    os.environ["HF_DATASETS_CACHE"] = f"{folder}/cache"
    from multilora.data.make_plan import make_plan
    from multilora.modeling import load_tokenizer
    from multilora.recipe import Recipe

    tasks = []
    for name, share in (("short", 0.7), ("long", 0.3)):
        path = Path(folder) / f"{name}.jsonl"
        if not path.exists():
            with path.open("w", encoding="utf-8") as file:
                for i in range(int(share * count)):
                    words = " ".join(f"w{(i * 7919 + k) % 997}" for k in range(8 if name == "short" else 40))
                    file.write(json.dumps({"q": f"{i} {words}", "a": f"answer {i % 1013}"}) + "\n")
        options = {"prompt": "{{ q }}", "response": "{{ a }}", "holdout": 0.01, "metric": "none"}
        tasks.append({"name": name, "path": str(path), **options})
    recipe = Recipe.load(recipe_of(tasks, Path(model)))
    tokenizer = load_tokenizer(recipe.model)
    memory = _Memory()
    start = time.perf_counter()
    plan = make_plan(recipe, tokenizer, max_length=MAX_LENGTH, rows_per_step=8, max_steps=-1, epochs=1.0)
    seconds = time.perf_counter() - start
    cache = sum(file.stat().st_size for file in Path(folder, "cache").rglob("*") if file.is_file())
    return {
        "examples": sum(len(task) for task in plan.tokenized.values()),
        "seconds": seconds,
        "peak": memory.peak(),
        "cache": cache / 2**30,
        "fill": plan.fill_rate,
        "rows": plan.rows,
    }


class _Memory:
    """Peak anonymous memory of this process and its children, in GiB above the start."""

    def __init__(self) -> None:
        self._base = self._now()
        self._peak, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _now(self) -> float:
        this_process = os.getpid()
        total = 0
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                fields = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines() if ":" in line)
            except OSError:
                continue
            if this_process in (int(entry.name), int(fields["PPid"])):
                total += int(fields.get("RssAnon", "0 kB").split()[0])
        return total / 2**20

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            self._peak = max(self._peak, self._now() - self._base)

    def peak(self) -> float:
        self._stop.set()
        self._thread.join()
        return self._peak


def million(model: Path, count: int) -> str:
    lines = [
        f"A generated mixture of two tasks, rows of {MAX_LENGTH}, {PROCESSES} processes. Memory is the anonymous "
        f"memory of the process and its workers above the start. {_versions()}, {platform.machine()}, "
        f"{os.cpu_count()} cores.",
        "",
        "| examples | rows | plan, cold (s) | plan, cached (s) | peak memory cold (GiB) | cached (GiB) | cache (GiB) |",
        "|---|---|---|---|---|---|---|",
    ]
    context = multiprocessing.get_context("spawn")
    for size in (count // 10, count):
        with tempfile.TemporaryDirectory() as folder:
            runs = []
            for _ in range(2):
                runs.append(_Child(context, _plan_of_many, (folder, str(model.resolve()), size)).result())
            cold, cached = runs
            lines.append(
                f"| {cold['examples']:,} | {cold['rows']:,} | {cold['seconds']:.0f} | {cached['seconds']:.1f} | "
                f"{cold['peak']:.2f} | {cached['peak']:.2f} | {cold['cache']:.2f} |"
            )
    return "\n".join(lines)


def _versions(*packages: str) -> str:
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in ("datasets", "tokenizers", "transformers", *packages))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("which", choices=["real", "million"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.which == "real":
        if arguments.data is None:
            parser.error("real needs --data")
        table = real(arguments.data, arguments.model, arguments.rounds)
        command = f"python benchmarks/data.py real --data DATA --model MODEL --rounds {arguments.rounds}"
    else:
        table = million(arguments.model, arguments.examples)
        command = f"python benchmarks/data.py million --model MODEL --examples {arguments.examples}"
    print(table)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(f"`{command}`\n\n{table}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
