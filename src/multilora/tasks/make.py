"""Make the task of a recipe section: a built-in task, your own class, or your own data without code."""

from __future__ import annotations

from typing import Any

from multilora.errors import DataError, InputError
from multilora.recipe.built_in_tasks import built_in
from multilora.recipe.schema import TaskSection
from multilora.references import load_reference
from multilora.tasks.base import Task

OWN_DATA_TASK = "multilora.tasks.own_data:own_data_task"


def make_task(section: TaskSection) -> Task:
    """Make the task of a section, without reading its data.

    Raises:
        DataError: the section does not describe a task, or names something that is not a task.
    """
    entry = built_in(section.name)
    reference = section.task or (entry.reference if entry else OWN_DATA_TASK)
    try:
        factory: Any = load_reference(reference)
        task = factory(section)
    except DataError:
        raise
    except InputError as error:
        raise DataError(f"task {section.name!r}: {error}") from error
    except Exception as error:
        if section.task is None:
            raise
        raise DataError(
            f"task {section.name!r}: {reference} raised {type(error).__name__} when it was called: {error}"
        ) from error
    if not isinstance(task, Task):
        raise DataError(
            f"task {section.name!r}: {reference} returned a {type(task).__name__}, expected an instance of a "
            "subclass of multilora.tasks.Task"
        )
    return task
