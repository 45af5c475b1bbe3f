"""`evaluate`: score a run on the evaluation split of every task, before and after training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from multilora.data.render import Renderer
from multilora.data.tokenize import row_length
from multilora.errors import InputError
from multilora.evaluation.score import Scores, evaluation_sets, score_tasks
from multilora.files import write_json
from multilora.foreign_errors import own_errors
from multilora.modeling import best_device, to_device
from multilora.runs.directory import Run


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
def evaluate(run: Run | str | Path, *, max_examples: int | None = None) -> Evaluation:
    """Score the base and the trained model of a run on every task, and write the scores to the run's `eval.json`.

    Args:
        run: a run or its directory
        max_examples: per task; overrides the recipe

    Raises:
        RunDirectoryError: not a finished run.
        RecipeError: the evaluation data of some tasks cannot be used; one problem per task.
    """
    run = run if isinstance(run, Run) else Run(run)
    run.check_writable()
    recipe = run.recipe
    section = recipe.evaluation
    if max_examples is not None and max_examples < 1:
        raise InputError(f"max_examples is {max_examples}, expected at least 1")
    if max_examples is not None:
        section = section.model_copy(update={"max_examples": max_examples})
    sets = evaluation_sets(recipe, section.max_examples)
    renderer = Renderer(run.load_tokenizer(), recipe.data.template, recipe.data.special_tokens)
    device = best_device()
    # Load the base instead of disabling the adapter, which would keep trained biases.
    base = to_device(run.load_base(), device)
    length = row_length(recipe.data.max_length, base.config)
    before = score_tasks(base, renderer, sets, section, length, "evaluating base")
    del base
    after = score_tasks(to_device(run.load_model(), device), renderer, sets, section, length, "evaluating run")
    evaluation = Evaluation(before, after, run.training["weights_of_step"])
    write_json(run.path / "eval.json", evaluation.as_dict())
    return evaluation
