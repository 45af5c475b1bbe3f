"""Every key of a recipe: its type, its default and what it means.

This module imports neither torch nor transformers. `multilora.recipe.load` loads recipes, and `multilora.recipe.checks`
checks what types cannot express.
"""

from __future__ import annotations

import copy
import os
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from multilora.methods import INTERNAL_OPTIONS
from multilora.recipe.optimizer import OptimizerSection
from multilora.recipe.section import Section
from multilora.recipe.texts import PathText, TaskName

HUB_PREFIX = "hub:"


class ModelSection(Section):
    """The frozen base model."""

    name_or_path: PathText = Field(description="`nano` (the embedded base), a local folder, or a name on the hub")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "bfloat16", description="dtype of the frozen weights; trained parameters are kept in float32"
    )
    quantization: Literal["none", "4bit", "8bit"] = Field(
        "none", description="bitsandbytes quantization of the frozen linear layers (4bit: nf4); they compute in dtype"
    )
    attn_implementation: str | None = Field(
        None, description="eager, sdpa, flash_attention_2, ...; by default, transformers chooses"
    )
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    trust_remote_code: bool = Field(False, description="run code from the model's hub repository")


class AdapterSection(BaseModel):
    """What is trained: `multilora`, any other PEFT method, or `full`. The other keys are options of that method."""

    model_config = ConfigDict(extra="allow")

    method: str = Field("multilora", description="multilora, lora, another PEFT method, or full (all weights)")
    init_from: PathText | None = Field(
        None,
        description="run directory or adapter folder to continue from: of the same method or, for multilora, a LoRA; "
        "options that are not set are taken from it",
    )

    @property
    def options(self) -> dict[str, Any]:
        """The options of the method, as written in the recipe."""
        return dict(self.__pydantic_extra__ or {})

    @model_validator(mode="after")
    def _only_choices(self) -> AdapterSection:
        internal = sorted(set(self.options) & set(INTERNAL_OPTIONS))
        if internal:
            raise ValueError(f"{', '.join(internal)}: set by multilora or PEFT; leave it out")
        return self


# Keys that describe your own data; built-in tasks do not accept them.
OWN_DATA = ("prompt", "response", "messages", "tools", "question", "answer", "choices", "metric")


class TaskSection(Section):
    """One task of the mixture; `multilora tasks` lists the built-in names, any other name is your own data.

    Your own data has one of three forms: `prompt` and `response` (and `choices` for a fixed set of responses);
    `messages` (and `tools`); or `question`, `choices` and `answer`. Or `task` names a Python class that reads the data.
    """

    name: TaskName = Field(description="a built-in task, or a name of your choice")
    task: str | None = Field(None, description="your own task in Python: module:Class or file.py:Class")
    options: dict[str, Any] = Field(default_factory=dict, description="passed to your own task in Python")
    path: PathText | None = Field(
        None,
        description="file, pattern (data/*.jsonl, ** for folders), folder, or hub:owner/name[:config]; jsonl, ndjson, "
        "json, csv and tsv, each also as .gz, and parquet; built-in tasks have a default",
    )
    eval_path: PathText | None = Field(None, description="file or pattern with the evaluation examples")
    split: str | None = Field(
        None, min_length=1, description="name of the training split of a hub dataset, or of its file in a folder"
    )
    eval_split: str | None = Field(
        None, min_length=1, description="name of the evaluation split, or of its file in a folder"
    )
    weight: float | None = Field(None, gt=0, description="share of the mixture, with `mixture.strategy: weights`")
    max_examples: int | None = Field(None, ge=1, description="maximum number of training examples")
    holdout: float = Field(
        0.1, gt=0, lt=1, description="fraction of the training examples held out if there is no evaluation split"
    )
    on_error: Literal["raise", "drop"] = Field(
        "raise", description="what to do with a record that cannot be used: raise an error, or drop and count it"
    )
    prompt: str | None = Field(None, description="own data: Jinja2 template of the prompt")
    response: str | None = Field(None, description="own data: Jinja2 template of the response")
    messages: str | None = Field(None, min_length=1, description="own data: field that holds a chat's messages")
    tools: str | None = Field(None, min_length=1, description="own data: field that holds the tool descriptions")
    question: str | None = Field(None, description="own data: Jinja2 template of a multiple-choice question")
    answer: str | None = Field(
        None, description="own data: Jinja2 template of the correct choice's index (from 0), letter or text"
    )
    choices: list[str] | str | None = Field(
        None, description="own data: the possible responses; one template each, or the name of a list field"
    )
    metric: str | None = Field(
        None, description="own data: a metric of docs/add_a_metric.md, module:function, or none (loss only)"
    )
    choice_score: Literal["sum", "per_character", "per_byte", "per_token", "mutual_information"] = Field(
        "sum", description="what picks a choice: its log-probability, that per unit of length, or less that alone"
    )
    harness_task: str | None = Field(
        None, min_length=1, description="lm-eval's task on this data, with `evaluation.protocol: harness`"
    )

    @field_validator("choices", mode="before")
    @classmethod
    def _texts_or_field_name(cls, value: Any) -> Any:
        """Report one problem for the union, instead of one for each of its types."""
        if value is None or (isinstance(value, str) and value):
            return value
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError("expected a list of texts (quote yes, no and numbers), or the name of a list field")
        if len(value) < 2:
            raise ValueError("expected at least two choices")
        return value

    @property
    def own_data_keys(self) -> list[str]:
        """The keys of `OWN_DATA` that are set."""
        return [name for name in OWN_DATA if getattr(self, name) is not None]


