"""Tasks: each is a small file that reads examples and defines how they are scored.

`multilora.recipe.built_in_tasks` lists the built-in tasks. A task of your own needs no code if its data are files of
records (`own_data.py`); otherwise subclass `RecordTask` or `Task` and name the class in the recipe.
"""

from multilora.example import Example, chat_example, choice_example, free_example, to_dataset
from multilora.tasks.base import Task
from multilora.tasks.make import make_task
from multilora.tasks.multiple_choice import lettered_example
from multilora.tasks.record_task import RecordTask
from multilora.tasks.source import field, list_field, text_field

__all__ = [
    "Example",
    "RecordTask",
    "Task",
    "chat_example",
    "choice_example",
    "field",
    "free_example",
    "lettered_example",
    "list_field",
    "make_task",
    "text_field",
    "to_dataset",
]
