"""`evaluate`: every task of a run on its evaluation split, before and after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multilora.data.collate import pad_token_id
from multilora.data.mixture import generator
from multilora.data.render import Renderer
from multilora.data.tokenize import fit
from multilora.errors import DataError, RecipeError
from multilora.evaluation.metrics import TaskScore, mean_and_stderr
from multilora.evaluation.scoring import Advance, generate, log_likelihoods
from multilora.files import write_json
from multilora.modeling import best_device
from multilora.progress import progress
from multilora.recipe import EvaluationSection, Recipe
from multilora.rundir import Run
from multilora.tasks import make_task
from multilora.tasks.base import Example, Task
from multilora.training.run import max_length

Scores = dict[str, TaskScore]


@dataclass(frozen=True)
class Evaluation:
    """Per task: the base's score and the trained model's."""

    before: Scores
    after: Scores

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "before": {name: asdict(score) for name, score in self.before.items()},
            "after": {name: asdict(score) for name, score in self.after.items()},
        }


def evaluate(run: Run | str | Path, *, max_examples: int | None = None) -> Evaluation:
    """Score the base and the trained model of a run on every task; written to the run's `eval.json`.

    Args:
        run: the run or its directory
        max_examples: per task, in place of the recipe's

    Raises:
        RunDirectoryError: not a finished run.
        RecipeError: a task's evaluation data cannot be used; names every such task.
    """
    run = run if isinstance(run, Run) else Run(run)
    recipe = run.recipe
    section = recipe.evaluation
    if max_examples is not None:
        section = section.model_copy(update={"max_examples": max_examples})
    sets = evaluation_sets(recipe, section.max_examples)
    renderer = Renderer(run.load_tokenizer())
    device = best_device()
    # The base anew, not the adapted model with its adapter off: trained biases would stay on.
    base = run.load_base().to(device)
    length = max_length(recipe, base)
    before = score_tasks(base, renderer, sets, section, length, "evaluating base")
    del base
    after = score_tasks(run.load_model().to(device), renderer, sets, section, length, "evaluating run")
    evaluation = Evaluation(before, after)
    write_json(run.path / "eval.json", evaluation.as_dict())
    return evaluation


def evaluation_sets(recipe: Recipe, max_examples: int) -> dict[str, tuple[Task, list[Example]]]:
    """The evaluation examples of every task: a fixed random subset of at most `max_examples`.

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
            chosen = generator(0, "evaluation", section.name).permutation(len(dataset))[:max_examples]
            dataset = dataset.select(np.sort(chosen))
        sets[section.name] = (task, dataset.to_list())
    if problems:
        raise RecipeError(problems, "data")
    return sets


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
        work += len(examples) if task.metric == "exact_match" else 0
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
    bos = renderer.tokenizer.bos_token_id
    closing = renderer.closing_ids()
    sequences: list[tuple[list[int], list[int]]] = []
    spans: list[range] = []  # of each example's sequences; its reference response is the first
    kept: list[Example] = []
    truncated = 0
    for example in examples:
        prefix = renderer.prefix_ids(example["prompt"])
        choices = example["choices"]
        if choices:
            gold = example["labels"][0]
            responses = [choices[gold], *(c for i, c in enumerate(choices) if i != gold)]
        else:
            responses = [example["response"]]
        start = len(sequences)
        continuations = [renderer.response_ids(response) + closing for response in responses]
        fitted = fit(prefix, max(continuations, key=len), length, bos)
        if fitted is None:
            advance(len(responses) + (task.metric == "exact_match"))
            continue
        kept.append(example)
        truncated += len(fitted) < len(prefix)
        sequences += [(fitted, continuation) for continuation in continuations]
        spans.append(range(start, len(sequences)))
    if not kept:
        raise DataError(
            f"task {task.name!r}: none of the {len(examples)} evaluation examples has a response that fits into "
            f"{length} tokens; raise data.max_length"
        )
    found = log_likelihoods(
        model,
        sequences,
        pad=pad_token_id(renderer.tokenizer),
        batch_size=section.batch_size,
        advance=advance,
    )
    total = sum(float(found[span.start].double().sum()) for span in spans)
    tokens = sum(len(sequences[span.start][1]) for span in spans)
    value: float | None = None
    stderr: float | None = None
    if task.metric == "accuracy":
        right = []
        for example, span in zip(kept, spans, strict=True):
            texts_ids = [sequences[place][1][: -len(closing)] for place in span]
            right.append(_is_right(example, span, found, 0 if _one_begins_another(texts_ids) else len(closing)))
        value, stderr = mean_and_stderr(right)
    elif task.metric == "exact_match":
        room = (getattr(model.config, "max_position_embeddings", None) or 2**31) - section.max_new_tokens
        prefixes = []
        for span in spans:
            prefix = sequences[span.start][0]
            fitted = fit(prefix, [], room, bos)
            if fitted is None:
                raise DataError(
                    f"evaluation.max_new_tokens: {section.max_new_tokens} leaves no room for a prompt among the "
                    "model's positions; make it smaller"
                )
            truncated += len(fitted) < len(prefix)
            prefixes.append(fitted)
        texts = generate(
            model,
            renderer.tokenizer,
            prefixes,
            stop_ids=sorted({renderer.tokenizer.eos_token_id, closing[-1]}),
            max_new_tokens=section.max_new_tokens,
            batch_size=section.batch_size,
            advance=advance,
        )
        right = [task.final_answer(text) == example["answer"] for text, example in zip(texts, kept, strict=True)]
        value, stderr = mean_and_stderr(right)
    return TaskScore(task.metric, value, stderr, len(kept), -total / tokens, truncated, len(examples) - len(kept))


def _one_begins_another(choices: list[list[int]]) -> bool:
    """Whether some choice is the beginning of another; without its end it could never be the less likely one."""
    return any(a is not b and b[: len(a)] == a for a in choices for b in choices)


def _is_right(example: Example, span: range, found: Sequence[Any], closing: int) -> bool:
    """Whether the most likely choice (by the sum over its tokens, without the last `closing`) is a right one.

    A tie counts as wrong: the reference comes first and must not win by its place.
    """
    gold = example["labels"][0]
    order = [gold, *(i for i in range(len(example["choices"])) if i != gold)]
    likelihood = [float(found[place][: len(found[place]) - closing].double().sum()) for place in span]
    best = max(likelihood)
    winners = [choice for choice, value in zip(order, likelihood, strict=True) if value == best]
    return all(winner in example["labels"] for winner in winners)
