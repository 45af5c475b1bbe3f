"""The recipe: every option of a run in one validated object. `Recipe.load` reports all problems at once.

Sections: model, adapter, tasks, mixture, data, training, optimizer, loss, evaluation, output_dir. Paths are relative to
the current directory and are stored as absolute ones, so that a run can be read from anywhere. Importing this module
loads neither torch nor transformers; checking the `training:` and `adapter:` keys does.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from multilora.errors import InputError, RecipeError, nearest

HUB_PREFIX = "hub:"
_HUB_NAME = re.compile(re.escape(HUB_PREFIX) + r"[\w.-]+(/[\w.-]+)?(:[\w. -]+)?")


class Section(BaseModel):
    """A part of a recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class ModelSection(Section):
    """The frozen base."""

    name_or_path: str = Field(description="`nano` (the embedded base), a local folder, or a name on the hub")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "bfloat16", description="of the frozen weights; whatever is trained is kept in float32"
    )
    quantization: Literal["none", "4bit", "8bit"] = Field(
        "none", description="of the frozen linear maps, by bitsandbytes (4bit: nf4); computed in dtype"
    )
    attn_implementation: str | None = Field(
        None, description="eager, sdpa, flash_attention_2, ...; transformers' own choice by default"
    )
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    trust_remote_code: bool = Field(False, description="run code that the hub repository brings")


class AdapterSection(BaseModel):
    """What is trained: `multilora`, `full`, or any PEFT method; further keys are fields of that method's config."""

    model_config = ConfigDict(extra="allow")

    method: str = "multilora"

    @property
    def options(self) -> dict[str, Any]:
        """The method's own fields, as given."""
        return dict(self.__pydantic_extra__ or {})


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
OWN_DATA = ("prompt", "response", "messages", "tools", "question", "answer", "choices", "metric")


class TaskSection(Section):
    """One task of the mixture; `multilora tasks` lists the built-in names, any other name is your own data.

    Your own data has one of three forms: `prompt` and `response` (with `choices`, if the response is one of few);
    `messages` (and `tools`); `question`, `choices` and `answer`.
    """

    name: str
    path: str | None = Field(
        None, description="folder or file, or hub:owner/name[:config]; built-in tasks have a default"
    )
    eval_path: str | None = Field(None, description="file with the evaluation examples, where `path` is a file")
    split: str | None = Field(None, min_length=1, description="training split of a hub dataset, or file in a folder")
    eval_split: str | None = Field(None, min_length=1, description="the same for evaluation")
    weight: float | None = Field(None, gt=0, description="share of the mixture, with `strategy: weights`")
    max_examples: int | None = Field(None, ge=1, description="use at most so many training examples")
    holdout: float = Field(0.1, gt=0, lt=1, description="fraction held out for evaluation, if there is no such split")
    on_error: Literal["raise", "drop"] = Field(
        "raise", description="a record that cannot be used: an error, or left out and counted"
    )
    prompt: str | None = Field(None, description="own data: Jinja2 template of the prompt")
    response: str | None = Field(None, description="own data: Jinja2 template of the response")
    messages: str | None = Field(None, min_length=1, description="own data: field with a chat's messages")
    tools: str | None = Field(None, min_length=1, description="own data: field with the descriptions of its tools")
    question: str | None = Field(None, description="own data: Jinja2 template of a multiple-choice question")
    answer: str | None = Field(
        None, description="own data: Jinja2 template of the right choice's place (from 0), letter or text"
    )
    choices: list[str] | str | None = Field(
        None,
        description="own data: the possible responses; with `question` a list field's name, or a template per choice",
    )
    metric: Literal["accuracy", "f1_macro", "exact_match", "token_f1", "none"] | None = Field(
        None, description="own data: how to score; docs/data_flow.md says what each is"
    )

    @field_validator("choices", mode="before")
    @classmethod
    def _texts_or_a_name(cls, value: Any) -> Any:
        """One message for both types, in place of one for each."""
        if value is None or (isinstance(value, str) and value):
            return value
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError("expected a list of texts (quote yes, no and numbers), or the name of a list field")
        if len(value) < 2:
            raise ValueError("a choice list needs at least two choices")
        return value

    @property
    def template_fields(self) -> dict[str, Any]:
        """The keys that only a user's own data takes, where they are set."""
        return {name: getattr(self, name) for name in OWN_DATA if getattr(self, name) is not None}


class MixtureSection(Section):
    """How tasks share the training examples."""

    strategy: Literal["proportional", "equal", "temperature", "weights"] = Field(
        "proportional",
        description="shares by size; all the same; size^(1/temperature); or by each task's `weight`",
    )
    temperature: float | None = Field(None, ge=1, description="of `strategy: temperature`; 1 is proportional")
    unit: Literal["examples", "tokens", "trained_tokens"] = Field(
        "examples", description="what sizes and shares are measured in"
    )
    total_examples: int | None = Field(None, ge=1, description="length of training, in place of training.max_steps")
    total_tokens: int | None = Field(None, ge=1, description="the same, in tokens")
    order: Literal["balanced", "shuffled"] = Field(
        "balanced", description="every stretch holds about the asked shares, or any order by chance"
    )
    homogeneous_batches: bool = Field(False, description="every optimizer step holds one task only")
    seed: int = 0


