"""Time from starting Python to the end of the first training step, against importing the libraries alone.

Each measurement is a process of its own, and the kinds take turns. `imports` loads torch and what every such run needs
of transformers and PEFT; `train` runs `multilora train` on the embedded base, with its plan made anew; `train, cached`
is the same run again, whose plan is cached. Reported: medians of wall and processor time, and their ratio to `imports`.

Run: python benchmarks/start.py [--rounds 7] [--out benchmarks/results/start.md]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

IMPORTS = """
import torch, peft
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from transformers.models.llama import modeling_llama
"""
DONE = """
import os, time
print("DONE", time.time(), sum(os.times()[:2]), flush=True)
"""
TRAIN = """
import os, sys, time
from transformers.trainer_callback import CallbackHandler
def first_step(*_):
    print("DONE", time.time(), sum(os.times()[:2]), flush=True)
    os._exit(0)
CallbackHandler.on_step_end = first_step
sys.argv = ["multilora", "train", sys.argv[1]]
from multilora.cli import main
main()
"""
RECIPE = {
    "model": {"name_or_path": "nano", "dtype": "float32"},
    "tasks": [{"name": "nano/instructions"}, {"name": "nano/arithmetic"}],
    "training": {"max_steps": 2, "per_device_train_batch_size": 8, "save_strategy": "no"},
    "output_dir": "run",
}


def measure(code: str, *arguments: str, cwd: Path, environment: dict[str, str]) -> tuple[float, float]:
    """(wall, processor) seconds of one process."""
    start = time.time()
    command = [sys.executable, "-c", code + DONE if code is IMPORTS else code, *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("DONE ")]
    if not lines:
        raise SystemExit(f"no step was made:\n{done.stderr[-3000:]}")
    return float(lines[0][1]) - start, float(lines[0][2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results: dict[str, list[tuple[float, float]]] = {"imports": [], "train": [], "train, cached": []}
    for number in range(options.rounds + 1):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "recipe.yaml").write_text(json.dumps(RECIPE), encoding="utf-8")
            environment = {**os.environ, "HF_HOME": str(folder / "cache")}
            for kind in results:
                code, *arguments = (IMPORTS,) if kind == "imports" else (TRAIN, "recipe.yaml")
                shutil.rmtree(folder / "run", ignore_errors=True)
                seconds = measure(code, *arguments, cwd=folder, environment=environment)
                print(number, kind, *(f"{value:.2f}" for value in seconds), file=sys.stderr, flush=True)
                if number:  # the first round fills the file cache of the system
                    results[kind].append(seconds)
    medians = {
        kind: [statistics.median(column) for column in zip(*rows, strict=True)] for kind, rows in results.items()
    }
    reference = medians["imports"]
    lines = [
        f"`python benchmarks/start.py --rounds {options.rounds}` on {platform.machine()}, {os.cpu_count()} cores, "
        f"torch {version('torch')}, transformers {version('transformers')}, PEFT {version('peft')}: until the end of "
        "the first step",
        "",
        "| | seconds | x imports | processor seconds | x imports |",
        "|---|---|---|---|---|",
    ]
    for kind, (wall, processor) in medians.items():
        ratios = wall / reference[0], processor / reference[1]
        lines.append(f"| {kind} | {wall:.1f} | {ratios[0]:.2f} | {processor:.1f} | {ratios[1]:.2f} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
