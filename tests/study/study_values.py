"""A small study for the tests, and what to compare of its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import write_jsonl

from multilora.study.cells import StudyCells
from multilora.study.load import Study


def study_values(model: Path, folder: Path) -> dict[str, Any]:
    """Two methods, two learning rates, two seeds: four trials and four final runs."""
    folder.mkdir(parents=True, exist_ok=True)
    even = [{"question": f"is {i} even", "answer": "yes" if i % 2 == 0 else "no"} for i in range(60)]
    echo = [{"word": f"item{i}", "twice": f"item{i} item{i}"} for i in range(40)]
    write_jsonl(folder / "even.jsonl", even)
    write_jsonl(folder / "echo.jsonl", echo)
    (folder / "text.txt").write_text("the answer to the question is yes or no and one two three four five " * 20)
    tasks = [
        {
            "name": "even",
            "path": str(folder / "even.jsonl"),
            "prompt": "{{ question }}?",
            "response": "{{ answer }}",
            "choices": ["yes", "no"],
        },
        {
            "name": "echo",
            "path": str(folder / "echo.jsonl"),
            "prompt": "say {{ word }} twice",
            "response": "{{ twice }}",
        },
    ]
    return {
        "recipe": {
            "model": {"name_or_path": str(model), "dtype": "float32"},
            "tasks": tasks,
            "data": {"max_length": 64, "num_proc": 1},
            "training": {"max_steps": 2, "per_device_train_batch_size": 4, "save_strategy": "no", "logging_steps": 1},
            "evaluation": {"max_examples": 6, "max_new_tokens": 4, "validation_share": 0.2},
        },
        "methods": {
            "lora": {
                "adapter": {"method": "lora", "r": 2},
                "grid": {"training.learning_rate": [1e-3, 1e-2]},
            },
            "multilora": {
                "adapter": {"method": "multilora", "r": 2, "num_branches": 2},
                "optimizer": {"scale_lr_factor": 2},
                "grid": {"training.learning_rate": ["1e-3", "1e-2"]},
            },
        },
        "search": {"trials": 2, "seeds": [9]},
        "seeds": [0, 1],
        "measure": ["spectrum", "forgetting"],
        "forgetting": {"path": str(folder / "text.txt"), "max_tokens": 200},
        "output_dir": str(folder / "study"),
    }


def results_of(study: Study) -> dict[str, Any]:
    """The results without what differs between two runs of the same cell: time and memory."""
    results = json.loads((study.path / "results" / "results.json").read_text())
    measured = ("seconds", "peak_memory")
    single = [] if results["single_task"] is None else [results["single_task"]["summary"]]
    for item in [results["base"], *results["methods"].values(), *single, *results["runs"]]:
        for key in measured:
            item.pop(key, None)
    return results


def cells_of(values: dict[str, Any]) -> StudyCells:
    return StudyCells(Study.load(values))
