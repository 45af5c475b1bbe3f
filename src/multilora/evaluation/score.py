"""Score tasks: choices by log-likelihood, generated text by the task's metrics, all tasks by loss."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from multilora.data.mixture import generator
from multilora.data.render import Renderer
from multilora.errors import DataError, RecipeError
from multilora.evaluation.answers import Answers, answer
from multilora.evaluation.evaluation_set import EvaluationSet, shots_of
from multilora.evaluation.statistics.uncertainty import main_uncertainty
from multilora.evaluation.task_score import TaskScore
from multilora.example import Example
from multilora.modeling import max_positions
from multilora.progress import progress
from multilora.recipe import EvaluationSection, Recipe
from multilora.tasks.base import Task
from multilora.tasks.make import make_task
from multilora.tasks.splits import load_split

Scores = dict[str, TaskScore]
Keep = Callable[[Task, Answers], None]


def evaluation_sets(recipe: Recipe, max_examples: int, loss_only: Collection[str] = ()) -> dict[str, EvaluationSet]:
    """Load the evaluation examples of every task, and their shots: a fixed random subset of at most `max_examples`.

    A task that is scored by groups keeps complete groups: at least one, and as many as fit into `max_examples`.

    Args:
        recipe: its tasks, and `evaluation`
        max_examples: per task
        loss_only: names of the tasks of which only the loss is measured

    Raises:
        RecipeError: the data of some tasks cannot be used; one problem per task.
    """
    sets: dict[str, EvaluationSet] = {}
    problems = []
    for section in recipe.tasks:
        shots: dict[str, list[Example]] = {}
        try:
            task = make_task(section)
            dataset = load_split(task, recipe.evaluation.split, recipe.evaluation.validation_share)
            if recipe.evaluation.shots:
                shots = shots_of(task, dataset.to_list(), recipe.evaluation.shots, recipe.evaluation.validation_share)
        except DataError as error:
            problems.append(str(error))
            continue
        if len(dataset) > max_examples:
            rng = generator(0, "evaluation", section.name)
            if task.whole_groups:
                subset = _whole_groups(dataset["group"], max_examples, rng)
            else:
                subset = rng.permutation(len(dataset))[:max_examples]
            dataset = dataset.select(np.sort(subset))
        sets[section.name] = EvaluationSet(task, dataset.to_list(), shots, section.name in loss_only)
    if problems:
        raise RecipeError(problems, "data")
    return sets


def _whole_groups(groups: Sequence[str], limit: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return the indices of the examples in randomly drawn groups, at most `limit` unless the first group is larger."""
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    names = list(members)
    indices: list[int] = []
    for group_index in rng.permutation(len(names)):
        group_members = members[names[group_index]]
        if indices and len(indices) + len(group_members) > limit:
            break
        indices += group_members
    return np.asarray(indices, dtype=np.int64)


def score_tasks(
    model: Any,
    renderer: Renderer,
    sets: Mapping[str, EvaluationSet],
    section: EvaluationSection,
    description: str,
    *,
    length: int | None = None,
    keep: Keep = lambda task, answers: None,
) -> Scores:
    """Score a model on every task; leaves the model in eval mode.

    Args:
        model: a causal language model
        renderer: of the base's tokenizer
        sets: task name -> what it is scored on
        section: sets the size of batches and the maximum response length
        description: of the progress bar
        length: maximum tokens per sequence, by default the model's positions; longer prompts lose shots or are
            truncated on the left, and are counted
        keep: called with every task and its answers

    Raises:
        DataError: no example of a task fits.
    """
    model.eval()
    if length is None:
        length = max_positions(model.config) or 2**31
    scores = {}
    with progress(description, sum(len(items.examples) for items in sets.values())) as advance:
        for name, items in sets.items():
            advance(0, note=name)
            answers = answer(model, renderer, items, section, length, advance)
            keep(items.task, answers)
            scores[name] = task_score(items, answers)
    return scores


def task_score(items: EvaluationSet, answers: Answers) -> TaskScore:
    """Return the metrics and the loss of a task, and what has to be known about them."""
    task, examples = items.task, answers.examples
    metrics = task.score(examples, answers.predictions) if answers.predictions else {}
    main = next(iter(metrics), "none")
    uncertainty = main_uncertainty(task, examples, answers.predictions) if metrics else None
    return TaskScore(
        metric=main,
        value=metrics.get(main),
        stderr=uncertainty.stderr if uncertainty else None,
        interval=[uncertainty.low, uncertainty.high] if uncertainty else None,
        clusters=uncertainty.clusters if uncertainty else None,
        n=len(examples),
        loss=answers.loss,
        truncated=sum(question.truncated for question in answers.questions),
        dropped=len(items.examples) - len(examples),
        near_ties=answers.near_ties,
        end_scored=sum(question.end_scored for question in answers.questions),
        unfinished=answers.unfinished,
        fewer_shots=sum(question.fewer_shots for question in answers.questions),
        metrics=metrics,
        parts=_parts(task, examples, answers.predictions) if metrics else {},
        higher_is_better=task.main_metric is None or task.main_metric[1].higher_is_better,
        shots=items.shot_count,
        protocol=", ".join(["ours", f"{items.shot_count}-shot", *_choice_score(task)]),
    )


def _choice_score(task: Task) -> list[str]:
    kind = task.section.choice_score
    return [] if kind == "sum" else [f"choices by {kind}"]


def _parts(task: Task, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return value, standard error and number of examples of every part, see `Task.parts_of`."""
    members: dict[tuple[str, str], list[int]] = {}
    for index, example in enumerate(examples):
        for part in task.parts_of(example).items():
            members.setdefault(part, []).append(index)
    parts: dict[str, dict[str, dict[str, Any]]] = {}
    for (kind, name), indices in sorted(members.items()):
        chosen = [examples[index] for index in indices], [predictions[index] for index in indices]
        value = next(iter(task.score(*chosen).values()))
        stderr = main_uncertainty(task, *chosen).stderr
        parts.setdefault(kind, {})[name] = {"value": value, "stderr": stderr, "n": len(indices)}
    return parts
