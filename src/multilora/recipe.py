"""The recipe: every option of a run in one validated object. `Recipe.load` reports all problems at once.

Sections: model, adapter, tasks, mixture, data, training, optimizer, loss, evaluation, output_dir. Paths are relative to
the current directory and are stored as absolute ones, so that a run can be read from anywhere. Importing this module
loads neither torch nor transformers; checking the `training:` and `adapter:` keys does.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from multilora.errors import RecipeError, nearest

HUB_PREFIX = "hub:"


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
        from multilora.recipe_checks import check_recipe, checks_without_model

        values, problems = cls.read(source, overrides)
        label = str(source) if isinstance(source, str | Path) else "recipe"
        try:
            recipe = cls.model_validate(values)
        except ValidationError as error:
            problems += [_describe(cls, item) for item in error.errors()]
            problems += checks_without_model(values)
            raise RecipeError(problems, label) from None
        problems += check_recipe(recipe)
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
