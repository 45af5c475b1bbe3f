"""The loss of every token of the correct answers, before and after training, for the examples that a report shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from multilora.data.render import Renderer
from multilora.evaluation.questions import Question, questions_of
from multilora.evaluation.score import evaluation_sets
from multilora.evaluation.scoring.likelihoods import score_requests
from multilora.modeling import max_positions
from multilora.recipe import Recipe
from multilora.report.run_page import read_json
from multilora.report.samples import read_pairs, shown_pairs
from multilora.runs.candidate import Candidate
from multilora.runs.directory import Run

# (task, index) -> `before` and `after` -> (text, nats) of every token of the correct answer
Losses = dict[tuple[str, int], dict[str, list[tuple[str, float]]]]


@torch.no_grad()
def token_losses_of(run: Run) -> Losses:
    """Score the correct answers of the shown examples with the base and with the trained model, one after the other.

    Args:
        run: evaluated, else nothing is shown and nothing scored

    Raises:
        RecipeError: the evaluation data cannot be used any more.
    """
    evaluation = read_json(run.path / "eval.json")
    files = run.path / "samples" / "base.parquet", run.path / "samples" / "run.parquet"
    if evaluation is None or not all(file.is_file() for file in files):
        return {}
    wanted = {(task, pair[1].index) for task, pairs in read_pairs(*files).items() for _, pair in shown_pairs(pairs)}
    recipe = _as_evaluated(run.recipe, evaluation["after"])
    losses: Losses = {}
    for who, candidate in (
        ("before", Candidate("base", recipe.model)),
        ("after", Candidate("run", recipe.model, run=run)),
    ):
        model = candidate.load().eval()
        renderer = Renderer(candidate.load_tokenizer(), recipe.data.template, recipe.data.special_tokens)
        questions = _questions(recipe, renderer, max_positions(model.config) or 2**31, wanted)
        requests = [request for question in questions.values() for request in question.reference]
        scored = iter(score_requests(model, requests, batch_tokens=recipe.evaluation.batch_tokens))
        for key, question in questions.items():
            found = losses.setdefault(key, {}).setdefault(who, [])
            for request in question.reference:
                texts = [renderer.tokenizer.decode([token]) for token in request.continuation]
                found += [(text, -value) for text, value in zip(texts, next(scored).tokens.tolist(), strict=True)]
        del model
    return losses


def _as_evaluated(recipe: Recipe, scores: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """The recipe with the numbers of examples and shots that the run was evaluated with."""
    update = {
        "max_examples": max((score.get("loss_n") or score["n"]) + score["dropped"] for score in scores.values()),
        "shots": max(score.get("shots", 0) for score in scores.values()),
    }
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update=update)})


def _questions(
    recipe: Recipe, renderer: Renderer, length: int, wanted: set[tuple[str, int]]
) -> dict[tuple[str, int], Question]:
    questions = {}
    for task, items in evaluation_sets(recipe, recipe.evaluation.max_examples).items():
        for question in questions_of(renderer, items, length, answers=False):
            if (task, question.index) in wanted:
                questions[task, question.index] = question
    return questions
