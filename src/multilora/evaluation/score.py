"""Every task scored its own way: choices by log-likelihood, generated text by its metrics, all of them by loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from multilora.data.collate import pad_token_id
from multilora.data.mixture import generator
from multilora.data.render import Renderer
from multilora.errors import DataError, RecipeError
from multilora.evaluation.choices import chosen, one_begins_another
from multilora.evaluation.questions import prefixes_of, questions_of
from multilora.evaluation.scoring import Advance, generate, log_likelihoods
from multilora.evaluation.task_score import TaskScore
from multilora.evaluation.uncertainty import main_stderr
from multilora.example import Example
from multilora.progress import progress
from multilora.recipe import EvaluationSection, Recipe
from multilora.tasks.base import Task
from multilora.tasks.make import make_task

Scores = dict[str, TaskScore]


def evaluation_sets(recipe: Recipe, max_examples: int) -> dict[str, tuple[Task, list[Example]]]:
    """The evaluation examples of every task: a fixed random subset of at most `max_examples`.

    A task that is scored by groups is cut to whole groups: at least one, and as many as stay within `max_examples`.

    Raises:
        RecipeError: with one problem per task whose data cannot be used.
    """
    sets: dict[str, tuple[Task, list[Example]]] = {}
    problems = []
    for section in recipe.tasks:
        try:
            task = make_task(section)
            dataset = task.load("eval")
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
        sets[section.name] = (task, dataset.to_list())
    if problems:
        raise RecipeError(problems, "data")
    return sets


def _whole_groups(groups: Sequence[str], limit: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Indices of the examples of randomly drawn groups, at most `limit` unless the first group alone is larger."""
    members: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    names = list(members)
    indices: list[int] = []
    for number in rng.permutation(len(names)):
        of_group = members[names[number]]
        if indices and len(indices) + len(of_group) > limit:
            break
        indices += of_group
    return np.asarray(indices, dtype=np.int64)


def score_tasks(
    model: Any,
    renderer: Renderer,
    sets: Mapping[str, tuple[Task, Sequence[Example]]],
    section: EvaluationSection,
    length: int,
    description: str,
) -> Scores:
    """Score one model on every task; leaves the model in eval mode.

    Args:
        model: a causal language model
        renderer: for its tokenizer
        sets: task name -> (task, evaluation examples)
        section: batch size and longest response
        length: longest sequence in tokens; a longer prompt is cut from its left and counted
        description: of the progress bar
    """
    model.eval()
    work = 0
    for task, examples in sets.values():
        work += sum(max(1, len(example["choices"])) for example in examples)
        work += len(examples) if task.kind == "generate" else 0
    scores = {}
    with progress(description, work) as advance:
        for name, (task, examples) in sets.items():
            advance(0, note=name)
            scores[name] = _score_task(model, renderer, task, examples, section, length, advance)
    return scores


def _score_task(
    model: Any,
    renderer: Renderer,
    task: Task,
    examples: Sequence[Example],
    section: EvaluationSection,
    length: int,
    advance: Advance,
) -> TaskScore:
    fitting = questions_of(renderer, examples, length)
    advance(sum(max(1, len(e["choices"])) for e in examples) - sum(len(q.sequences) for q in fitting.questions))
    if not fitting.questions:
        raise DataError(
            f"task {task.name!r}: none of the {len(examples)} evaluation examples has a response that fits into "
            f"{length} tokens; raise data.max_length"
        )
    token_likelihoods = log_likelihoods(
        model,
        [sequence for question in fitting.questions for sequence in question.sequences],
        pad=pad_token_id(renderer.tokenizer),
        batch_size=section.batch_size,
        advance=advance,
    )
    total, tokens, start = 0.0, 0, 0
    likelihoods = []
    for question in fitting.questions:
        of_question = token_likelihoods[start : start + len(question.sequences)]
        start += len(of_question)
        likelihoods.append(of_question)
        total += sum(float(item.double().sum()) for item in of_question[: question.references])
        tokens += sum(len(continuation) for _, continuation in question.sequences[: question.references])
    truncated = fitting.truncated
    predictions: list[str] = []
    if task.kind == "choice":
        closing = len(renderer.closing_ids())
        for question, of_question in zip(fitting.questions, likelihoods, strict=True):
            texts = [continuation[: len(continuation) - closing] for _, continuation in question.sequences]
            predictions.append(chosen(question.example, of_question, 0 if one_begins_another(texts) else closing))
    elif task.kind == "generate":
        prefixes, shortened = prefixes_of(model, renderer, fitting.questions, section)
        truncated += shortened
        predictions = generate(
            model,
            renderer.tokenizer,
            prefixes,
            stop_ids=sorted({renderer.tokenizer.eos_token_id, renderer.closing_ids()[-1]}),
            max_new_tokens=section.max_new_tokens,
            batch_size=section.batch_size,
            advance=advance,
        )
        advance(len(examples) - len(prefixes))
    kept = [question.example for question in fitting.questions]
    metrics = task.score(kept, predictions) if predictions else {}
    main = next(iter(metrics), "none")
    return TaskScore(
        metric=main,
        value=metrics.get(main),
        stderr=main_stderr(task, kept, predictions) if metrics else None,
        n=len(kept),
        loss=-total / tokens,
        truncated=truncated,
        dropped=len(examples) - len(kept),
        metrics=metrics,
        higher_is_better=task.main_metric is None or task.main_metric[1].higher_is_better,
    )
