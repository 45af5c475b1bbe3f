"""MMLU 5-shot and SuperGLUE by lm-evaluation-harness's definitions: this library's engine and lm-eval's own model.

MMLU: 57 subjects, the first 20 questions of each, 5 examples before each. SuperGLUE: the validation questions, or the
first `--most` of each task. lm-eval's model is slower, so it answers only the first `--mmlu-limit` questions of each
subject and `--limit` of each SuperGLUE task; this library's engine answers them once more, so that the two can be
compared question by question. Every task and engine is a process of its own whose result is kept in `--work`, so that
a run that was stopped continues. lm-eval 0.4.13's ReCoRD imports two functions of SQuAD from a module that transformers
5 no longer has; they are supplied here. It has many long choices per question, so both engines answer at most 20. Where
a validation file is missing, FewGLUE's 32 development questions (`dev32.jsonl`) take its place.

Run: python benchmarks/standard_tasks.py --model DIR --data DIR --work DIR [--dtype bfloat16] [--out FILE]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import resource
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

SUPERGLUE = {
    "boolq": "BoolQ", "cb": "CB", "copa": "COPA", "multirc": "MultiRC", "rte": "RTE", "wic": "WiC", "wsc": "WSC",
    "record": "ReCoRD",
}  # fmt: skip
MOST = {"superglue/record": 20}
OURS, THEIRS = "multilora", "lm-eval's model"


def parts(options: argparse.Namespace) -> list[tuple[str, str, int | None]]:
    """(task, engine, limit) of every measurement, the quick ones first."""
    found: list[tuple[str, str, int | None]] = [("mmlu", OURS, 20)]
    for engine, limit in ((OURS, options.most), (OURS, options.limit), (THEIRS, options.limit)):
        for name in SUPERGLUE:
            found.append((f"superglue/{name}", engine, at_most(f"superglue/{name}", limit)))
    return list(dict.fromkeys([*found, ("mmlu", OURS, options.mmlu_limit), ("mmlu", THEIRS, options.mmlu_limit)]))


def at_most(task: str, limit: int | None) -> int | None:
    """The limit, lowered to that of the task."""
    most = MOST.get(task)
    return limit if most is None else min(limit or most, most)


def result_file(options: argparse.Namespace, task: str, engine: str, limit: int | None) -> Path:
    name = f"{task.replace('/', '-')}-{'ours' if engine == OURS else 'theirs'}-{limit or 'all'}.json"
    return Path(options.work) / name


def supply_squad_metrics() -> None:
    """Make `transformers.data.metrics.squad_metrics` importable, with what lm-eval's ReCoRD uses of it."""
    if importlib.util.find_spec("transformers.data.metrics") is not None:
        return
    from multilora.metrics.formulas import normalised_match, token_f1

    module = types.ModuleType("transformers.data.metrics.squad_metrics")
    vars(module)["compute_f1"] = lambda gold, prediction: token_f1([gold], prediction)
    vars(module)["compute_exact"] = lambda gold, prediction: normalised_match([gold], prediction)
    package = types.ModuleType("transformers.data.metrics")
    vars(package)["squad_metrics"] = module
    sys.modules |= {package.__name__: package, module.__name__: module}


