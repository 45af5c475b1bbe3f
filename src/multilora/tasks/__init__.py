"""Tasks: each is one small file that loads examples and says how they are scored.

`BUILT_IN` is the whole list; a recipe's task with any other name is the user's own data (`custom.py`). Importing this
package is cheap: a task's module is loaded when the task is made.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from multilora.recipe import TaskSection

if TYPE_CHECKING:
    from multilora.tasks.base import Task

# name -> (module, callable, what it is)
BUILT_IN: dict[str, tuple[str, str, str]] = {
    "alpaca": ("instruction", "alpaca", "open instructions (JSON: instruction, input, output)"),
    "dolly": ("instruction", "dolly", "open instructions (JSONL: instruction, context, response)"),
    "arc/challenge": ("science", "arc", "grade-school science questions, the hard part"),
    "arc/easy": ("science", "arc", "grade-school science questions, the easy part"),
    "gsm8k": ("gsm8k", "Gsm8k", "grade-school word problems with worked steps"),
    "mmlu": ("mmlu", "Mmlu", "57 subjects of four-way multiple choice"),
    "mmlu/<subject>": ("mmlu", "Mmlu", "one subject of MMLU, such as mmlu/astronomy"),
    "openbookqa": ("science", "openbookqa", "elementary science facts applied, without the book"),
    "superglue/boolq": ("superglue", "SuperGlue", "yes/no questions about a passage"),
    "superglue/cb": ("superglue", "SuperGlue", "entailment, contradiction or neither"),
    "superglue/copa": ("superglue", "SuperGlue", "the more plausible cause or effect"),
    "superglue/multirc": (
        "superglue",
        "SuperGlue",
        "is a candidate answer to a question on a passage right?",
    ),
    "superglue/record": ("superglue", "SuperGlue", "which entity fills the gap"),
    "superglue/rte": ("superglue", "SuperGlue", "textual entailment"),
    "superglue/wic": ("superglue", "SuperGlue", "same word, same sense?"),
    "superglue/wsc": ("superglue", "SuperGlue", "what a pronoun refers to"),
    "nano/instructions": ("nano", "NanoTask", "generated: word-list transformations given as instructions"),
    "nano/understanding": ("nano", "NanoTask", "generated: yes/no entailment over short passages"),
    "nano/knowledge": ("nano", "NanoTask", "generated: multiple choice over the embedded base's facts"),
    "nano/arithmetic": ("nano", "NanoTask", "generated: word problems with worked steps"),
}


def built_in(name: str) -> tuple[str, str, str] | None:
    """The entry of a recipe's task name, if it is built in; `mmlu/astronomy` has the one of `mmlu/<subject>`."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    family, slash, member = name.partition("/")
    return BUILT_IN.get(f"{family}/<subject>") if slash and member else None


def make_task(section: TaskSection) -> Task:
    """The task that a recipe's section names; nothing is loaded yet."""
    module, name, _ = built_in(section.name) or ("custom", "custom_task", "")
    task: Task = getattr(importlib.import_module(f"multilora.tasks.{module}"), name)(section)
    return task
