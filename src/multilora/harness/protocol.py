"""`evaluation: {protocol: harness}`: the built-in tasks that lm-eval has are scored by its definitions.

The loss of these tasks, and everything about the others, is that of this package's own protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from multilora.errors import InputError
from multilora.evaluation.samples import Sample
from multilora.evaluation.statistics.intervals import normal_quantile, score_interval
from multilora.evaluation.task_score import TaskScore
from multilora.harness.require import own_task_errors
from multilora.harness.run import harness_scores, task_manager
from multilora.harness.samples import sample_of
from multilora.harness.tasks import LOCAL, check_data, harness_name, local_task
from multilora.recipe import Recipe
from multilora.recipe.schema import HUB_PREFIX, TaskSection


class HarnessProtocol:
    """lm-eval's tasks for a recipe; loaded before any model.

    Attributes:
        names: of the tasks that lm-eval scores
        key: changes when their definitions or their data do; None if it is not known, for data on the hub

    Args:
        recipe: its tasks, shots, and `evaluation.max_examples`, see `documents_limit`

    Raises:
        InputError: lm-eval is missing, does not have the task, or cannot load it.
        DataError: the data of a task cannot be used.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.manager = task_manager()
        self.tasks: dict[str, Any] = {}
        for section in recipe.tasks:
            default = harness_name(section.name)
            if default is not None and section.task is None:
                self.tasks[section.name] = self._load(section, section.harness_task or default)
        self.names = frozenset(self.tasks)
        self.limits = {name: self._limit(item) for name, item in self.tasks.items()}

    def _load(self, section: TaskSection, name: str) -> Any:
        if section.path is not None and not section.path.startswith(HUB_PREFIX):
            return local_task(section, self.manager)
        check_data(name, section, self.manager)
        with own_task_errors():
            loaded = self.manager.load([name])
        item = loaded["groups"].get(name) or loaded["tasks"][name]
        given = (section.path or "").removeprefix(HUB_PREFIX).partition(":")[0]
        found = sorted({str(task.config.dataset_path) for task in _leaves(item)})
        if given and found != [given]:
            raise InputError(
                f"task {section.name!r}: path is {section.path}, and lm-eval's {name!r} reads {HUB_PREFIX}{found[0]}; "
                "give that, a local path, or none"
            )
        return item

    @property
    def key(self) -> list[Any] | None:
        """See the class."""
        sources = [
            [task.config.task, str(task.config.dataset_path), str(task.config.dataset_name)]
            for item in self.tasks.values()
            for task in _leaves(item)
        ]
        if not all(Path(path).name.startswith(LOCAL) for _, path, _ in sources):
            return None
        return [version("lm-eval"), sources, self.recipe.evaluation.shots, sorted(self.limits.items(), key=str)]

    def _limit(self, item: Any) -> int | None:
        counts = [len(task.eval_docs) for task in _leaves(item)]
        return documents_limit(counts, self.recipe.evaluation.max_examples)

    def score(
        self, model: Any, tokenizer: Any, losses: Mapping[str, TaskScore], label: str
    ) -> tuple[dict[str, TaskScore], list[Sample]]:
        """Score a model by lm-eval.

        Args:
            model, tokenizer: a causal language model in eval mode
            losses: task -> its score by this package, of which the loss is used
            label: of the model, for the samples

        Returns:
            task -> score, and the samples; in a run of several processes, samples only in the first
        """
        from accelerate.utils import broadcast_object_list

        from multilora.harness.engine_model import MultiLoraLM

        lm = MultiLoraLM(model=model, tokenizer=tokenizer, batch_tokens=self.recipe.evaluation.batch_tokens)
        scores, samples = {}, []
        for name, item in self.tasks.items():
            result = harness_scores(
                lm,
                [item],
                shots=self.recipe.evaluation.shots,
                limit=self.limits[name],
                samples=True,
                manager=self.manager,
            )
            score = None
            if result is not None:
                score = task_score(_name(item), result, losses[name])
                samples += [
                    sample_of(name, number, task, row, score.metric, label)
                    for number, (task, row) in enumerate(_first_filter(result["samples"]))
                ]
            (scores[name],) = broadcast_object_list([score])
        return scores, samples


def documents_limit(counts: Sequence[int], most: int) -> int | None:
    """Return the `limit` of lm-eval that scores at most `most` documents; None if all are scored.

    lm-eval applies a limit to every task of a group, and takes the first documents of each.

    Args:
        counts: documents of every task of the group, or of the task
        most: documents in all; at least one of every task is scored
    """
    if sum(counts) <= most:
        return None
    limit = 1
    while sum(min(count, limit + 1) for count in counts) <= most:
        limit += 1
    return limit


def task_score(name: str, result: Mapping[str, Any], loss: TaskScore) -> TaskScore:
    """Return a score of lm-eval in the form of this package's scores.

    The interval is Wilson's with lm-eval's standard error, see `score_interval`.

    Args:
        name: of the task or group in lm-eval
        result: from `harness_scores`
        loss: the score of which the loss is used
    """
    entry = result["groups"].get(name) or result["tasks"][name]
    metrics = {metric: found["value"] for metric, found in entry["metrics"].items()}
    main, found = next(iter(entry["metrics"].items()))
    value, stderr, n = found["value"], found["stderr"], entry["n"]
    interval = None
    if stderr is not None and 0 <= value <= 1:
        interval = list(score_interval(value, stderr, n, normal_quantile()))
    parts = _parts(name, main, result)
    subjects = parts.get("subject")
    if subjects:
        metrics[f"{main}_over_subjects"] = sum(part["value"] for part in subjects.values()) / len(subjects)
    shots = entry["shots"]
    return replace(
        loss,
        metric=main,
        value=value,
        stderr=stderr,
        interval=interval,
        clusters=None,
        n=n,
        loss_n=loss.n,
        metrics=metrics,
        parts=parts,
        higher_is_better=found["higher_is_better"],
        shots=shots,
        protocol=f"lm-eval {result['lm_eval']}: {name} v{entry['version']}, {shots}-shot",
        harness={
            "lm_eval": result["lm_eval"],
            "task": name,
            "version": entry["version"],
            "shots": shots,
            "metrics": entry["metrics"],
        },
    )


def _parts(name: str, metric: str, result: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """The groups and tasks of a group of lm-eval; `mmlu_anatomy` of `mmlu` is `anatomy`."""
    if name not in result["groups"]:
        return {}
    parts: dict[str, dict[str, dict[str, Any]]] = {"group": {}, "subject": {}}
    for kind, entries in (("group", result["groups"]), ("subject", result["tasks"])):
        for part, entry in entries.items():
            if part != name and metric in entry["metrics"]:
                values = entry["metrics"][metric]
                short = part.removeprefix(f"{name}_")
                parts[kind][short] = {"value": values["value"], "stderr": values["stderr"], "n": entry["n"]}
    return parts


def _first_filter(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, Mapping[str, Any]]]:
    """The samples of every task; those of one filter if there are several."""
    return [(task, row) for task, rows in samples.items() for row in rows if row["filter"] == rows[0]["filter"]]


def _leaves(item: Any) -> list[Any]:
    return list(item.get_all_tasks()) if hasattr(item, "get_all_tasks") else [item]


def _name(item: Any) -> str:
    return str(item.name if hasattr(item, "get_all_tasks") else item.task_name)
