"""Time and memory of evaluation: this library's engine against lm-evaluation-harness's own model (HFLM).

Both answer the same requests on the same weights in one process, in turn, and their answers are compared:

- letters: MMLU, 5 examples before every question, one letter as the answer
- choices: four answers of 3 to 8 tokens behind 300 tokens that they share
- generation: prompts of uneven length, each answer ended by a full stop, an empty line or its limit of 96 tokens

HFLM runs at the best of several batch sizes, which the first round finds. Time is processor time of all threads, the
median over rounds; this library's engine runs as the model of `python -m multilora.harness`, and tokenization is
included for both. Memory is the peak of a fresh process for each, above the loaded model.

Run: python benchmarks/evaluation.py --model DIR --mmlu DIR [--dtype bfloat16] [--subjects 3] [--questions 20] \
    [--rounds 3] [--out FILE]
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from multilora.harness.engine_model import MultiLoraLM

PARTS = ("letters", "choices", "generation")
BATCH_SIZES = (1, 4, 8, 16)


def instances(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=item, idx=index) for index, item in enumerate(arguments)]


def question(row: Sequence[str], *, answered: bool) -> str:
    choices = "".join(f"\n{letter}. {text}" for letter, text in zip("ABCD", row[1:5], strict=True))
    return f"{row[0].strip()}{choices}\nAnswer:" + (f" {row[5]}\n\n" if answered else "")


def letters(folder: Path, subjects: int, count: int) -> list[tuple[str, str]]:
    """MMLU 5-shot in the format of lm-eval."""
    requests = []
    root = folder if (folder / "dev").is_dir() else folder / "data"
    for file in sorted((root / "dev").glob("*.csv"))[:subjects]:
        subject = file.name.removesuffix("_dev.csv")
        examples = list(csv.reader(file.open(encoding="utf-8")))[:5]
        questions = list(csv.reader((root / "test" / f"{subject}_test.csv").open(encoding="utf-8")))[:count]
        head = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
        head += "".join(question(row, answered=True) for row in examples)
        for row in questions:
            requests += [(head + question(row, answered=False), f" {letter}") for letter in "ABCD"]
    return requests


def words(folder: Path, count: int, seed: int) -> list[str]:
    """Words of MMLU's questions, in random order."""
    root = folder if (folder / "dev").is_dir() else folder / "data"
    text = " ".join(path.read_text(encoding="utf-8") for path in sorted((root / "dev").glob("*.csv"))[:20])
    known = [word for word in text.split() if word.isalpha()]
    return random.Random(seed).choices(known, k=count)


def choices(folder: Path, tokenizer: Any, items: int = 24) -> list[tuple[str, str]]:
    """Four answers of several tokens behind about 300 tokens."""
    requests, rng = [], random.Random(0)
    for item in range(items):
        text = words(folder, 400, seed=item)
        context = tokenizer.decode(tokenizer(" ".join(text), add_special_tokens=False)["input_ids"][:300])
        requests += [(context, " " + " ".join(rng.choices(text, k=rng.randrange(2, 6)))) for _ in range(4)]
    return requests


def generation(folder: Path, items: int = 48) -> list[tuple[str, dict[str, Any]]]:
    """Prompts of 10 to 150 words, with answers of uneven length."""
    rng = random.Random(0)
    options = {"until": [".", "\n\n"], "max_gen_toks": 96, "do_sample": False}
    return [(" ".join(words(folder, rng.randrange(10, 150), seed=1000 + item)), options) for item in range(items)]


