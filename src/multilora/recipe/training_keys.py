"""Check the names and types of `training:` against `transformers.TrainingArguments`, without creating one.

Creating one chooses a device and starts process groups, so that happens only once, when training is prepared.
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

# Arguments that multilora sets itself -> why.
FIXED = {
    "output_dir": "use the recipe's output_dir",
    "remove_unused_columns": "task ids must reach the loss",
    "disable_tqdm": "multilora shows its own progress on stderr",
    "auto_find_batch_size": "the plan depends on the batch size",
    "train_sampling_strategy": "the plan sets the order",
    "data_seed": "use mixture.seed",
    "label_smoothing_factor": "the loss is the plain cross-entropy per task",
    "resume_from_checkpoint": "use `--resume`, or train(..., resume=True)",
    "eval_strategy": "use evaluation.every",
    "load_best_model_at_end": "use evaluation.keep",
}
_PLAIN = (bool, int, float, str, dict, list, type(None))


@functools.cache
def field_types() -> dict[str, Any]:
    """Name -> annotated type of every argument of `TrainingArguments`; `Any` for types that are not checked."""
    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments)
    return {item.name: _checkable(hints[item.name]) for item in dataclasses.fields(TrainingArguments) if item.init}


def _checkable(annotation: Any) -> Any:
    """The annotation with `Enum | str` narrowed to the enum, since transformers accepts only its values."""
    members = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    enums = [member for member in members if isinstance(member, type) and issubclass(member, enum.Enum)]
    if enums:
        return enums[0] if type(None) not in members else enums[0] | None
    plain = all((typing.get_origin(member) or member) in _PLAIN for member in members)
    return annotation if plain else Any


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def typed(name: str, value: Any) -> Any:
    """Convert a value to the type of its argument; YAML reads `1e-3` as text, which becomes a number.

    Raises:
        ValueError: the value has the wrong type; says what was expected.
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
    """Check the keys of `training:`; returns a problem for each that is unknown, of the wrong type or not settable."""
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