class MixtureSection(Section):
    """How the tasks share the training examples."""

    strategy: Literal["proportional", "equal", "temperature", "weights"] = Field(
        "proportional", description="shares by size, all equal, size^(1/temperature), or each task's `weight`"
    )
    temperature: float | None = Field(
        None, ge=1, description="temperature of `strategy: temperature`; 1 is proportional"
    )
    unit: Literal["examples", "tokens", "trained_tokens"] = Field("examples", description="unit of sizes and shares")
    total_examples: int | None = Field(
        None, ge=1, description="length of training in examples, instead of training.max_steps"
    )
    total_tokens: int | None = Field(
        None, ge=1, description="length of training in tokens, instead of training.max_steps"
    )
    order: Literal["balanced", "shuffled"] = Field(
        "balanced", description="keep the shares throughout training, or shuffle freely"
    )
    homogeneous_batches: bool = Field(False, description="fill every optimizer step from a single task")
    seed: int = Field(0, description="seed of the order of the examples")


class DataSection(Section):
    """How examples become tokens."""

    max_length: int | None = Field(
        None, ge=8, description="tokens per row; by default the model's maximum, but at most 1024"
    )
    packing: bool = Field(False, description="pack several examples into one row; they cannot attend to each other")
    loss_on: Literal["responses", "all"] = Field("responses", description="which tokens are trained on")
    template: Literal["auto", "chat", "instruction", "question"] = Field(
        "auto", description="the tokenizer's chat template or a plain one; auto: chat if the tokenizer has a template"
    )
    special_tokens: Literal["refuse", "allow"] = Field(
        "refuse", description="text of the data that is a special token of the tokenizer, such as </s>, is an error"
    )
    overlong: Literal["truncate_prompt", "drop"] = Field(
        "truncate_prompt", description="what to do with examples over max_length: cut the prompt's start, or drop them"
    )
    cut_responses: bool = Field(False, description="cut responses that do not fit, instead of dropping the example")
    num_proc: int = Field(
        default_factory=lambda: min(os.cpu_count() or 1, 8),
        ge=1,
        description="processes that tokenize; by default the number of CPU cores, at most 8",
    )


class LossSection(Section):
    """The loss of an optimizer step, over all its accumulated batches and processes."""

    weighting: Literal["token", "example", "task"] = Field(
        "token", description="what gets equal weight in a step: every trained token, every example, or every task"
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop",
        description="what to do if the loss or gradient norm of a step is not finite: stop, or skip and count it",
    )
    interference_every: int | None = Field(
        None, ge=1, description="log the cosine between the tasks' gradients every this many steps; by default, never"
    )


