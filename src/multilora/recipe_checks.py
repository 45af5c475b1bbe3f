"""What can be known of a recipe before anything is loaded: every problem at once, each with what to do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from multilora.errors import InputError, nearest
from multilora.recipe import HUB_PREFIX, AdapterSection, ModelSection, Recipe, TaskSection

_HUB_NAME = re.compile(re.escape(HUB_PREFIX) + r"[\w.-]+(/[\w.-]+)?(:[\w. -]+)?")
# The forms of a user's own data: the keys that tell each, and those that it cannot do without.
FORMS: dict[str, tuple[str, ...]] = {
    "text": ("prompt", "response"),
    "chat": ("messages", "tools"),
    "question": ("question", "answer"),
}
FORM_NEEDS: dict[str, tuple[str, ...]] = {
    "text": ("prompt", "response"),
    "chat": ("messages",),
    "question": ("question", "choices", "answer"),
}


def checks_without_model(values: Any) -> list[str]:
    """The checks of single sections that hold by themselves, run even when another section is wrong."""
    problems: list[str] = []
    for number, item in enumerate(values.get("tasks") if isinstance(values.get("tasks"), list) else []):
        try:
            section = TaskSection.model_validate(item)
        except ValidationError:
            continue
        problems += _check_task(number, section)
    if isinstance(values.get("training"), dict):
        problems += _check_training(values["training"], "lora", "float32")
    if isinstance(values.get("adapter"), dict):
        with suppress(ValidationError):
            problems += _check_adapter(AdapterSection.model_validate(values["adapter"]))
    return problems


def check_recipe(recipe: Recipe) -> list[str]:
    """Everything that can be wrong with a recipe whose keys and values have the right types."""
    problems = list(_check_model(recipe.model))
    for number, section in enumerate(recipe.tasks):
        problems += _check_task(number, section)
    problems += _check_names_and_weights(recipe)
    problems += _check_adapter(recipe.adapter)
    problems += _check_training(recipe.training, recipe.adapter.method, recipe.model.dtype)
    problems += _check_optimizer(recipe)
    problems += _check_mixture(recipe)
    problems += _check_evaluation(recipe)
    problems += _check_quantization(recipe)
    return problems


def _check_quantization(recipe: Recipe) -> Iterator[str]:
    section = recipe.model
    if section.quantization == "none":
        return
    if recipe.adapter.method == "full":
        yield f"model.quantization: {section.quantization} weights cannot be trained; use an adapter, or `none`"
    if find_spec("bitsandbytes") is None:
        yield f"model.quantization: {section.quantization} needs bitsandbytes; pip install 'multilora[quantization]'"


def _check_evaluation(recipe: Recipe) -> Iterator[str]:
    section = recipe.evaluation
    names = [task.name for task in recipe.tasks]
    if section.best_by not in ("macro", "worst", *names):
        yield (
            f"evaluation.best_by: {section.best_by!r} is neither macro nor worst nor a task"
            f"{nearest(section.best_by, ['macro', 'worst', *names])}"
        )
    if section.every is None:
        for key, unset in (("keep", "last"), ("patience", None)):
            if getattr(section, key) != unset:
                yield f"evaluation.{key}: would do nothing without evaluation while training; set evaluation.every"


def _check_mixture(recipe: Recipe) -> Iterator[str]:
    section = recipe.mixture
    if section.strategy == "temperature" and section.temperature is None:
        yield "mixture.temperature: missing; mixture.strategy is `temperature` (try 2)"
    if section.strategy != "temperature" and section.temperature is not None:
        yield (
            f"mixture.temperature: {section.temperature} would do nothing with mixture.strategy `{section.strategy}`; "
            "set it to `temperature`"
        )
    totals = [f"mixture.{key}" for key in ("total_examples", "total_tokens") if getattr(section, key) is not None]
    totals += [f"training.{key}" for key in ("max_steps", "num_train_epochs") if key in recipe.training]
    if len(totals) > 1:
        yield f"{' and '.join(totals)} both say how long training is; keep one"


def _check_optimizer(recipe: Recipe) -> Iterator[str]:
    method = recipe.adapter.method
    for key, methods in (("scale_lr_factor", {"multilora"}), ("up_lr_factor", {"multilora", "lora"})):
        value = getattr(recipe.optimizer, key)
        if value != 1 and method not in methods:
            yield f"optimizer.{key}: {value} would do nothing with adapter.method `{method}`; leave it out"


def _check_model(section: ModelSection) -> Iterator[str]:
    name = section.name_or_path
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not Path(name).expanduser().is_dir():
        yield f"model.name_or_path: no folder {name!r}; give `nano`, a folder with a model, or owner/name of the hub"


def _check_task(number: int, section: TaskSection) -> Iterator[str]:
    from multilora.tasks import BUILT_IN, built_in

    where = f"tasks.{number} ({section.name})"
    yield from _check_places(where, section)
    if built_in(section.name):
        if section.name.startswith("nano/"):
            if section.path is not None:
                yield f"{where}: path: this task is generated, it reads no files; leave path out"
            if section.on_error != "raise":
                yield f"{where}: on_error: this task is generated, it has no bad records; leave on_error out"
        for key in section.template_fields:
            yield f"{where}: {key} is for your own data; the built-in task {section.name!r} brings its own"
        return
    used = [form for form, keys in FORMS.items() if any(getattr(section, key) is not None for key in keys)]
    if len(used) > 1:
        given = [key for keys in FORMS.values() for key in keys if getattr(section, key) is not None]
        yield (
            f"{where}: {', '.join(given)} belong to different forms of data; use one of: "
            f"{'; '.join(', '.join(keys) for keys in FORM_NEEDS.values())}"
        )
    if not used:
        missing = [key for key in ("path", "prompt", "response") if getattr(section, key) is None]
        yield (
            f"{where}: not a built-in task{nearest(section.name, BUILT_IN)}, so it needs {', '.join(missing)} "
            "(or messages; or question, choices, answer; `multilora tasks` lists the built-in ones)"
        )
    if len(used) != 1:
        return
    needed = FORM_NEEDS[used[0]]
    missing = [key for key in ("path", *needed) if getattr(section, key) is None]
    if missing:
        yield (
            f"{where}: not a built-in task{nearest(section.name, BUILT_IN)}, so it needs {', '.join(missing)} "
            "(`multilora tasks` lists the built-in ones)"
        )
    yield from _check_form(where, section, used[0])


def _check_places(where: str, section: TaskSection) -> Iterator[str]:
    """Paths and splits: do they exist, and do they go together?"""
    for key in ("path", "eval_path"):
        value = getattr(section, key)
        if value is None:
            continue
        if value.startswith(HUB_PREFIX) and key == "path":
            if not _HUB_NAME.fullmatch(value):
                yield f"{where}: path: {value!r}, expected {HUB_PREFIX}owner/name or {HUB_PREFIX}owner/name:config"
            continue
        if not Path(value).expanduser().exists():
            yield (
                f"{where}: {key}: no such file or folder: {value!r} (looked in {os.getcwd()}); "
                f"for a dataset of the hub write {HUB_PREFIX}owner/name"
            )
    local = section.path is not None and not section.path.startswith(HUB_PREFIX)
    for key in ("split", "eval_split"):
        if getattr(section, key) is None:
            continue
        if section.name.startswith("nano/"):
            yield f"{where}: {key}: this task is generated and has its own splits; leave {key} out"
        elif local and Path(section.path or "").expanduser().is_file():
            yield f"{where}: {key}: path is a single file, which has no splits; use eval_path, or give its folder"
    if section.eval_path is not None and section.eval_split is not None:
        yield f"{where}: eval_path and eval_split both say where the evaluation examples are; use one of them"


def _check_form(where: str, section: TaskSection, form: str) -> Iterator[str]:
    """What does not go together within one form of a user's own data."""
    metric, choices = section.metric, section.choices
    if form == "chat":
        if choices is not None:
            yield f"{where}: choices do not go with messages; leave them out, or use question, choices and answer"
        if metric not in (None, "none"):
            yield f"{where}: metric {metric}: chats are scored by their loss; leave metric out or set it to none"
        return
    if form == "question":
        if metric not in (None, "accuracy", "none"):
            yield f"{where}: metric {metric}: questions with choices are scored by accuracy; leave it out, or use none"
        return
    if isinstance(choices, str):
        yield (
            f"{where}: choices {choices!r} names a field, which goes with question and answer; with prompt and "
            "response list the possible responses"
        )
    if isinstance(choices, list):
        twice = sorted({choice for choice in choices if choices.count(choice) > 1})
        if twice:
            yield f"{where}: choices holds {', '.join(map(repr, twice))} more than once; give each once"
    if metric in ("accuracy", "f1_macro") and choices is None:
        yield f"{where}: metric {metric} scores choices; list them under `choices`, or use exact_match"


