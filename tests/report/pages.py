"""Runs and studies as folders, small enough to make in every test session."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

import multilora
from multilora.analysis.compare import Options
from multilora.study.load import Study
from multilora.study.subspaces import compare_finals
from multilora.study.worker import run_study


def make_run(recipe: dict[str, Any]) -> Path:
    """A run that was evaluated while and after training, and analysed."""
    run = multilora.train(recipe, ["evaluation.every=2"])
    multilora.evaluate(run, max_examples=6)
    multilora.analyze(run, options=Options(intruders=True))
    return run.path


def make_study(recipe: dict[str, Any], folder: Path) -> Path:
    """A finished study of two methods with a search and two seeds."""
    text = folder / "text.txt"
    text.write_text("one two three four five " * 60)
    values = {
        "recipe": {
            **{key: recipe[key] for key in ("model", "tasks", "data")},
            "training": {**recipe["training"], "max_steps": 2},
            "evaluation": {"max_new_tokens": 4, "max_examples": 6, "validation_share": 0.3},
        },
        "methods": {
            "lora r=2": {"adapter": {"method": "lora", "r": 2}, "grid": {"training.learning_rate": [0.01, 0.02]}},
            "multilora 2x1": {
                "adapter": {"method": "multilora", "r": 1, "num_branches": 2},
                "grid": {"training.learning_rate": [0.01, 0.02]},
            },
        },
        "search": {"trials": 2, "seeds": [1000]},
        "seeds": [0, 1],
        "measure": ["spectrum", "forgetting", "intruders"],
        "forgetting": {"path": str(text)},
        "output_dir": str(folder / "study"),
    }
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(values))
    run_study(Study.load(file))
    compare_finals(folder / "study")
    return folder / "study"


def specifications(page: Path) -> dict[str, Any]:
    """The charts of a page by name."""
    text = page.read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text.split('id="report-data">', 1)[1].split("</script>", 1)[0])
    return found
