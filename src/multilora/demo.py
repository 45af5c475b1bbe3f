"""Demo: a small study of LoRA, MultiLoRA and full fine-tuning, on the embedded base and its four generated tasks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from multilora.errors import RunDirectoryError
from multilora.foreign_errors import own_errors
from multilora.modeling import best_device
from multilora.report.write import report
from multilora.study.launch import run_in_processes
from multilora.study.load import Study
from multilora.study.worker import run_study

# The settings are those that recipes/studies/nano.yaml chose.
STUDY: dict[str, Any] = {
    "recipe": {
        "model": {"name_or_path": "nano", "dtype": "float32", "attn_implementation": "eager"},
        "tasks": [
            {"name": "nano/instructions"},
            {"name": "nano/understanding"},
            {"name": "nano/knowledge"},
            {"name": "nano/arithmetic"},
        ],
        "training": {"max_steps": 160, "per_device_train_batch_size": 16, "save_strategy": "no"},
        "evaluation": {"max_examples": 100, "max_new_tokens": 48},
    },
    "methods": {
        "lora r=24": {"adapter": {"method": "lora", "r": 24}, "training": {"learning_rate": 5e-3}},
        "multilora 3x8": {
            "adapter": {"method": "multilora", "r": 8, "num_branches": 3},
            "training": {"learning_rate": 8e-3},
        },
        "full": {"adapter": {"method": "full"}, "training": {"learning_rate": 2e-3}},
    },
    "seeds": [0, 1],
    "reference": "lora r=24",
    "measure": ["spectrum"],
}


@own_errors
def run_demo(out: str | Path, *, note: Callable[[str], None] = lambda line: None) -> Study:
    """Run the study of the demo in a new folder, and write its tables and `report.html`.

    Without a GPU, two processes share the CPU cores: a model this small leaves most of them idle.

    Args:
        out: the study folder
        note: called with a line of progress before every run

    Raises:
        RunDirectoryError: `out` is a file or a non-empty folder.
        RunError: a run failed.
    """
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise RunDirectoryError(f"{out}: exists; choose a new folder for the demo, or remove it")
    study = Study.load({**STUDY, "output_dir": str(out)})
    if best_device().type == "cpu" and (os.cpu_count() or 1) > 1:
        run_in_processes(study, 2, report=note)
    else:
        run_study(study, report=note)
    report(study.path)
    return study


def next_free(path: Path) -> Path:
    """Return the first of `path`, `path-2`, `path-3`, ... that does not exist."""
    candidate, suffix = path, 1
    while candidate.exists():
        suffix += 1
        candidate = path.with_name(f"{path.name}-{suffix}")
    return candidate
