"""Score a model on lm-eval's tasks, through lm-eval's Python interface."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multilora.errors import InputError, nearest
from multilora.foreign_errors import own_errors
from multilora.harness.require import own_task_errors, require_lm_eval
from multilora.harness.tasks import harness_name, local_task, reads_data_of
from multilora.recipe.schema import HUB_PREFIX, TaskSection
from multilora.runs.directory import Run


@own_errors
def harness_scores(
    lm: Any,
    tasks: Sequence[Any],
    *,
    shots: int | None = None,
    limit: int | None = None,
    seed: int = 1234,
    samples: bool = False,
    chat: bool = False,
    bootstrap_iters: int = 100_000,
    manager: Any = None,
) -> dict[str, Any] | None:
    """Score a model on lm-eval's tasks.

    Args:
        lm: a model of lm-eval, such as `MultiLoraLM`
        tasks: names in lm-eval, or its task and group objects
        shots: examples before each question; by default, those of each task. Tasks that are defined with 0 stay at 0
        limit: score only the first `limit` documents of each task, which is what lm-eval does; a random subset, as
            in `multilora eval`, would not be comparable
        seed: of lm-eval: for few-shot sampling, and for the generation of tasks that sample
        samples: also return what was asked and answered
        chat: apply the tokenizer's chat template
        bootstrap_iters: resamples for the standard errors that have no formula; 0 leaves them all out
        manager: lm-eval's `TaskManager`, if it knows more tasks

    Returns:
        JSON-compatible values: `tasks` and `groups`, each name -> `metrics` (metric -> `value`, `stderr` or None,
        `filter`, `higher_is_better`), `n`, `shots`, `version`; `lm_eval`, its version; and `samples`. In a run of
        several processes, None in all but the first.

    Raises:
        InputError: no tasks, or a task does not exist.
    """
    require_lm_eval()
    from lm_eval import simple_evaluate

    if not tasks:
        raise InputError("no tasks for lm-eval; name at least one")
    for name, value, least in (("shots", shots, 0), ("limit", limit, 1)):
        if value is not None and value < least:
            raise InputError(f"{name} is {value}, expected at least {least}")
    manager = manager or task_manager()
    _check_names([task for task in tasks if isinstance(task, str)], manager)
    with own_task_errors():
        results = simple_evaluate(
            model=lm,
            tasks=list(tasks),
            num_fewshot=shots,
            limit=limit,
            bootstrap_iters=bootstrap_iters,
            log_samples=samples,
            apply_chat_template=chat,
            task_manager=manager,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    return None if results is None else _summary(results)


@own_errors
def evaluate_with_harness(
    model: Run | str | Path | Mapping[str, Any] | Any,
    names: Sequence[str],
    shots: int | None = None,
    limit: int | None = None,
    include_path: str | Path | None = None,
    sections: Sequence[TaskSection] = (),
    **options: Any,
) -> dict[str, Any] | None:
    """Score a run or a model on tasks of lm-eval and on a recipe's built-in tasks.

    Args:
        model: a run or its directory; the model arguments of `MultiLoraLM` (pretrained, peft, ...); or a model of
            lm-eval
        names: of tasks in lm-eval, or of built-in tasks (`superglue/boolq`). If the recipe has a built-in task with a
            local path whose data the task reads, lm-eval's definition is used on that data
        shots: see `harness_scores`
        limit: see `harness_scores`
        include_path: folder with further task definitions (YAML)
        sections: tasks of a recipe, with their local paths; by default those of the run
        options: see `harness_scores`

    Returns:
        see `harness_scores`

    Raises:
        InputError: lm-eval is missing, a task does not exist, or the model or the data cannot be loaded.
    """
    require_lm_eval()
    manager = task_manager(include_path)
    if isinstance(model, str | Path):
        model = Run(model)
    if isinstance(model, Run) and not sections:
        sections = model.recipe.tasks
    tasks = harness_tasks(names, sections, manager)

    from multilora.harness.engine_model import MultiLoraLM

    if isinstance(model, Run):
        model = MultiLoraLM(run=str(model.path))
    elif isinstance(model, Mapping):
        model = MultiLoraLM(**model)
    return harness_scores(model, tasks, shots=shots, limit=limit, manager=manager, **options)


def task_manager(include_path: str | Path | None = None) -> Any:
    """Return lm-eval's index of its tasks. It takes seconds to make, so that of lm-eval's own tasks is made once.

    Args:
        include_path: folder with further task definitions (YAML)

    Raises:
        InputError: lm-eval is missing, or there is no such folder.
    """
    require_lm_eval()
    if include_path is None:
        return _own_index()
    if not Path(include_path).is_dir():
        raise InputError(f"include_path is {str(include_path)!r}, expected a folder with lm-eval tasks as YAML files")
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(include_path))


@functools.cache
def _own_index() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def harness_tasks(names: Sequence[str], sections: Sequence[TaskSection], manager: Any) -> list[Any]:
    """Return lm-eval's tasks: as objects on the local data of a recipe's tasks, else as names.

    Args:
        names: in lm-eval, or of built-in tasks
        sections: tasks of a recipe
        manager: lm-eval's `TaskManager`

    Raises:
        InputError: no names, or a task does not exist, or local data cannot be used.
    """
    if not names:
        raise InputError("no tasks for lm-eval; name at least one")
    tasks = [_task(name, sections, manager) for name in dict.fromkeys(names)]
    _check_names([task for task in tasks if isinstance(task, str)], manager)
    return tasks


def _task(name: str, sections: Sequence[TaskSection], manager: Any) -> Any:
    """The task with the recipe's local data, else the name of lm-eval's task."""
    translated = harness_name(name)
    if translated is None or name in manager.all_tasks:
        translated = name
    for section in sections:
        local = section.path is not None and not section.path.startswith(HUB_PREFIX)
        if local and reads_data_of(translated, section.name, manager):
            return local_task(section, manager, translated)
    return translated


def _check_names(names: Sequence[str], manager: Any) -> None:
    """Check that lm-eval has the tasks.

    Raises:
        InputError: names all that it does not have.
    """
    known = manager.all_tasks
    unknown = [f"{name!r}{nearest(name, known)}" for name in names if name not in known and not Path(name).is_file()]
    if unknown:
        raise InputError(
            f"lm-eval has no task {', '.join(unknown)}; `python -m multilora.harness ls tasks` lists its "
            f"{len(known):,}, and include_path adds your own"
        )


def _summary(results: Mapping[str, Any]) -> dict[str, Any]:
    """lm-eval's results as JSON-compatible values, by task and group."""
    groups = results.get("groups", {})
    summary: dict[str, Any] = {"tasks": {}, "groups": {}, "lm_eval": results["lm_eval_version"]}
    for name, values in {**results["results"], **groups}.items():
        entry = {
            "metrics": _metrics(values, results["higher_is_better"].get(name, {})),
            "n": results["n-samples"].get(name, {}).get("effective", values.get("sample_len")),
            "shots": _shots(name, results),
            "version": results["versions"].get(name),
        }
        if name in groups or name in results["group_subtasks"]:
            entry["members"] = list(results["group_subtasks"].get(name, []))
            summary["groups"][name] = entry
        else:
            summary["tasks"][name] = entry
    if "samples" in results:
        from lm_eval.utils import handle_non_serializable

        summary["samples"] = json.loads(json.dumps(results["samples"], default=handle_non_serializable))
    return summary


def _shots(name: str, results: Mapping[str, Any]) -> int | None:
    """The shots of a task, or of the tasks of a group if they are all equal."""
    if name in results["n-shot"]:
        return int(results["n-shot"][name])
    members = results["group_subtasks"].get(name, [])
    shots = {_shots(member, results) for member in members}
    return shots.pop() if len(shots) == 1 else None


def _metrics(values: Mapping[str, Any], higher_is_better: Mapping[str, bool | None]) -> dict[str, dict[str, Any]]:
    """Metric -> value, standard error, filter, ...; metrics with several filters are named `metric,filter`."""
    pairs = [key.split(",", 1) for key in values if "," in key and "_stderr," not in key]
    names = [metric for metric, _ in pairs]
    metrics = {}
    for metric, kind in pairs:
        stderr = values.get(f"{metric}_stderr,{kind}")
        metrics[metric if names.count(metric) == 1 else f"{metric},{kind}"] = {
            "value": float(values[f"{metric},{kind}"]),
            "stderr": None if isinstance(stderr, str) or stderr is None else float(stderr),
            "filter": kind,
            "higher_is_better": higher_is_better.get(metric) is not False,
        }
    return metrics
