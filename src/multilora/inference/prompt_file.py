"""Prompts from files, and from the fields of a task's records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from multilora.errors import DataError, InputError, nearest
from multilora.inference.prompts import Prompt
from multilora.recipe.schema import RecipeSchema, TaskSection
from multilora.tasks.make import make_task
from multilora.tasks.readers import Record, file_type, read_records
from multilora.tasks.record_task import RecordTask
from multilora.tasks.templates import FieldTemplate


def task_section(recipe: RecipeSchema, name: str) -> TaskSection:
    """Return a task of a recipe.

    Raises:
        InputError: it has no such task.
    """
    names = [section.name for section in recipe.tasks]
    if name not in names:
        raise InputError(f"the run has no task {name!r}{nearest(name, names)}; its tasks are {', '.join(names)}")
    return recipe.tasks[names.index(name)]


def read_prompts(path: Path, section: TaskSection | None = None) -> list[Prompt]:
    """Read prompts from a file.

    Args:
        path: a data file (.jsonl, .csv, ...) whose records have a field `prompt` or `messages`; any other file is text
            with a prompt per line, and blank lines are left out
        section: a task that makes the prompts from the records

    Raises:
        DataError: the file cannot be read, or has no prompts.
    """
    if file_type(path) is not None:
        found = [
            _prompt_of(record, where) if section is None else task_prompt(section, record, where)
            for where, record in read_records(path)
        ]
    elif section is not None:
        raise DataError(f"{path}: expected records for task {section.name!r}, in a file such as prompts.jsonl")
    else:
        found = list(_lines(path))
    if not found:
        raise DataError(f"{path}: no prompts in it; give a file with one per line")
    return found


def json_prompt(text: str, section: TaskSection) -> Prompt:
    """Return the prompt of a task for the fields in a JSON object.

    Raises:
        InputError: it is not a JSON object, or lacks a field of the task.
    """
    try:
        record = json.loads(text)
    except ValueError as error:
        record = error
    if not isinstance(record, dict):
        raise InputError(
            f"the prompt {text!r} is not a JSON object with the fields of task {section.name!r}, such as "
            '{"question": "..."}'
        )
    return task_prompt(section, record, "the prompt")


def task_prompt(section: TaskSection, record: Record, where: str) -> Prompt:
    """Return the prompt that a task makes from a record.

    Args:
        section: of the recipe. Tasks with a `prompt` template need its fields only, others complete records
        record: field -> value
        where: for errors

    Raises:
        DataError: a field is missing or cannot be used.
    """
    if section.prompt is not None:
        return FieldTemplate(section.name, "prompt", section.prompt).render(record, where)
    task = make_task(section)
    if not isinstance(task, RecordTask):
        raise DataError(f"task {section.name!r} does not make its examples from records; give the prompt as text")
    (example,) = islice(task.examples(record, where), 1)
    if not example["messages"]:
        return example["prompt"]
    messages: list[Any] = json.loads(example["messages"])
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    return messages[:last]


def _prompt_of(record: Record, where: str) -> Prompt:
    for name, kind in (("messages", list), ("prompt", str)):
        if isinstance(record.get(name), kind):
            value: Prompt = record[name]
            return value
    raise DataError(
        f"{where}: expected a field `prompt` with text, or `messages` with a list; the record has "
        f"{', '.join(map(repr, record)) or 'no fields'}"
    )


def _lines(path: Path) -> Iterator[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    return (line.removesuffix("\r") for line in lines if line.strip())
