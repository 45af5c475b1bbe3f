"""Check the names and types of `training:` against `transformers.TrainingArguments`, without creating one.

Creating one chooses a device and starts process groups, so that happens only once, when training is prepared.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from pydantic import TypeAdapter, ValidationError

from multilora.errors import nearest
from multilora.foreign_errors import PACKAGES

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

# Arguments that have a range -> (whether a value is in it, what is expected). All numbers must be finite.
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    **dict.fromkeys(
        (
            # -1, transformers' default, means that the length is set otherwise: here by leaving it out.
            "max_steps",
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "eval_accumulation_steps",
            "save_total_limit",
            "dataloader_prefetch_factor",
            "torch_empty_cache_steps",
        ),
        (lambda value: value >= 1, "a whole number of at least 1; leave it out for the default"),
    ),
    **dict.fromkeys(("dataloader_num_workers",), (lambda value: value >= 0, "a whole number of at least 0")),
    **dict.fromkeys(
        ("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "warmup_ratio", "neftune_noise_alpha"),
        (lambda value: value >= 0, "a number of at least 0"),
    ),
    **dict.fromkeys(
        ("num_train_epochs", "logging_steps", "save_steps", "adam_epsilon"),
        (lambda value: value > 0, "a number above 0"),
    ),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), (lambda value: 0 <= value < 1, "a number in [0, 1)")),
    "seed": (lambda value: 0 <= value < 2**32, f"a whole number from 0 to {2**32 - 1}"),
}
# What a value of `report_to`, or a part of the name of an optimizer, needs: one of these packages.
_TRACKERS = {
    **{name: (name,) for name in ("wandb", "trackio", "mlflow", "comet_ml")},
    "tensorboard": ("tensorboard", "tensorboardX"),
}
_OPTIMIZERS = {  # the first match counts
    **dict.fromkeys(("torch_4bit", "torch_8bit"), ("torchao",)),
    "galore": ("galore_torch",),
    "apollo": ("apollo_torch",),
    "lomo": ("lomo_optim",),
    **dict.fromkeys(("8bit", "32bit", "bnb", "ademamix"), ("bitsandbytes",)),
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
        ValueError: the value has the wrong type or is out of range; says what was expected.
    """
    annotation = field_types()[name]
    if value is False and isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        value = "no"  # YAML reads an unquoted `no` as false
    numeric = annotation in (int, float) or {int, float} & set(typing.get_args(annotation))
    try:
        if numeric and isinstance(value, bool) and bool not in typing.get_args(annotation):
            raise ValueError(f"{name} is {value!r}, expected {_expected(annotation)}")
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        result = adapter.validate_python(value)
    except ValidationError:
        raise ValueError(f"{name} is {value!r}, expected {_expected(annotation)}") from None
    if isinstance(result, int | float) and not isinstance(result, bool):
        expected = _expected_range(name, result)
        if expected is not None:
            raise ValueError(f"{name} is {value!r}, expected {expected}")
    return result.value if isinstance(result, enum.Enum) else result


def _expected_range(name: str, value: float) -> str | None:
    """What was expected instead of a number that is out of range; None if it is in range."""
    if not math.isfinite(value):
        return "a finite number"
    in_range, expected = _RANGES.get(name, (None, ""))
    return None if in_range is None or in_range(value) else expected


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


def check_training_values(training: Mapping[Any, Any]) -> list[str]:
    """Check what can be checked without transformers: fixed keys, ranges and missing packages; returns the problems."""
    problems = []
    for name, value in training.items():
        if not isinstance(name, str):
            problems.append(f"training.{name}: expected the name of an option")
        elif name in FIXED:
            problems.append(f"training.{name}: set by multilora ({FIXED[name]}); leave it out")
        elif name in _RANGES and isinstance(value, int | float) and not isinstance(value, bool):
            expected = _expected_range(name, value)
            if expected is not None:
                problems.append(f"training.{name} is {value!r}, expected {expected}")
        for item in value if isinstance(value, list) else [value]:
            packages = _needed_packages(name, item)
            if packages and not any(find_spec(package) for package in packages):
                problems.append(f"training.{name}: {item} needs {packages[0]}; pip install {PACKAGES[packages[0]]}")
    return problems


def _needed_packages(name: str, value: Any) -> tuple[str, ...]:
    """The packages, of which one must be installed, that a value of an option needs."""
    if name == "report_to" and isinstance(value, str):
        return _TRACKERS.get(value, ())
    if name == "optim" and isinstance(value, str):
        return next((packages for part, packages in _OPTIMIZERS.items() if part in value), ())
    if name == "use_liger_kernel" and value is True:
        return ("liger_kernel",)
    return ("deepspeed",) if name == "deepspeed" and value else ()


def check_training(training: Mapping[Any, Any]) -> list[str]:
    """Check against transformers what `check_training_values` accepts: unknown names and wrong types."""
    known = field_types()
    problems = []
    for name, value in training.items():
        if check_training_values({name: value}):
            continue
        if name not in known:
            problems.append(f"training.{name}: transformers.TrainingArguments has no such option{nearest(name, known)}")
        else:
            try:
                typed(name, value)
            except ValueError as error:
                problems.append(f"training.{error}")
    return problems
