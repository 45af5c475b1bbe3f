"""Score tasks: choices by log-likelihood, generated text by the task's metrics, all tasks by loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from multilora.data.collate import pad_token_id
from multilora.data.mixture import generator
from multilora.data.render import Renderer
from multilora.errors import DataError, RecipeError
from multilora.evaluation.choices import most_likely_choice, one_begins_another
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
    """Load the evaluation examples of every task: a fixed random subset of at most `max_examples`.

    A task that is scored by groups keeps complete groups: at least one, and as many as fit into `max_examples`.

    Raises:
        RecipeError: the data of some tasks cannot be used; one problem per task.
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
    sets: Mapping[str, tuple[Task, Sequence[Example]]],
    section: EvaluationSection,
    length: int,
    description: str,
) -> Scores:
    """Score a model on every task; leaves the model in eval mode.

    Args:
        model: a causal language model
        renderer: of the base's tokenizer
        sets: task name -> (task, evaluation examples)
        section: sets the batch size and the maximum response length
        length: maximum tokens per sequence; longer prompts are truncated on the left and counted
        description: of the progress bar

    Raises:
        DataError: no example of a task fits.
    """
    model.eval()
    sequences = 0
    for task, examples in sets.values():
        sequences += sum(max(1, len(example["choices"])) for example in examples)
        sequences += len(examples) if task.kind == "generate" else 0
    scores = {}
    with progress(description, sequences) as advance:
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
    tokenized = questions_of(renderer, examples, length)
    advance(sum(max(1, len(e["choices"])) for e in examples) - sum(len(q.sequences) for q in tokenized.questions))
    if not tokenized.questions:
        raise DataError(
            f"task {task.name!r}: none of the {len(examples)} evaluation examples has a response that fits into "
            f"{length} tokens; raise data.max_length"
        )
    token_likelihoods = log_likelihoods(
        model,
        [sequence for question in tokenized.questions for sequence in question.sequences],
        pad=pad_token_id(renderer.tokenizer),
        batch_size=section.batch_size,
        advance=advance,
    )
    total, tokens, start = 0.0, 0, 0
    likelihoods = []
    for question in tokenized.questions:
        question_likelihoods = token_likelihoods[start : start + len(question.sequences)]
        start += len(question_likelihoods)
        likelihoods.append(question_likelihoods)
        total += sum(float(item.double().sum()) for item in question_likelihoods[: question.references])
        tokens += sum(len(continuation) for _, continuation in question.sequences[: question.references])
    truncated = tokenized.truncated
    predictions: list[str] = []
    if task.kind == "choice":
        closing = len(renderer.closing_ids())
        for question, question_likelihoods in zip(tokenized.questions, likelihoods, strict=True):
            texts = [continuation[: len(continuation) - closing] for _, continuation in question.sequences]
            ignored = 0 if one_begins_another(texts) else closing
            predictions.append(most_likely_choice(question.example, question_likelihoods, ignored))
    elif task.kind == "generate":
        prefixes, truncated_again = prefixes_of(model, renderer, tokenized.questions, section)
        truncated += truncated_again
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
    kept = [question.example for question in tokenized.questions]
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