def score(options: argparse.Namespace, task: str, engine: str, limit: int | None) -> dict[str, Any]:
    """Score one task in this process."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from multilora.harness.engine_model import MultiLoraLM
    from multilora.harness.run import harness_scores
    from multilora.harness.tasks import local_task
    from multilora.recipe.schema import TaskSection

    supply_squad_metrics()
    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    lm: Any = MultiLoraLM(model=model, tokenizer=tokenizer)
    if engine == THEIRS:
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    folder = "mmlu" if task == "mmlu" else f"superglue/{SUPERGLUE[task.partition('/')[2]]}"
    manager = TaskManager()
    path, eval_path = Path(options.data, folder), None
    if task != "mmlu":  # questions without examples: the training file is not read, and may be a part of it
        eval_path = next(path / name for name in ("val.jsonl", "dev32.jsonl") if (path / name).exists())
        path = next(item for item in sorted(path.glob("*train*.jsonl")))
    section = TaskSection(name=task, path=str(path), eval_path=None if eval_path is None else str(eval_path))
    item = local_task(section, manager)
    start, processor = time.perf_counter(), time.process_time()
    scores = harness_scores(
        lm, [item], shots=5 if task == "mmlu" else 0, limit=limit, samples=True, bootstrap_iters=1000, manager=manager
    )
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    assert scores is not None
    samples = scores.pop("samples")
    # The pick is the position of the most likely choice.
    scores["picks"] = {
        name: [max(range(len(one["resps"])), key=lambda i: float(one["resps"][i][0][0])) for one in rows]
        for name, rows in samples.items()
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**scores, "seconds": seconds, "processor": processor, "peak_mib": peak}


def main_value(scores: dict[str, Any], task: str) -> tuple[str, float, float | None, int]:
    """Metric, value, standard error and number of questions."""
    entries = scores["groups"] if task == "mmlu" else scores["tasks"]
    entry = entries["mmlu"] if task == "mmlu" else next(iter(entries.values()))
    metric = "acc" if "acc" in entry["metrics"] else next(iter(entry["metrics"]))
    value = entry["metrics"][metric]
    return metric, value["value"], value["stderr"], sum(len(picks) for picks in scores["picks"].values())


def percent(value: float, error: float | None) -> str:
    return f"{100 * value:.1f}" + ("" if error is None else f" ±{100 * error:.1f}")


def report(options: argparse.Namespace, results: dict[tuple[str, str, int | None], dict[str, Any]]) -> str:
    """Markdown of what has been measured so far."""
    import torch

    most = f" --most {options.most}" if options.most else ""
    command = f"python benchmarks/standard_tasks.py --model {Path(options.model).name} --dtype {options.dtype}"
    command += f" --limit {options.limit} --mmlu-limit {options.mmlu_limit}{most} --threads {options.threads}"
    lines = [
        f"`{command}` on {platform.machine()}, torch "
        f"{torch.__version__}. Values with standard errors by lm-eval's definitions; processor seconds of all threads.",
        "",
        "| task | metric | n | value | processor s | wall s | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for (task, engine, limit), scores in results.items():
        if engine == OURS and limit == (20 if task == "mmlu" else at_most(task, options.most)):
            metric, value, error, n = main_value(scores, task)
            shots = "5-shot" if task == "mmlu" else "0-shot"
            cells = [f"{task}, {shots}", metric, f"{n:,}", percent(value, error)]
            cells += [f"{scores['processor']:,.0f}", f"{scores['seconds']:,.0f}", f"{scores['peak_mib']:,.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Side by side on the same questions:",
        "",
        "| task | n | multilora | lm-eval's model | equal picks | multilora s | lm-eval s | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (task, engine, limit), theirs in results.items():
        ours = results.get((task, OURS, limit))
        if engine != THEIRS or ours is None:
            continue
        _, value, error, n = main_value(ours, task)
        _, other, other_error, _ = main_value(theirs, task)
        pairs = [
            pair for name in ours["picks"] for pair in zip(ours["picks"][name], theirs["picks"][name], strict=True)
        ]
        equal = sum(a == b for a, b in pairs)
        cells = [task, f"{n:,}", percent(value, error), percent(other, other_error), f"{equal:,} of {len(pairs):,}"]
        times = ours["processor"], theirs["processor"]
        cells += [f"{times[0]:,.0f}", f"{times[1]:,.0f}", f"**{times[1] / times[0]:.1f}x**"]
        lines.append(f"| {' | '.join(cells)} |")
    subjects = results.get(("mmlu", OURS, 20))
    if subjects is not None:
        lines += ["", "MMLU by group:", "", "| group | accuracy |", "|---|---|"]
        for name, entry in subjects["groups"].items():
            value = entry["metrics"]["acc"]
            lines.append(f"| {name} | {percent(value['value'], value['stderr'])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="folder with mmlu/ and superglue/")
    parser.add_argument("--work", required=True, help="folder of the results of single tasks")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--limit", type=int, default=100, help="questions of a SuperGLUE task for both engines")
    parser.add_argument("--mmlu-limit", type=int, default=20, help="questions of an MMLU subject for both engines")
    parser.add_argument(
        "--most", type=int, help="questions of a SuperGLUE task for this library's engine; default: all"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out")
    parser.add_argument("--child", nargs=3, metavar=("TASK", "ENGINE", "LIMIT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        task, engine, text = options.child
        limit = int(text) or None
        file = result_file(options, task, engine, limit)
        file.write_text(json.dumps(score(options, task, engine, limit)), encoding="utf-8")
        return
    Path(options.work).mkdir(parents=True, exist_ok=True)
    results = {}
    for task, engine, limit in parts(options):
        file = result_file(options, task, engine, limit)
        if not file.exists():
            print(f"{task}, {engine}, {limit or 'all'} questions", file=sys.stderr, flush=True)
            subprocess.run([sys.executable, *sys.argv, "--child", task, engine, str(limit or 0)], check=True)
        results[task, engine, limit] = json.loads(file.read_text(encoding="utf-8"))
        if options.out:
            Path(options.out).write_text(report(options, results), encoding="utf-8")
    print(report(options, results))


if __name__ == "__main__":
    main()
