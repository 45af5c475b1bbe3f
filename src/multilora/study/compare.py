"""Compare methods on one plan: same examples in the same order, same evaluation, same analysis."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from multilora.analysis.analyze import analyze
from multilora.analysis.spectrum import Spectrum
from multilora.data.plan import Plan
from multilora.evaluation.score import Scores, evaluation_sets, score_tasks
from multilora.files import write_json
from multilora.foreign_errors import own_errors
from multilora.modeling import best_device, load_base, load_model_config, to_device
from multilora.recipe import Recipe
from multilora.runs.directory import Run, check_free
from multilora.runs.evaluate import Evaluation
from multilora.runs.train import run_prepared
from multilora.study.means import mean_loss, mean_value
from multilora.training.prepare import plan_for, prepare, recipe_arguments


@dataclass(frozen=True)
class MethodResult:
    """The run of one method and its measurements."""

    label: str
    run: Run
    trainable_parameters: int
    train_seconds: float
    scores: Scores
    spectrum: Spectrum

    @property
    def mean_value(self) -> float:
        """The mean of the main metrics, over the tasks that have one."""
        return mean_value(self.scores)

    @property
    def mean_loss(self) -> float:
        """The mean loss over tasks, in nats per response token."""
        return mean_loss(self.scores)


@dataclass(frozen=True)
class Comparison:
    """Results of the base and of several methods on the same tasks."""

    path: Path
    recipe: Recipe
    plan: Plan
    base: Scores
    results: list[MethodResult]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        return {
            "plan": self.plan.as_dict(),
            "base": {name: asdict(score) for name, score in self.base.items()},
            "methods": [
                {
                    "label": result.label,
                    "run": result.run.path.name,
                    "trainable_parameters": result.trainable_parameters,
                    "train_seconds": result.train_seconds,
                    "scores": {name: asdict(score) for name, score in result.scores.items()},
                    "mean_value": result.mean_value,
                    "mean_loss": result.mean_loss,
                    "spectrum": result.spectrum.mean(),
                }
                for result in self.results
            ],
        }


@own_errors
def compare(recipe: Recipe, methods: Mapping[str, Mapping[str, Any]], out: str | Path) -> Comparison:
    """Train, evaluate and analyze each method on the plan of one recipe, with one model in memory at a time.

    Args:
        recipe: model, tasks, mixture and everything else that the methods share; its adapter section is ignored
        methods: label -> {"adapter": the section, "training": changes to the recipe's section}
        out: a new folder, with a subfolder for the run of each method

    Raises:
        InputError: invalid recipe, data or methods; nothing is written.
    """
    out = Path(out)
    check_free(out)
    recipes = {label: _method_recipe(recipe, method, out / label) for label, method in methods.items()}
    first = next(iter(recipes.values()))
    plan = plan_for(first, load_model_config(first.model), recipe_arguments(first))
    sets = evaluation_sets(recipe, recipe.evaluation.max_examples)
    out.mkdir(parents=True, exist_ok=True)

    def score(model: Any, description: str) -> Scores:
        return score_tasks(model, plan.renderer, sets, recipe.evaluation, description)

    before = score(to_device(load_base(recipe.model), best_device()), "evaluating the base")
    results = []
    for label, method_recipe in recipes.items():
        gc.collect()  # frees the previous model
        prepared = prepare(method_recipe, plan)
        start = time.perf_counter()
        run = run_prepared(prepared, out / label)
        seconds = time.perf_counter() - start
        after = score(prepared.model, f"evaluating {label}")
        del prepared
        write_json(run.path / "eval.json", Evaluation(before, after, run.training["weights_of_step"]).as_dict())
        trainable = run.training["trainable_parameters"]
        results.append(MethodResult(label, run, trainable, seconds, after, analyze(run)))
    comparison = Comparison(out, recipe, plan, before, results)
    write_json(out / "comparison.json", comparison.as_dict())
    return comparison


def _method_recipe(recipe: Recipe, method: Mapping[str, Any], path: Path) -> Recipe:
    values = recipe.values()
    values["adapter"] = dict(method["adapter"])
    values["training"] = {**values["training"], **method.get("training", {})}
    values["output_dir"] = str(path)
    return Recipe.load(values)
