"""Prepare a recipe for training: arguments, plan and adapted model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from multilora.data.collate import collator_for
from multilora.data.make_plan import make_plan
from multilora.data.plan import Plan
from multilora.data.probe import check_packing
from multilora.data.saved_plan import SavedPlan
from multilora.data.tokenize import row_length
from multilora.errors import DataError, RecipeError
from multilora.methods import FULL
from multilora.modeling import attach, load_base, load_model_config, load_tokenizer, max_positions
from multilora.recipe import Recipe
from multilora.tasks.make import make_task
from multilora.tasks.splits import load_split
from multilora.training.arguments import training_arguments
from multilora.vocabulary import check_vocabulary


@dataclass(frozen=True)
class Prepared:
    """A recipe with its model, plan and training arguments."""

    recipe: Recipe
    model: Any
    plan: Plan
    arguments: TrainingArguments


def prepare(recipe: Recipe, plan: Plan | None = None, saved: SavedPlan | None = None) -> Prepared:
    """Make the plan, load the base and attach the adapter; nothing is written.

    Args:
        recipe: from `Recipe.load`
        plan: an existing plan for the same base, tasks, mixture and batch size, to compare methods; by default, the
            recipe's plan is made
        saved: the plan of the run to continue, see `make_plan`

    Raises:
        InputError: the recipe, the data or the model cannot be used.
    """
    arguments = recipe_arguments(recipe)
    config = load_model_config(recipe.model)
    check_generation_length(recipe, config)
    if plan is None:
        plan = plan_for(recipe, config, arguments, saved)
    model = load_base(recipe.model, trainable=recipe.adapter.method == FULL)
    if plan.packed and stays_in_place(arguments):
        check_packing(model, collator_for(model, plan.renderer.tokenizer, packed=True))
    model = attach(model, recipe.adapter, seed=arguments.seed)
    arguments.max_steps = plan.steps
    for name in ("save_steps", "logging_steps"):  # turn fractions into steps, as in a checkpoint
        if 0 < getattr(arguments, name) < 1:
            setattr(arguments, name, math.ceil(plan.steps * getattr(arguments, name)))
    return Prepared(recipe, model, plan, arguments)


def recipe_arguments(recipe: Recipe) -> TrainingArguments:
    """Create the `TrainingArguments` of a recipe; see `training_arguments`."""
    return training_arguments(
        recipe.training,
        output_dir=str(Path(recipe.output_dir) / "checkpoints"),
        method=recipe.adapter.method,
        dtype=recipe.model.dtype,
    )


def plan_for(recipe: Recipe, config: Any, arguments: TrainingArguments, saved: SavedPlan | None = None) -> Plan:
    """Make the plan of a recipe, which needs the config and tokenizer of the base but not its weights.

    Args:
        recipe: from `Recipe.load`
        config: of the base
        arguments: from `recipe_arguments`
        saved: the plan of the run to continue, see `make_plan`

    Raises:
        InputError: the recipe or the data cannot be used.
    """
    # One process per machine tokenizes; the others read its cache.
    with arguments.main_process_first(desc="tokenizing"):
        check_evaluation_data(recipe)
        tokenizer = load_tokenizer(recipe.model)
        check_vocabulary(tokenizer, config)
        return make_plan(
            recipe,
            tokenizer,
            max_length=row_length(recipe.data.max_length, config),
            rows_per_step=arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size,
            max_steps=arguments.max_steps,
            epochs=arguments.num_train_epochs,
            saved=saved,
        )


def check_evaluation_data(recipe: Recipe) -> None:
    """Read the evaluation data of every task, so that it does not fail after training.

    Raises:
        RecipeError: with one problem per task whose evaluation data cannot be used.
    """
    problems = []
    for section in recipe.tasks:
        try:
            load_split(make_task(section), recipe.evaluation.split, recipe.evaluation.validation_share)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise RecipeError(problems, "evaluation data")


def stays_in_place(arguments: TrainingArguments) -> bool:
    """Return whether the model is trained on the device it was loaded on, by this process alone."""
    return bool(arguments.device.type == "cpu" and arguments.world_size == 1)


def check_generation_length(recipe: Recipe, config: Any) -> None:
    """Check before training that evaluation during training can generate.

    Raises:
        RecipeError: `max_new_tokens` leaves no room for a prompt.
    """
    section, positions = recipe.evaluation, max_positions(config)
    if section.every is None or positions is None or section.max_new_tokens < positions - 1:
        return
    generating = [task.name for task in recipe.tasks if make_task(task).kind == "generate"]
    if generating:
        raise RecipeError(
            [
                f"evaluation.max_new_tokens: {section.max_new_tokens} leaves no room for a prompt in the model's "
                f"{positions} positions, and evaluation during training generates answers for "
                f"{', '.join(generating)}; use at most {positions - 2}"
            ]
        )
