"""A cache of the scores of models without an adapter, since every run on the same base needs them again.

Scores are found by content: of the model's files, the evaluation examples, the package and what it runs on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multilora.cache import cache_key, cache_root, code_digest, content_digest
from multilora.evaluation.task_score import TaskScore
from multilora.files import atomic_folder, copy_file, write_json
from multilora.recipe import Recipe
from multilora.runs.candidate import Candidate

if TYPE_CHECKING:
    from multilora.evaluation.evaluation_set import EvaluationSet

PACKAGES = ("torch", "transformers", "tokenizers", "peft")
SCORES_FILE, SAMPLES_FILE = "scores.json", "samples.parquet"


def scores_key(
    model: Candidate, recipe: Recipe, sets: Mapping[str, EvaluationSet], protocol: Any = "ours"
) -> str | None:
    """Return the key of a model's scores; None if they cannot be cached.

    They are not cached for models and data on the hub, and for tasks and metrics in Python, which can change.

    Args:
        model: to be scored
        recipe: tasks and options
        sets: what the model is scored on
        protocol: JSON values that change when another protocol's scores do; None if that is not known
    """
    from multilora.modeling import best_device, model_source

    folder = Path(model_source(model.base)).expanduser()
    in_python = any(section.task or ":" in (section.metric or "") for section in recipe.tasks)
    if not model.is_plain or in_python or protocol is None or not folder.is_dir():
        return None
    files = {path.name: content_digest(path) for path in sorted(folder.iterdir()) if path.is_file()}
    examples = {name: [items.kind, cache_key(list(items.examples), dict(items.shots))] for name, items in sets.items()}
    return cache_key(
        files,
        model.base.model_dump(exclude={"name_or_path"}),
        examples,
        protocol,
        [section.model_dump(include={"name", "metric", "choice_score", "harness_task"}) for section in recipe.tasks],
        recipe.data.model_dump(include={"template", "special_tokens"}),
        recipe.evaluation.max_new_tokens,
        [version(name) for name in PACKAGES],
        code_digest(Path(__file__).parents[1]),
        best_device().type,
    )


def read_scores(key: str, samples: Path | None) -> dict[str, TaskScore] | None:
    """Return cached scores, and copy their samples to a path; None if there are none."""
    folder = _folder(key)
    try:
        values: dict[str, Any] = json.loads((folder / SCORES_FILE).read_text(encoding="utf-8"))
        scores = {name: TaskScore(**score) for name, score in values.items()}
        if samples is not None:
            copy_file(folder / SAMPLES_FILE, samples)
    except (OSError, ValueError, TypeError):
        return None
    return scores


def write_scores(key: str, scores: Mapping[str, TaskScore], samples: Path) -> None:
    """Keep scores and a copy of their samples."""
    folder = _folder(key)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as new_folder:
        write_json(new_folder / SCORES_FILE, {name: asdict(score) for name, score in scores.items()})
        copy_file(samples, new_folder / SAMPLES_FILE)


def _folder(key: str) -> Path:
    return cache_root() / "base_scores" / key