class Benchmark:
    """Both engines on one model."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.set_num_threads(options.threads)
        transformers_logging.set_verbosity_error()
        self.tokenizer = AutoTokenizer.from_pretrained(options.model)
        dtype = getattr(torch, options.dtype)
        self.model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).to(options.device).eval()
        self.theirs = HFLM(pretrained=self.model, tokenizer=self.tokenizer, batch_size=1)
        self.ours = MultiLoraLM(model=self.model, tokenizer=self.tokenizer)
        folder = Path(options.mmlu)
        self.requests: dict[str, tuple[str, list[Any]]] = {
            "letters": ("loglikelihood", letters(folder, options.subjects, options.questions)),
            "choices": ("loglikelihood", choices(folder, self.tokenizer)),
            "generation": ("generate_until", generation(folder)),
        }

    def answer(self, lm: Any, part: str) -> list[Any]:
        kind, arguments = self.requests[part]
        if isinstance(lm, HFLM):
            torch.manual_seed(0)
        answers: list[Any] = getattr(lm, kind)(instances(kind, arguments), disable_tqdm=True)
        return answers

    def run(self, part: str, batch_size: int | None) -> tuple[float, float, list[Any]]:
        """Processor time, wall time and answers; `batch_size` of HFLM, or None for ours."""
        if batch_size is not None:
            self.theirs.batch_size_per_gpu = batch_size
        lm = self.ours if batch_size is None else self.theirs
        wall, processor = time.perf_counter(), time.process_time()
        answers = self.answer(lm, part)
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.process_time() - processor, time.perf_counter() - wall, answers


def difference(part: str, ours: Sequence[Any], theirs: Sequence[Any]) -> str:
    if part == "generation":
        return f"{sum(a == b for a, b in zip(ours, theirs, strict=True))} of {len(ours)} texts equal"
    largest = max(abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True))
    groups = range(0, len(ours), 4)
    picks = [[max(range(4), key=lambda i: values[start + i][0]) for start in groups] for values in (ours, theirs)]
    same = sum(a == b for a, b in zip(*picks, strict=True))
    return f"log-likelihoods within {largest:.1e}; {same} of {len(groups)} picks equal"


def measure(benchmark: Benchmark, part: str, rounds: int) -> list[str]:
    """One row of the table."""
    first = {size: benchmark.run(part, size) for size in BATCH_SIZES}
    on_gpu = benchmark.model.device.type == "cuda"
    best = min(first, key=lambda size: first[size][1 if on_gpu else 0])
    benchmark.run(part, None)  # finds out what the model supports, once per model
    times: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    ours: list[Any] = []
    theirs: list[Any] = []
    for _ in range(rounds):
        processor, wall, theirs = benchmark.run(part, best)
        times["theirs"].append((processor, wall))
        processor, wall, ours = benchmark.run(part, None)
        times["ours"].append((processor, wall))
    medians = {
        name: [statistics.median(column) for column in zip(*values, strict=True)] for name, values in times.items()
    }
    ratios = [their / our for their, our in zip(medians["theirs"], medians["ours"], strict=True)]
    return [
        part,
        str(len(ours)),
        f"{medians['theirs'][0]:.1f} s (batch {best})",
        f"{medians['ours'][0]:.1f} s",
        f"**{ratios[0]:.1f}x**",
        f"{ratios[1]:.1f}x",
        difference(part, ours, theirs),
    ]


def peak_memory(options: argparse.Namespace, part: str, engine: str) -> float:
    """Peak memory in MiB that a fresh process needs for one part with one engine, above the loaded model."""
    command = [sys.executable, __file__, "--child", part, engine]
    for name in ("model", "mmlu", "dtype", "subjects", "questions", "threads", "device"):
        command += [f"--{name}", str(getattr(options, name))]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(output.splitlines()[-1]))


def resident(name: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process in MiB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition(f"{name}:")[2].split()[0]) / 1024


def child(options: argparse.Namespace) -> None:
    part, engine = options.child
    benchmark = Benchmark(options)
    on_gpu = benchmark.model.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forgets the peak of loading
        before = resident("VmRSS")
    benchmark.run(part, None if engine == "ours" else int(engine))
    after = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else resident("VmHWM")
    print(json.dumps(after - before))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--mmlu", required=True, help="folder with MMLU's dev/ and test/")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--subjects", type=int, default=3)
    parser.add_argument("--questions", type=int, default=20, help="of each subject; MMLU has 100 to 1,534")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    benchmark = Benchmark(options)
    parts = "" if options.parts == list(PARTS) else f" --parts {' '.join(options.parts)}"
    columns = ["requests", "n", "HFLM", "multilora", "processor time", "wall time", "agreement"]
    lines = [
        f"`python benchmarks/evaluation.py --model {Path(options.model).name} --dtype {options.dtype} --subjects "
        f"{options.subjects} --questions {options.questions} --rounds {options.rounds} --threads {options.threads}"
        f"{parts}` on "
        f"{platform.machine()}, {options.device}, torch {torch.__version__}",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
    ]
    best: dict[str, str] = {}
    for part in options.parts:
        row = measure(benchmark, part, options.rounds)
        best[part] = row[2].partition("batch ")[2].rstrip(")")
        lines.append("| " + " | ".join(row) + " |")
        print(lines[-1], flush=True)
    del benchmark
    largest = str(BATCH_SIZES[-1])
    lines += ["", f"| peak memory above the model | HFLM, best batch | HFLM, batch {largest} | multilora |"]
    lines += ["|---|---|---|---|"]
    for part in options.parts:
        cells = [f"{peak_memory(options, part, engine):,.0f} MiB" for engine in (best[part], largest, "ours")]
        lines.append(f"| {part} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
