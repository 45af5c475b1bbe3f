"""The built-in tasks by name. Any other name is a task of your own."""

from __future__ import annotations

from typing import NamedTuple


class BuiltInTask(NamedTuple):
    """reference: the class or function that makes the task, as `module:name`; about: a short description."""

    reference: str
    about: str


_SUPERGLUE = "multilora.tasks.superglue:SuperGlue"
_NANO = "multilora.nano.tasks:NanoTask"

BUILT_IN: dict[str, BuiltInTask] = {
    "alpaca": BuiltInTask("multilora.tasks.instruction:alpaca", "open instructions (JSON: instruction, input, output)"),
    "dolly": BuiltInTask(
        "multilora.tasks.instruction:dolly", "open instructions (JSONL: instruction, context, response)"
    ),
    "arc/challenge": BuiltInTask("multilora.tasks.science:arc", "grade-school science questions, the hard part"),
    "arc/easy": BuiltInTask("multilora.tasks.science:arc", "grade-school science questions, the easy part"),
    "gsm8k": BuiltInTask("multilora.tasks.gsm8k:Gsm8k", "grade-school word problems with worked steps"),
    "mmlu": BuiltInTask("multilora.tasks.mmlu:Mmlu", "four-way multiple choice over 57 subjects"),
    "mmlu/<subject>": BuiltInTask("multilora.tasks.mmlu:Mmlu", "one subject of MMLU, such as mmlu/astronomy"),
    "openbookqa": BuiltInTask("multilora.tasks.science:openbookqa", "elementary science facts applied, closed book"),
    "superglue/boolq": BuiltInTask(_SUPERGLUE, "yes/no questions about a passage"),
    "superglue/cb": BuiltInTask(_SUPERGLUE, "entailment, contradiction or neither"),
    "superglue/copa": BuiltInTask(_SUPERGLUE, "the more plausible cause or effect"),
    "superglue/multirc": BuiltInTask(_SUPERGLUE, "is a candidate answer to a question about a passage correct?"),
    "superglue/record": BuiltInTask(_SUPERGLUE, "which entity fills the gap"),
    "superglue/rte": BuiltInTask(_SUPERGLUE, "textual entailment"),
    "superglue/wic": BuiltInTask(_SUPERGLUE, "same word, same sense?"),
    "superglue/wsc": BuiltInTask(_SUPERGLUE, "what a pronoun refers to"),
    "nano/instructions": BuiltInTask(_NANO, "generated: word-list transformations given as instructions"),
    "nano/understanding": BuiltInTask(_NANO, "generated: yes/no entailment over short passages"),
    "nano/knowledge": BuiltInTask(_NANO, "generated: multiple choice about facts that the embedded base has seen"),
    "nano/arithmetic": BuiltInTask(_NANO, "generated: word problems with worked steps"),
}


def built_in(name: str) -> BuiltInTask | None:
    """The entry of a built-in task, or None; names such as `mmlu/astronomy` match `mmlu/<subject>`."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    family, slash, member = name.partition("/")
    return BUILT_IN.get(f"{family}/<subject>") if slash and member else None
