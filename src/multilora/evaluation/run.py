"""`evaluate`: every task of a run on its evaluation split, before and after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from multilora.data.collate import pad_token_id
from multilora.data.mixture import generator
from multilora.data.render import Renderer
from multilora.errors import DataError, RecipeError
from multilora.evaluation.choices import chosen, one_begins_another
from multilora.evaluation.metrics import TaskScore
from multilora.evaluation.questions import prefixes_of, questions_of
from multilora.evaluation.scoring import Advance, generate, log_likelihoods
from multilora.evaluation.uncertainty import main_stderr
from multilora.files import write_json
from multilora.modeling import best_device, place
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
    renderer = Renderer(run.load_tokenizer(), recipe.data.template)
    device = best_device()
    # The base anew, not the adapted model with its adapter off: trained biases would stay on.
    base = place(run.load_base(), device)
    length = max_length(recipe, base)
    before = score_tasks(base, renderer, sets, section, length, "evaluating base")
    del base
    after = score_tasks(place(run.load_model(), device), renderer, sets, section, length, "evaluating run")
    evaluation = Evaluation(before, after)
    write_json(run.path / "eval.json", evaluation.as_dict())
    return evaluation


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
    """Places of the examples of randomly drawn groups, at most `limit` unless the first group alone is larger."""
    members: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    names = list(members)
    places: list[int] = []
    for number in rng.permutation(len(names)):
        own = members[names[number]]
        if places and len(places) + len(own) > limit:
            break
        places += own
    return np.asarray(places, dtype=np.int64)


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
    asked = questions_of(renderer, examples, length)
    advance(sum(max(1, len(e["choices"])) for e in examples) - sum(len(q.sequences) for q in asked.questions))
    if not asked.questions:
        raise DataError(
            f"task {task.name!r}: none of the {len(examples)} evaluation examples has a response that fits into "
            f"{length} tokens; raise data.max_length"
        )
    found = log_likelihoods(
        model,
        [sequence for question in asked.questions for sequence in question.sequences],
        pad=pad_token_id(renderer.tokenizer),
        batch_size=section.batch_size,
        advance=advance,
    )
    total, tokens, start = 0.0, 0, 0
    likelihoods = []
    for question in asked.questions:
        own = found[start : start + len(question.sequences)]
        start += len(own)
        likelihoods.append(own)
        total += sum(float(item.double().sum()) for item in own[: question.references])
        tokens += sum(len(continuation) for _, continuation in question.sequences[: question.references])
    truncated = asked.truncated
    predictions: list[str] = []
    if task.kind == "choice":
        closing = len(renderer.closing_ids())
        for question, own in zip(asked.questions, likelihoods, strict=True):
            texts = [continuation[: len(continuation) - closing] for _, continuation in question.sequences]
            predictions.append(chosen(question.example, own, 0 if one_begins_another(texts) else closing))
    elif task.kind == "generate":
        prefixes, shortened = prefixes_of(model, renderer, asked.questions, section)
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
    kept = [question.example for question in asked.questions]
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
    )
