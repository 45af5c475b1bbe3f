"""The keys of `training:` against `transformers.TrainingArguments`: names and types, without making one.

Making one would choose a device and start process groups, so that happens once, when training is prepared.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from multilora.errors import nearest

# What the run itself decides, and why.
FIXED = {
    "output_dir": "it is the recipe's own output_dir",
    "remove_unused_columns": "task ids must reach the loss",
    "disable_tqdm": "multilora shows its own progress on stderr",
    "auto_find_batch_size": "the plan is made for one batch size",
    "train_sampling_strategy": "the plan is the order",
    "data_seed": "mixture.seed is the seed of the order",
    "label_smoothing_factor": "the loss is the plain cross-entropy per task",
    "resume_from_checkpoint": "use `--resume`, or train(..., resume=True)",
    "eval_strategy": "evaluation.every turns on evaluation during training",
    "load_best_model_at_end": "evaluation.keep says which weights a run ends with",
}
_PLAIN = (bool, int, float, str, dict, list, type(None))


@functools.cache
def field_types() -> dict[str, Any]:
    """Name -> annotated type of every argument of `TrainingArguments`; `Any` for types of other libraries."""
    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments)
    return {item.name: _checkable(hints[item.name]) for item in dataclasses.fields(TrainingArguments) if item.init}


def _checkable(annotation: Any) -> Any:
    """The annotation with `Enum | str` narrowed to the enum, which is what transformers accepts."""
    members = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    enums = [member for member in members if isinstance(member, type) and issubclass(member, enum.Enum)]
    if enums:
        return enums[0] if type(None) not in members else enums[0] | None
    plain = all((typing.get_origin(member) or member) in _PLAIN for member in members)
    return annotation if plain else Any


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def typed(name: str, value: Any) -> Any:
    """A value as its argument wants it: YAML reads `1e-3` as text, and it becomes a number here.

    Raises:
        ValueError: of the wrong type; says what was expected.
    """
    annotation = field_types()[name]
    numeric = annotation in (int, float) or {int, float} & set(typing.get_args(annotation))
    try:
        if numeric and isinstance(value, bool) and bool not in typing.get_args(annotation):
            raise ValueError(f"{name} is {value!r}, expected {_expected(annotation)}")
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        result = adapter.validate_python(value)
    except ValidationError:
        raise ValueError(f"{name} is {value!r}, expected {_expected(annotation)}") from None
    return result.value if isinstance(result, enum.Enum) else result


def _expected(annotation: Any) -> str:
    members = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    words = []
    for member in members:
        if isinstance(member, type) and issubclass(member, enum.Enum):
            words.append(f"one of {', '.join(str(item.value) for item in member)}")
        else:
            names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
            kind = typing.get_origin(member) or member
            words.append(names.get(kind, {dict: "a mapping", list: "a list"}.get(kind, str(member))))
    return " or ".join(words)


def check_training(training: Mapping[str, Any]) -> list[str]:
    """Every key that is unknown, set by multilora itself, or of the wrong type."""
    known = field_types()
    problems = []
    for name, value in training.items():
        if name not in known:
            problems.append(f"training.{name}: transformers.TrainingArguments has no such option{nearest(name, known)}")
        elif name in FIXED:
            problems.append(f"training.{name}: set by multilora ({FIXED[name]}); leave it out")
        else:
            try:
                typed(name, value)
            except ValueError as error:
                problems.append(f"training.{error}")
    return problems
