"""Checks of a recipe before anything is loaded: they list every problem and how to fix it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from multilora.errors import InputError, nearest
from multilora.methods import FULL, adapter_config, option_names, unsupported_methods, unsupported_options
from multilora.recipe.schema import AdapterSection, ModelSection, RecipeSchema, TaskSection
from multilora.recipe.task_checks import check_task
from multilora.recipe.training_keys import check_training, check_training_values
from multilora.saved_adapter import adapter_folder, continued_options, read_saved_adapter


def check_sections(values: Any) -> list[str]:
    """Check the valid sections of a recipe that has an invalid one; returns the problems."""
    problems: list[str] = []
    for index, item in enumerate(values.get("tasks") if isinstance(values.get("tasks"), list) else []):
        with suppress(ValidationError):
            problems += check_task(index, TaskSection.model_validate(item))
    if isinstance(values.get("training"), dict):
        problems += [*check_training_values(values["training"]), *check_training(values["training"])]
    if isinstance(values.get("adapter"), dict):
        with suppress(ValidationError):
            problems += _check_adapter(AdapterSection.model_validate(values["adapter"]))
    return problems


def check_recipe(recipe: RecipeSchema) -> list[str]:
    """Check a recipe whose keys and types are valid, without importing torch; returns the problems."""
    problems = list(_check_model(recipe.model))
    for index, section in enumerate(recipe.tasks):
        problems += check_task(index, section)
    problems += _check_names_and_weights(recipe)
    problems += check_training_values(recipe.training)
    problems += _check_optimizer(recipe)
    problems += _check_mixture(recipe)
    problems += _check_evaluation(recipe)
    problems += _check_quantization(recipe)
    return problems


def check_options(recipe: RecipeSchema) -> list[str]:
    """Check the options that PEFT and transformers define, which imports both; returns the problems."""
    return [*_check_adapter(recipe.adapter), *check_training(recipe.training)]


def _check_quantization(recipe: RecipeSchema) -> Iterator[str]:
    section = recipe.model
    if section.quantization == "none":
        return
    if recipe.adapter.method == FULL:
        yield f"model.quantization: {section.quantization} weights cannot be trained; use an adapter, or `none`"
    if find_spec("bitsandbytes") is None:
        yield f"model.quantization: {section.quantization} needs bitsandbytes; pip install 'multilora[quantization]'"


def _check_evaluation(recipe: RecipeSchema) -> Iterator[str]:
    section = recipe.evaluation
    names = [task.name for task in recipe.tasks]
    if section.best_by not in ("macro", "worst", *names):
        yield (
            f"evaluation.best_by: {section.best_by!r} is neither macro nor worst nor a task"
            f"{nearest(section.best_by, ['macro', 'worst', *names])}"
        )
    for index, name in enumerate(names):
        if name in ("macro", "worst"):
            yield (
                f"tasks.{index} ({name}): evaluation.best_by uses this name for the "
                f"{'mean over' if name == 'macro' else 'lowest score of'} all tasks; give the task another name"
            )
    if section.split == "validation" and section.validation_share is None:
        yield "evaluation.split: there is no validation split; set evaluation.validation_share (try 0.1)"
    if section.protocol == "harness":
        if section.split == "validation":
            yield "evaluation.split: lm-eval has no validation split; set it to eval, or evaluation.protocol to ours"
    else:
        for index, task in enumerate(recipe.tasks):
            if task.harness_task is not None:
                yield (
                    f"tasks.{index} ({task.name}): harness_task: {task.harness_task!r} has no effect with "
                    f"evaluation.protocol `{section.protocol}`; set it to `harness`"
                )
    if section.every is None:
        for key, unset in (("keep", "last"), ("patience", None), ("max_seconds", None)):
            if getattr(section, key) != unset:
                yield f"evaluation.{key}: has no effect without evaluation during training; set evaluation.every"


def _check_mixture(recipe: RecipeSchema) -> Iterator[str]:
    section = recipe.mixture
    if section.strategy == "temperature" and section.temperature is None:
        yield "mixture.temperature: missing; mixture.strategy is `temperature` (try 2)"
    if section.strategy != "temperature" and section.temperature is not None:
        yield (
            f"mixture.temperature: {section.temperature} has no effect with mixture.strategy `{section.strategy}`; "
            "set it to `temperature`"
        )
    totals = [f"mixture.{key}" for key in ("total_examples", "total_tokens") if getattr(section, key) is not None]
    totals += [f"training.{key}" for key in ("max_steps", "num_train_epochs") if key in recipe.training]
    if len(totals) > 1:
        yield f"{' and '.join(totals)} all set the length of training; keep one"


def _check_optimizer(recipe: RecipeSchema) -> Iterator[str]:
    method = recipe.adapter.method
    factors = {"multilora", "lora"}
    for key, methods, neutral in (
        ("scale_lr_factor", {"multilora"}, (None, 1)),
        ("up_lr_factor", factors, (1,)),
        ("down_lr_factor", factors, (1,)),
        ("scale_steps", {"multilora"}, (None,)),
    ):
        value = getattr(recipe.optimizer, key)
        if value not in neutral and method not in methods:
            yield f"optimizer.{key}: {value} has no effect with adapter.method `{method}`; leave it out"
    if recipe.optimizer.muon and method not in ("multilora", "lora"):
        yield f"optimizer.muon is for adapter.method `multilora` and `lora`, not `{method}`; leave it out"
    if recipe.optimizer.muon and "optim" in recipe.training:
        yield f"optimizer.muon and training.optim ({recipe.training['optim']}) both set the optimizer; keep one"


def _check_model(section: ModelSection) -> Iterator[str]:
    name = section.name_or_path
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    folder = Path(name).expanduser()
    if adapter_folder(folder) is not None:
        try:
            base = read_saved_adapter(name).base or "the base it was trained on"
        except InputError:
            base = "the base it was trained on"
        yield (
            f"model.name_or_path: {name!r} is an adapter, not a model; to continue from it set "
            f"`model.name_or_path: {base}` and `adapter: {{init_from: {name}}}`"
        )
    elif (folder / "recipe.yaml").is_file() and (folder / "model").is_dir():
        yield (
            f"model.name_or_path: {name!r} is a run directory; to continue from its weights set `model.name_or_path: "
            f"{folder / 'model'}`"
        )
    elif looks_local and not folder.is_dir():
        yield f"model.name_or_path: no folder {name!r}; give `nano`, a model's folder, or owner/name on the hub"


def _check_names_and_weights(recipe: RecipeSchema) -> Iterator[str]:
    names = [section.name for section in recipe.tasks]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"tasks: the name {name!r} is used {names.count(name)} times; give each task another name"
    for index, section in enumerate(recipe.tasks):
        where = f"tasks.{index} ({section.name})"
        if recipe.mixture.strategy == "weights" and section.weight is None:
            yield f"{where}: mixture.strategy is `weights`, so it needs a weight"
        if recipe.mixture.strategy != "weights" and section.weight is not None:
            yield (
                f"{where}: weight {section.weight} has no effect with mixture.strategy `{recipe.mixture.strategy}`; "
                "set it to `weights`"
            )


def _check_adapter(section: AdapterSection) -> list[str]:
    try:
        known = option_names(section.method)
    except InputError as error:
        return [f"adapter.method: {error}"]
    if section.init_from is not None and section.method == FULL:
        return [
            "adapter.init_from: method `full` trains all weights and has no adapter; give the weights to start from as "
            "model.name_or_path (`multilora export RUN --to merged` merges an adapter), or use another method"
        ]
    unknown = [key for key in section.options if key not in known]
    if unknown:
        return [f"adapter.{key}: method `{section.method}` has no such option{nearest(key, known)}" for key in unknown]
    if section.method == FULL:
        return []
    reason = unsupported_methods().get(section.method)
    if reason is not None:
        return [f"adapter.method: `{section.method}` {reason}"]
    options = section.options
    if section.init_from is not None:
        try:
            options = continued_options(section.method, options, read_saved_adapter(section.init_from))
        except InputError as error:
            return [f"adapter.init_from: {error}"]
    refused = unsupported_options(section.method, section.options)
    if refused:
        return [f"adapter.{key}: {reason}" for key, reason in refused.items()]
    try:
        adapter_config(section.method, options)
    except (ValueError, TypeError) as error:
        return [f"adapter: {error}"]
    return []