def _check_names_and_weights(recipe: Recipe) -> Iterator[str]:
    names = [section.name for section in recipe.tasks]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"tasks: the name {name!r} is used {names.count(name)} times; give each task its own"
    for number, section in enumerate(recipe.tasks):
        where = f"tasks.{number} ({section.name})"
        if recipe.mixture.strategy == "weights" and section.weight is None:
            yield f"{where}: mixture.strategy is `weights`, so it needs a weight"
        if recipe.mixture.strategy != "weights" and section.weight is not None:
            yield (
                f"{where}: weight {section.weight} would do nothing with mixture.strategy "
                f"`{recipe.mixture.strategy}`; set it to `weights`"
            )


def _check_adapter(section: AdapterSection) -> list[str]:
    from multilora.modeling import adapter_option_names

    try:
        known = adapter_option_names(section.method)
    except InputError as error:
        return [f"adapter.method: {error}"]
    unknown = [key for key in section.options if key not in known]
    problems = [f"adapter.{key}: method `{section.method}` has no such option{nearest(key, known)}" for key in unknown]
    if not unknown and section.method != "full":
        from multilora.modeling import adapter_config

        try:
            if section.method == "adalora":
                problems.append(
                    "adapter.method: `adalora` moves its ranks and adds to the loss in a training loop of its own, "
                    "which this one is not; use lora, or another method"
                )
            if adapter_config(section).is_prompt_learning:
                problems.append(
                    f"adapter.method: `{section.method}` puts virtual tokens before the prompt, which the loss per "
                    "task does not support; use a method that adapts weights"
                )
        except (ValueError, TypeError) as error:
            problems.append(f"adapter: {error}")
    return problems


def _check_training(training: Mapping[str, Any], method: str, dtype: str) -> list[str]:
    from multilora.training.arguments import FIXED, argument_names, training_arguments

    names = argument_names()
    problems = [
        f"training.{key}: transformers.TrainingArguments has no such option{nearest(key, names)}"
        for key in training
        if key not in names
    ]
    problems += [
        f"training.{key}: set by multilora ({why}); leave it out" for key, why in FIXED.items() if key in training
    ]
    if not problems:
        try:
            training_arguments(training, output_dir="unused", method=method, dtype=dtype)
        except (ValueError, TypeError, ImportError) as error:
            problems.append(f"training: {' '.join(str(error).split())}")
    return problems