class DataSection(Section):
    """How examples become tokens."""

    max_length: int | None = Field(
        None,
        ge=8,
        description="tokens of a row. Default: the model's positions, at most 1024",
    )
    packing: bool = Field(False, description="several examples in a row, none seeing another")
    loss_on: Literal["responses", "all"] = Field("responses", description="what is trained on")
    template: Literal["auto", "chat", "instruction", "question"] = Field(
        "auto", description="the tokenizer's chat template, or a plain form; auto: chat if the tokenizer has one"
    )
    overlong: Literal["truncate_prompt", "drop"] = Field(
        "truncate_prompt", description="examples longer than max_length lose the start of their prompt, or are left out"
    )
    cut_responses: bool = Field(False, description="cut a response that does not fit; else such an example is left out")
    num_proc: int = Field(
        default_factory=lambda: min(os.cpu_count() or 1, 8), ge=1, description="processes that tokenise"
    )


class OptimizerSection(Section):
    """Learning rates by kind of parameter; everything else about the optimizer is under `training`."""

    scale_lr_factor: float = Field(
        1.0, gt=0, description="MultiLoRA's scales: their learning rate over training.learning_rate; try sqrt(3 r)"
    )
    up_lr_factor: float = Field(1.0, gt=0, description="the up-projections B: the same ratio (LoRA+)")


class LossSection(Section):
    """What the loss of an optimizer step is; it holds for all accumulated batches and processes together."""

    weighting: Literal["token", "example", "task"] = Field(
        "token",
        description="what counts the same: every trained token, every example's mean, every task's mean in the step",
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop",
        description="a step whose loss or gradient norm is not finite: end the run, or skip and count it",
    )


class EvaluationSection(Section):
    """How a run is scored."""

    max_examples: int = Field(500, ge=1, description="evaluation examples per task")
    batch_size: int = Field(32, ge=1, description="sequences per forward pass")
    max_new_tokens: int = Field(256, ge=1, description="longest generated response, in tokens")
    every: int | None = Field(None, ge=1, description="evaluate while training, every so many optimizer steps")
    max_examples_during: int = Field(100, ge=1, description="evaluation examples per task while training")
    best_by: str = Field("macro", description="what the best evaluation is best at: macro, worst, or a task's name")
    keep: Literal["last", "best"] = Field("last", description="which weights the run ends with")
    patience: int | None = Field(None, ge=1, description="stop after so many evaluations without a better one")


