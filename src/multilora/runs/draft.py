"""Draft a recipe from data files: the tasks that the files hold, and settings for a goal, with comments."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from multilora.errors import InputError
from multilora.recipe import HUB_PREFIX
from multilora.tasks.look import MOST_RECORDS, Guess, guess_task

GOALS = {
    "try": "a few minutes, to see that everything works",
    "quality": "three passes over the data, with evaluation during training",
    "memory": "as quality, on a GPU with little memory: a 4-bit base, small batches",
}
ROWS_PER_STEP = 8
FEW_STEPS = 60
HOLDOUT = 0.1


@dataclass(frozen=True)
class Draft:
    """A recipe with comments.

    text: YAML
    guesses: name of a task -> what was found in its data
    """

    text: str
    guesses: dict[str, Guess]


def draft_recipe(
    base: str,
    data: Sequence[str],
    *,
    goal: str = "try",
    eval_data: str | None = None,
    prompt: str | None = None,
    response: str | None = None,
    output_dir: str = "runs/first",
) -> Draft:
    """Draft a recipe.

    Args:
        base: `nano`, a folder or a name on the hub
        data: files, patterns or folders, one task each
        goal: one of `GOALS`
        eval_data: evaluation examples, with a single task
        prompt, response: names of columns, or templates, with a single task
        output_dir: of the run

    Raises:
        InputError: the goal is unknown, or an option is for a single task and there are several.
        DataError: some data cannot be read or understood.
    """
    if goal not in GOALS:
        raise InputError(f"goal is {goal!r}, expected one of {', '.join(GOALS)}")
    if not data:
        raise InputError("there is no data; give at least one file with --data FILE")
    single = {"--eval": eval_data, "--prompt": prompt, "--response": response}
    given = [name for name, value in single.items() if value is not None]
    if given and len(data) > 1:
        raise InputError(f"{', '.join(given)} can only be given with a single --data; edit the recipe instead")
    names = _names(data)
    guesses = {name: guess_task(path, prompt, response) for name, path in zip(names, data, strict=True)}
    paths = dict(zip(names, data, strict=True))
    return Draft("\n".join(_lines(base, paths, guesses, goal, eval_data, output_dir)) + "\n", guesses)


def _names(data: Sequence[str]) -> list[str]:
    """The names of the tasks: those of the files, numbered if they are equal."""
    names = [re.sub(r"[^\w-]+", "-", Path(path).name.partition(".")[0]).strip("-") or "data" for path in data]
    return [name if names.count(name) == 1 else f"{name}-{number}" for number, name in enumerate(names, 1)]


def _lines(
    base: str, paths: dict[str, str], guesses: dict[str, Guess], goal: str, eval_data: str | None, output_dir: str
) -> Iterator[str]:
    yield "# What is trained, on what, and how. `multilora plan` previews it, `multilora train` trains it."
    yield "# Any value can be changed on the command line, as in --set training.learning_rate=5e-4."
    yield "# `multilora schema > recipe.schema.json` helps editors to complete and check it."
    yield from ("", "model:")
    yield f"  name_or_path: {_value(base)}  # `nano` (embedded, to try things out), a folder or a name on the hub"
    yield f"  dtype: {'float32' if base == 'nano' else 'bfloat16'}  # of the frozen weights"
    if goal == "memory":
        yield "  quantization: 4bit  # needs `pip install 'multilora[quantization]'`; none keeps dtype"
    yield from ("", "adapter:  # or {method: lora, r: 16}, full, or another method of PEFT")
    yield "  method: multilora"
    yield "  r: 8  # rank of each branch"
    yield "  num_branches: 3"
    yield "  target_modules: all-linear"
    yield from ("", "tasks:")
    for name, path in paths.items():
        yield from _task_lines(name, path, guesses[name], eval_data)
    if len(paths) > 1:
        yield from ("", "mixture:")
        yield "  strategy: temperature  # small tasks get more than their share; or proportional, equal, weights"
        yield "  temperature: 2"
    yield from ("", "data:")
    yield "  packing: false  # true: several examples in one row, which is faster if they are short"
    yield "  # max_length: 512  # tokens per row; by default the maximum of the base, but at most 1024"
    yield from _training_lines(base, goal, sum(guess.records for guess in guesses.values()), eval_data is not None)
    yield from ("", f"output_dir: {_value(output_dir)}  # must be new or empty")


def _task_lines(name: str, path: str, guess: Guess, eval_data: str | None) -> Iterator[str]:
    count = f"{guess.records:,}" if guess.records < MOST_RECORDS else f"more than {MOST_RECORDS:,}"
    yield f"  - name: {_value(name)}  # {count} records: {guess.kind}"
    yield f"    path: {_value(path)}"
    if eval_data is not None:
        yield f"    eval_path: {_value(eval_data)}  # the examples on which the run is scored"
    elif not (Path(path).is_dir() or path.startswith(HUB_PREFIX)):
        yield f"    holdout: {HOLDOUT}  # part of the records that is kept for evaluation, chosen by their content"
    for key, value in guess.keys.items():
        yield f"    {key}: {_value(value)}  # {guess.reasons[key]}"
    if guess.unused:
        yield f"    # not used: {', '.join(_printable(column) for column in guess.unused)}"


def _training_lines(base: str, goal: str, records: int, separate: bool) -> Iterator[str]:
    examples = records if separate else records * (1 - HOLDOUT)
    epochs = 3
    steps = max(1, math.ceil(epochs * examples / ROWS_PER_STEP))
    yield from ("", "training:  # any argument of transformers.TrainingArguments")
    if goal == "try":
        steps = FEW_STEPS
        yield f"  max_steps: {steps}  # or num_train_epochs: 3"
    else:
        yield f"  num_train_epochs: {epochs}  # about {steps:,} steps"
    yield f"  learning_rate: {'5.0e-3' if base == 'nano' else '1.0e-3'}"
    if goal == "memory":
        yield "  per_device_train_batch_size: 1"
        yield f"  gradient_accumulation_steps: {ROWS_PER_STEP}  # examples per step, in batches of 1"
        yield "  gradient_checkpointing: true"
    else:
        yield f"  per_device_train_batch_size: {ROWS_PER_STEP}"
    yield f"  logging_steps: {max(1, min(10, steps // 6))}"
    yield from ("", "evaluation:")
    yield f"  max_examples: {100 if goal == 'try' else 500}  # per task"
    if goal != "try":
        every = max(10, math.ceil(steps / 10))
        yield f"  every: {every}  # steps, during training"
        yield "  keep: best  # the run ends with the weights of the best evaluation"


def _value(value: Any) -> str:
    """A value on one line of YAML, in a mapping and before a comment."""
    if isinstance(value, str) and not value.isprintable():
        return json.dumps(value)  # YAML reads JSON; its own form has several lines
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=math.inf)
    return text.strip().removesuffix("...").strip()


def _printable(text: str) -> str:
    return text if text.isprintable() else repr(text)


def write_draft(draft: Draft, path: Path) -> None:
    """Write the recipe to a new file; nothing is overwritten.

    Raises:
        InputError: there is something at the path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "w", encoding="utf-8") as file:
            file.write(draft.text)
    except FileExistsError:
        raise InputError(f"{path}: there is a file already, and it is kept; give another name") from None
