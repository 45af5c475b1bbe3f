"""Score several models on the same tasks of lm-eval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multilora.errors import InputError
from multilora.files import write_json
from multilora.foreign_errors import own_errors
from multilora.harness.run import harness_scores, harness_tasks, task_manager
from multilora.processes import is_main_process, join_processes
from multilora.recipe.schema import TaskSection
from multilora.runs.candidate import candidate
from multilora.runs.directory import Run
from multilora.runs.evaluate import tasks_of

RESULTS_FILE = "eval_harness.json"


@own_errors
def evaluate_models_with_harness(
    models: Sequence[str | Path | Run],
    names: Sequence[str],
    tasks: str | Path | Mapping[str, Any] | None = None,
    *,
    shots: int | None = None,
    limit: int | None = None,
    include_path: str | Path | None = None,
    dtype: str | None = None,
) -> dict[str, dict[str, Any] | None]:
    """Score several models on tasks of lm-eval, one model in memory at a time.

    The scores of a run are also written to its `eval_harness.json`.

    Args:
        models: runs, adapter folders, model folders or names on the hub; none twice
        names, shots, limit, include_path: see `evaluate_with_harness`
        tasks: as for `evaluate_models`; built-in tasks with a local path give lm-eval their data
        dtype: of models that are not runs; by default bfloat16

    Returns:
        model, as passed -> see `harness_scores`

    Raises:
        InputError: lm-eval is missing, a task does not exist, or a model or data cannot be loaded.
    """
    candidates = [candidate(model, dtype=dtype) for model in models]
    labels = [item.label for item in candidates]
    if not candidates or len(set(labels)) < len(labels):
        raise InputError(f"models are {labels}, expected at least one, and none twice")
    sections: Sequence[TaskSection] = []
    if tasks is not None or any(item.run for item in candidates):
        sections = tasks_of(candidates, tasks).tasks
    for item in candidates:
        if item.run is not None:
            item.run.check_writable()
    manager = task_manager(include_path)
    loaded = harness_tasks(names, sections, manager)

    from multilora.harness.engine_model import MultiLoraLM

    join_processes()
    results: dict[str, dict[str, Any] | None] = {}
    for item in candidates:
        lm = MultiLoraLM(model=item.load(), tokenizer=item.load_tokenizer())
        scores = harness_scores(lm, loaded, shots=shots, limit=limit, manager=manager)
        del lm
        results[item.label] = scores
        if item.run is not None and is_main_process():
            write_json(item.run.path / RESULTS_FILE, scores)
    return results
