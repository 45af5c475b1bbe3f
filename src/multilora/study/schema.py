"""Every key of a study file: its type, its default and what it means.

This module imports neither torch nor transformers; `multilora.study.load` loads study files.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from multilora.recipe.schema import AdapterSection
from multilora.recipe.section import Section
from multilora.recipe.texts import PathText, TaskName

# What a method or a grid may change; everything else is the same for all methods.
SECTIONS = ("adapter", "optimizer", "training", "loss")


class MethodSection(Section):
    """One method of the comparison: what it changes in the recipe, and the settings that are searched."""

    adapter: AdapterSection = Field(description="replaces the adapter section of the recipe")
    optimizer: dict[str, Any] = Field(default_factory=dict, description="keys merged over those of the recipe")
    training: dict[str, Any] = Field(default_factory=dict, description="keys merged over those of the recipe")
    loss: dict[str, Any] = Field(default_factory=dict, description="keys merged over those of the recipe")
    grid: dict[str, list[Any]] = Field(
        default_factory=dict,
        description="`section.key` -> values to try, such as training.learning_rate; all combinations are tried",
    )


class SearchSection(Section):
    """How the settings of a method are chosen: the best trial on the validation split."""

    trials: int = Field(ge=1, description="settings tried per method; every grid must have this many combinations")
    seeds: list[int] = Field([1000], min_length=1, description="seeds of every trial; not those of the final runs")
    metric: Literal["loss", "score"] = Field(
        "loss", description="what is compared: the mean over tasks of the validation loss, or of the main metrics"
    )


class ForgettingSection(Section):
    """Text of the kind that the base was pretrained on; its loss shows what a method forgets."""

    path: PathText | None = Field(
        None, description="a text file, or JSONL with a field `text`; by default, the text of the embedded base"
    )
    max_tokens: int = Field(20_000, ge=100, description="tokens of the text that are scored")


class ClusterSection(Section):
    """Jobs for `multilora study --submit`; each works on cells until none is left."""

    jobs: int = Field(1, ge=1, description="number of jobs")
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="of submitit, such as timeout_min, gpus_per_node and slurm_partition"
    )


class StudySchema(Section):
    """A complete study file, as data; `multilora.study.load.Study` also loads and checks it."""

    recipe: PathText | dict[str, Any] = Field(description="the recipe that all methods share: a path, or its content")
    methods: dict[TaskName, MethodSection] = Field(min_length=1, description="name in tables -> method")
    search: SearchSection | None = Field(None, description="required if the methods have grids")
    seeds: list[int] = Field([0], min_length=1, description="seeds of the final runs: of the adapter and of the order")
    reference: TaskName | None = Field(
        None, description="the method that the others are compared with; by default the first"
    )
    single_task: TaskName | None = Field(
        None, description="a method that is also trained on every task alone, with its chosen setting and every seed"
    )
    measure: list[Literal["spectrum", "forgetting", "intruders"]] = Field(
        ["spectrum"],
        description="what is measured besides scores: spectra of the updates, loss on other text, intruder dimensions",
    )
    forgetting: ForgettingSection = Field(
        default_factory=ForgettingSection, description="the text on which forgetting is measured"
    )
    cluster: ClusterSection = Field(default_factory=ClusterSection, description="jobs for `--submit`")
    output_dir: PathText = Field("studies/study", description="the study folder; any number of processes may share it")

    @model_validator(mode="after")
    def _first_is_reference(self) -> StudySchema:
        if self.reference is None:
            self.reference = next(iter(self.methods))
        return self
