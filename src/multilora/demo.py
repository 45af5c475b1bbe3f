"""Demo: the paper's comparison at small scale, on the embedded base and its four generated tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from multilora.foreign_errors import own_errors
from multilora.methods import FULL
from multilora.recipe import Recipe
from multilora.report.write import report
from multilora.study.compare import Comparison, compare

RANK, BRANCHES = 8, 3

RECIPE: dict[str, Any] = {
    "model": {"name_or_path": "nano", "dtype": "float32", "attn_implementation": "eager"},
    "tasks": [
        {"name": "nano/instructions"},
        {"name": "nano/understanding"},
        {"name": "nano/knowledge"},
        {"name": "nano/arithmetic"},
    ],
    "training": {"max_steps": 260, "per_device_train_batch_size": 32, "save_strategy": "no"},
    "evaluation": {"max_examples": 200, "max_new_tokens": 48},
}

METHODS: dict[str, dict[str, Any]] = {
    f"lora r={RANK}": {
        "adapter": {"method": "lora", "r": RANK},
        "training": {"learning_rate": 5e-3},
    },
    f"lora r={RANK * BRANCHES}": {
        "adapter": {"method": "lora", "r": RANK * BRANCHES},
        "training": {"learning_rate": 5e-3},
    },
    f"multilora {BRANCHES}x{RANK}": {
        "adapter": {"method": "multilora", "r": RANK, "num_branches": BRANCHES},
        "training": {"learning_rate": 1e-2},
    },
    FULL: {
        "adapter": {"method": FULL},
        "training": {"learning_rate": 2e-3},
    },
}


@own_errors
def run_demo(out: str | Path) -> Comparison:
    """Train and compare four methods, and write the runs and `report.html` to `out`.

    Raises:
        RunDirectoryError: `out` is a file or a non-empty folder.
    """
    comparison = compare(Recipe.load(RECIPE), METHODS, out)
    report(comparison.path)
    return comparison


def next_free(path: Path) -> Path:
    """Return the first of `path`, `path-2`, `path-3`, ... that does not exist."""
    candidate, suffix = path, 1
    while candidate.exists():
        suffix += 1
        candidate = path.with_name(f"{path.name}-{suffix}")
    return candidate