class Recipe(Section):
    """One run, whole. Build it with `Recipe.load`, which also checks paths and the keys of other libraries."""

    model: ModelSection
    adapter: AdapterSection = Field(default_factory=AdapterSection)
    tasks: list[TaskSection] = Field(min_length=1)
    mixture: MixtureSection = Field(default_factory=MixtureSection)
    data: DataSection = Field(default_factory=DataSection)
    training: dict[str, Any] = Field(default_factory=dict, description="transformers.TrainingArguments")
    optimizer: OptimizerSection = Field(default_factory=OptimizerSection)
    loss: LossSection = Field(default_factory=LossSection)
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection)
    output_dir: str = "runs/run"

    @model_validator(mode="before")
    @classmethod
    def _model_by_name(cls, values: Any) -> Any:
        """`model: nano` is short for `model: {name_or_path: nano}`."""
        if isinstance(values, dict) and isinstance(values.get("model"), str):
            values = {**values, "model": {"name_or_path": values["model"]}}
        return values

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any] | Recipe, overrides: Iterable[str] = ()) -> Recipe:
        """A checked recipe from a YAML file, a mapping, or another recipe.

        Args:
            source: path of a YAML file, or what it would hold
            overrides: `key.of.value=value` strings; list items by position (`tasks.0.weight=2`)

        Raises:
            RecipeError: with every problem found: unknown or missing keys, wrong values, missing files, options that
                the adapter method or `TrainingArguments` does not have.
        """
        values, problems = cls.read(source, overrides)
        label = str(source) if isinstance(source, str | Path) else "recipe"
        try:
            recipe = cls.model_validate(values)
        except ValidationError as error:
            problems += [_describe(cls, item) for item in error.errors()]
            problems += _checks_without_model(values)
            raise RecipeError(problems, label) from None
        problems += _check_recipe(recipe)
        if problems:
            raise RecipeError(problems, label)
        return _with_absolute_paths(recipe)

    @classmethod
    def read(
        cls, source: str | Path | Mapping[str, Any] | Recipe, overrides: Iterable[str] = ()
    ) -> tuple[Any, list[str]]:
        """(the recipe's values, problems with the overrides); unchecked otherwise.

        Raises:
            RecipeError: the file cannot be read.
        """
        if isinstance(source, Recipe):
            values: Any = source.model_dump(exclude_none=True)
        elif isinstance(source, Mapping):
            values = copy.deepcopy(dict(source))
        else:
            values = _read_yaml(Path(source))
        problems = [_apply_override(values, override) for override in overrides]
        return values, [problem for problem in problems if problem]

    def dump_yaml(self) -> str:
        """The recipe as YAML, without what is unset."""
        return yaml.safe_dump(self.model_dump(exclude_none=True), sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([f"cannot be read ({error}); give the path of a YAML recipe"], str(path)) from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError([f"is not YAML: {' '.join(str(error).split())}"], str(path)) from None
    if not isinstance(values, dict):
        raise RecipeError([f"holds {type(values).__name__}, expected keys such as `model:` and `tasks:`"], str(path))
    return values


def _apply_override(values: Any, override: str) -> str | None:
    """Set one `a.b=v` in `values`; the problem, if it can't be set."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        return f"--set {override}: expected key=value, such as training.max_steps=100"
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    parts = key.split(".")
    node = values
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        where = ".".join(parts[: position + 1])
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                return f"--set {override}: {where} is not one of the {len(node)} items (0 to {len(node) - 1})"
            if last:
                node[int(part)] = value
            else:
                node = node[int(part)]
        elif isinstance(node, dict):
            if last:
                node[part] = value
            else:
                # `model: nano` may be followed by --set model.dtype=float32
                if part == "model" and isinstance(node.get(part), str):
                    node[part] = {"name_or_path": node[part]}
                node = node.setdefault(part, {})
        else:
            return f"--set {override}: {where} lies under {node!r}, which has no keys"
    return None


def _describe(root: type[BaseModel], error: Any) -> str:
    """One pydantic error in a line of our own."""
    location = list(error["loc"])
    where = ".".join(str(part) for part in location)
    kind = error["type"]
    if kind == "extra_forbidden":
        known = _fields_at(root, location[:-1])
        return f"{where}: unknown key{nearest(str(location[-1]), known)}; known keys are {', '.join(sorted(known))}"
    if kind == "missing":
        return f"{where}: missing, and it has no default"
    shown = repr(error["input"])
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return f"{where}: {error['msg'].lower()}, got {shown}"


def _fields_at(root: type[BaseModel], location: list[Any]) -> list[str]:
    model: type[BaseModel] = root
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel))
    return list(model.model_fields)


def _checks_without_model(values: Any) -> list[str]:
    """The checks of single sections that hold by themselves, run even when another section is wrong."""
    problems: list[str] = []
    for number, item in enumerate(values.get("tasks") if isinstance(values.get("tasks"), list) else []):
        try:
            section = TaskSection.model_validate(item)
        except ValidationError:
            continue
        problems += _check_task(number, section)
    if isinstance(values.get("training"), dict):
        problems += _check_training(values["training"])
    if isinstance(values.get("adapter"), dict):
        with suppress(ValidationError):
            problems += _check_adapter(AdapterSection.model_validate(values["adapter"]))
    return problems


def _check_recipe(recipe: Recipe) -> list[str]:
    problems = list(_check_model(recipe.model))
    for number, section in enumerate(recipe.tasks):
        problems += _check_task(number, section)
    problems += _check_names_and_weights(recipe)
    problems += _check_adapter(recipe.adapter)
    problems += _check_training(recipe.training)
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
            if adapter_config(section).is_prompt_learning:
                problems.append(
                    f"adapter.method: `{section.method}` puts virtual tokens before the prompt, which the loss per "
                    "task does not support; use a method that adapts weights"
                )
        except (ValueError, TypeError) as error:
            problems.append(f"adapter: {error}")
    return problems


def _check_training(training: Mapping[str, Any]) -> list[str]:
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
            training_arguments(training, output_dir="unused", method="lora")
        except (ValueError, TypeError, ImportError) as error:
            problems.append(f"training: {' '.join(str(error).split())}")
    return problems


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    def absolute(value: str | None) -> str | None:
        if value is None or value.startswith(HUB_PREFIX):
            return value
        return str(Path(value).expanduser().resolve())

    tasks = [
        section.model_copy(update={"path": absolute(section.path), "eval_path": absolute(section.eval_path)})
        for section in recipe.tasks
    ]
    model = recipe.model
    if model.name_or_path != "nano" and Path(model.name_or_path).expanduser().is_dir():
        model = model.model_copy(update={"name_or_path": absolute(model.name_or_path)})
    return recipe.model_copy(
        update={
            "tasks": tasks,
            "model": model,
            "output_dir": absolute(recipe.output_dir) or recipe.output_dir,
        }
    )
