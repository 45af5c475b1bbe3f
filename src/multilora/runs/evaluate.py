"""`evaluate`: score a run before and after training; `evaluate_models`: score any models on any tasks."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multilora.errors import InputError, RunDirectoryError
from multilora.files import copy_file, write_json
from multilora.foreign_errors import own_errors
from multilora.processes import is_main_process, join_processes
from multilora.progress import facts
from multilora.recipe import Recipe
from multilora.references import load_reference
from multilora.runs.candidate import Candidate, candidate
from multilora.runs.card import write_run_card
from multilora.runs.card_facts import CARD_FILE
from multilora.runs.directory import EVAL_FILE, Run

if TYPE_CHECKING:
    from multilora.evaluation.score import Scores

logger = logging.getLogger(__name__)

BASE_LABEL, RUN_LABEL = "base", "run"
HARNESS = "multilora.harness.protocol:HarnessProtocol"


@dataclass(frozen=True)
class Evaluation:
    """Scores of the base (`before`) and of the trained model (`after`), per task."""

    before: Scores
    after: Scores
    weights_of_step: int

    def as_dict(self) -> dict[str, Any]:
        """Return the scores as JSON-compatible values."""
        return {
            "before": {name: asdict(score) for name, score in self.before.items()},
            "after": {name: asdict(score) for name, score in self.after.items()},
            "weights_of_step": self.weights_of_step,
        }


@own_errors
def evaluate(run: Run | str | Path, *, max_examples: int | None = None, shots: int | None = None) -> Evaluation:
    """Score the base and the trained model of a run on every task.

    Writes the scores to the run's `eval.json` and into its model card, and every question and answer to
    `samples/base.parquet` and `samples/run.parquet`. The scores of a base in a local folder are cached.

    Args:
        run: a run or its directory
        max_examples: per task; overrides the recipe
        shots: solved examples before each question; overrides the recipe

    Raises:
        RunDirectoryError: not a finished run.
        RecipeError: the evaluation data of some tasks cannot be used; one problem per task.
        InputError: the recipe's protocol is `harness`, and lm-eval is missing or cannot load a task.
    """
    run = run if isinstance(run, Run) else Run(run)
    run.check_writable()
    for file in (run.path / EVAL_FILE, run.weights / CARD_FILE):  # found out before anything is written
        if file.is_dir():
            raise RunDirectoryError(f"{file}: is a folder, expected a file or nothing; remove it")
    recipe, weights_of_step = _changed(run.recipe, max_examples, shots), run.training["weights_of_step"]
    # The base is loaded on its own: with a disabled adapter, it would keep trained biases.
    base = Candidate(BASE_LABEL, recipe.model)
    trained = Candidate(RUN_LABEL, recipe.model, run=run)
    scores = score_candidates([trained, base], recipe, run.path / "samples")  # damaged weights are found out first
    evaluation = Evaluation(scores[BASE_LABEL], scores[RUN_LABEL], weights_of_step)
    if is_main_process():
        write_json(run.path / EVAL_FILE, evaluation.as_dict())
        write_run_card(run)
    return evaluation


@own_errors
def evaluate_models(
    models: Sequence[str | Path | Run],
    tasks: str | Path | Mapping[str, Any] | None = None,
    *,
    max_examples: int | None = None,
    shots: int | None = None,
    samples: str | Path | None = None,
    dtype: str | None = None,
) -> dict[str, Scores]:
    """Score several models on the same examples.

    Args:
        models: runs, adapter folders, model folders or names on the hub; none twice
        tasks: a YAML file, or its content, with `tasks:` and optionally `data:` and `evaluation:`, as in a recipe; by
            default, those of the first run among the models
        max_examples: per task; overrides `evaluation.max_examples`
        shots: solved examples before each question; overrides `evaluation.shots`
        samples: folder for one file of samples per model; by default none are written
        dtype: of models that are not runs; by default bfloat16

    Returns:
        model, as passed -> task -> score

    Raises:
        InputError: a model cannot be loaded, or there are no tasks.
        RecipeError: the tasks cannot be used.
    """
    candidates = [candidate(model, dtype=dtype) for model in models]
    labels = [item.label for item in candidates]
    if not candidates or len(set(labels)) < len(labels):
        raise InputError(f"models are {labels}, expected at least one, and none twice")
    recipe = _changed(tasks_of(candidates, tasks), max_examples, shots)
    return score_candidates(candidates, recipe, None if samples is None else Path(samples))


def tasks_of(candidates: Sequence[Candidate], tasks: str | Path | Mapping[str, Any] | None) -> Recipe:
    """Return a recipe with the tasks to evaluate on; its model is not used.

    Args:
        candidates: at least one
        tasks: see `evaluate_models`

    Raises:
        InputError: there are no tasks.
        RecipeError: the tasks cannot be used.
    """
    if tasks is None:
        runs = [item.run for item in candidates if item.run is not None]
        if not runs:
            raise InputError(
                f"{candidates[0].label} is not a run, so it has no tasks; pass a file with `tasks:` (--tasks FILE)"
            )
        return runs[0].recipe
    values = dict(tasks) if isinstance(tasks, Mapping) else Recipe.read(tasks)[0]
    used = {name: values[name] for name in ("tasks", "data", "evaluation") if name in values}
    section = candidates[0].base.model_dump(exclude_none=True)
    return Recipe.load({"model": section, "training": {"max_steps": 1}, **used})


def _changed(recipe: Recipe, max_examples: int | None, shots: int | None) -> Recipe:
    """The recipe with other numbers of examples and shots, unless they are None."""
    for name, value, least in (("max_examples", max_examples, 1), ("shots", shots, 0)):
        if value is not None and value < least:
            raise InputError(f"{name} is {value}, expected at least {least}")
        if value is not None:
            section = recipe.evaluation.model_copy(update={name: value})
            recipe = recipe.model_copy(update={"evaluation": section})
    return recipe


def score_candidates(candidates: Sequence[Candidate], recipe: Recipe, samples: Path | None) -> dict[str, Scores]:
    """Score models one after the other, so that only one is in memory.

    Args:
        candidates: with different labels
        recipe: its tasks, data and evaluation sections are used
        samples: folder for one file of samples per model, named after its label; None for none

    Returns:
        label -> task -> score
    """
    # These import torch, which takes seconds: models and tasks are checked before.
    from accelerate.utils import broadcast_object_list

    from multilora.evaluation.score import evaluation_sets
    from multilora.runs.base_scores import read_scores, scores_key, write_scores

    # By reference, because its room is above this one: it evaluates runs too.
    protocol = load_reference(HARNESS)(recipe) if recipe.evaluation.protocol == "harness" else None
    join_processes()  # they share the work out
    scored_elsewhere = protocol.names if protocol else ()
    sets = evaluation_sets(recipe, recipe.evaluation.max_examples, scored_elsewhere)
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        # Moved into place at the end: a failure leaves no file behind.
        names = sample_names([model.label for model in candidates])
        for model, name in zip(candidates, names, strict=True):
            file = Path(temporary) / f"{name}.parquet"
            key = scores_key(model, recipe, sets, protocol.key if protocol else "ours") if is_main_process() else None
            (scores,) = broadcast_object_list([None if key is None else read_scores(key, file)])
            if scores is None:
                scores = _score_one(model, recipe, sets, file, protocol)
                if key is not None:
                    write_scores(key, scores, file)
            results[model.label] = scores
        if samples is not None and is_main_process():
            samples.mkdir(parents=True, exist_ok=True)
            for name in names:
                copy_file(Path(temporary) / f"{name}.parquet", samples / f"{name}.parquet")
    return results


def _score_one(model: Candidate, recipe: Recipe, sets: Any, samples: Path, protocol: Any) -> Scores:
    from multilora.data.render import Renderer
    from multilora.evaluation.answers import samples_of
    from multilora.evaluation.samples import Sample, write_samples
    from multilora.evaluation.score import score_tasks

    renderer = Renderer(model.load_tokenizer(), recipe.data.template, recipe.data.special_tokens)
    loaded = model.load()
    found = {"model": model.run.path if model.run else model.label, "base": model.base.name_or_path}
    found = {"model": model.base.name_or_path} if model.is_plain else found
    dtype = str(loaded.dtype).removeprefix("torch.")
    logger.info("%s", facts({**found, "device": loaded.device, "dtype": dtype}))
    kept: list[Sample] = []
    scores = score_tasks(
        loaded,
        renderer,
        sets,
        recipe.evaluation,
        f"evaluating {model.label}",
        keep=lambda task, answers: kept.extend(samples_of(task, renderer, answers, model.label)),
    )
    if protocol is not None:
        others, asked = protocol.score(loaded, renderer.tokenizer, scores, model.label)
        scores = {name: others.get(name, score) for name, score in scores.items()}
        kept = [sample for sample in kept if sample.task not in others] + asked
    if is_main_process():
        write_samples(samples, kept)
    return scores


def sample_names(labels: Sequence[str]) -> list[str]:
    """Return the names of the models' files of samples: the last part of the label, numbered if it is not unique."""
    names = [re.sub(r"[^\w.-]", "-", Path(label).name).strip(".-") or "model" for label in labels]
    return [name if names.count(name) == 1 else f"{name}-{number}" for number, name in enumerate(names, 1)]