class EvaluationSection(Section):
    """How a run is scored."""

    protocol: Literal["ours", "harness"] = Field(
        "ours", description="prompts and metrics of this package, or of lm-eval where it has the task"
    )
    shots: int | None = Field(
        None, ge=0, description="examples before each question; by default 0, or those of lm-eval's task"
    )
    max_examples: int = Field(500, ge=1, description="evaluation examples per task")
    batch_tokens: int | None = Field(
        None, ge=1, description="tokens per forward pass; by default, what suits the device"
    )
    max_new_tokens: int = Field(256, ge=1, description="maximum length of a generated response, in tokens")
    every: int | None = Field(
        None, ge=1, description="evaluate every this many optimizer steps during training; by default, never"
    )
    max_examples_during: int = Field(100, ge=1, description="evaluation examples per task during training")
    max_seconds: float | None = Field(
        None, gt=0, description="time for one evaluation during training; sets how many examples it scores"
    )
    split: Literal["eval", "validation"] = Field("eval", description="the examples on which a run is scored")
    validation_share: float | None = Field(
        None, gt=0, lt=1, description="share of the training examples set aside for validation; by default, none"
    )
    best_by: str = Field("macro", description="how evaluations are compared: macro, worst, or the name of a task")
    keep: Literal["last", "best"] = Field("last", description="which weights the run ends with")
    patience: int | None = Field(None, ge=1, description="stop after this many evaluations without an improvement")


class RecipeSchema(Section):
    """A complete recipe, as data; `multilora.Recipe` also loads and checks it."""

    model: ModelSection = Field(description="the base model; `model: NAME` is short for `model: {name_or_path: NAME}`")
    adapter: AdapterSection = Field(default_factory=AdapterSection, description="what is trained")
    tasks: list[TaskSection] = Field(min_length=1, description="the tasks of the mixture, at least one")
    mixture: MixtureSection = Field(
        default_factory=MixtureSection, description="how the tasks share the training examples"
    )
    data: DataSection = Field(default_factory=DataSection, description="how examples become tokens")
    training: dict[str, Any] = Field(default_factory=dict, description="arguments of transformers.TrainingArguments")
    optimizer: OptimizerSection = Field(
        default_factory=OptimizerSection, description="learning rates per kind of parameter"
    )
    loss: LossSection = Field(default_factory=LossSection, description="the loss of an optimizer step")
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection, description="how a run is scored")
    output_dir: PathText = Field("runs/run", description="the run directory; must be new or empty")

    @model_validator(mode="before")
    @classmethod
    def _model_by_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("model"), str):
            values = {**values, "model": {"name_or_path": values["model"]}}
        return values

    @property
    def scale_lr_factor(self) -> float:
        """What multiplies the learning rate of MultiLoRA's scales: `optimizer.scale_lr_factor` or its default."""
        return self.optimizer.scale_factor(self.adapter.method, self.adapter.options.get("init_weights"))

    def values(self) -> dict[str, Any]:
        """The recipe as plain values, from which the same recipe can be loaded.

        Keys that are None are left out, except among the options of the adapter method and of `TrainingArguments`,
        where None can differ from the default.
        """
        values = self.model_dump(exclude_none=True)
        init_from = {} if self.adapter.init_from is None else {"init_from": self.adapter.init_from}
        values["adapter"] = {"method": self.adapter.method, **init_from, **copy.deepcopy(self.adapter.options)}
        values["training"] = copy.deepcopy(self.training)
        for section, dumped in zip(self.tasks, values["tasks"], strict=True):
            dumped["options"] = copy.deepcopy(section.options)
            if not dumped["options"]:
                del dumped["options"]
        return values

    def dump_yaml(self) -> str:
        """The recipe as YAML, see `values`."""
        return yaml.safe_dump(self.values(), sort_keys=False, allow_unicode=True)
