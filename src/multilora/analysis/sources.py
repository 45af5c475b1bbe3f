"""What can be analysed, behind one interface: a run, a PEFT adapter on disk or in memory, a fine-tuned model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftModel

from multilora.analysis.dense_sources import MergedAdapter, ModelAdapter, WeightPair
from multilora.analysis.factor_sources import FactorFile, LoadedFactors, NotStreamableError, is_low_rank
from multilora.analysis.stored_weights import LoadedWeights, StoredWeights, Weights, analysis_device, find_weights
from multilora.analysis.update import Update
from multilora.errors import AdapterError, InputError
from multilora.export.merged.names import NotByShardsError
from multilora.export.sources.base import adapted_config, empty_base, load_any_base
from multilora.export.sources.source import open_source
from multilora.initialise import read_weights
from multilora.methods import FULL
from multilora.recipe.schema import ModelSection
from multilora.runs.candidate import candidate
from multilora.runs.directory import RECIPE_FILE, Run
from multilora.saved_adapter import SavedAdapter, adapter_folder, read_saved_adapter


class UpdateSource(Protocol):
    """The updates of a model, one matrix at a time.

    label: what tables call it: the path
    method: a PEFT method, or `full`
    names: of the matrices, or stacks of matrices, in the order of the model
    """

    label: str
    method: str
    names: list[str]

    def read(self, name: str) -> list[Update]:
        """The update of a matrix, or of every matrix of a stack. Ask for each name once.

        Raises:
            AdapterError: it cannot be computed.
        """


def open_updates(
    source: Run | str | Path | PeftModel,
    *,
    base: str | None = None,
    adapter_name: str = "default",
    device: torch.device | None = None,
) -> UpdateSource:
    """Find out what is at a path, and read the headers of its files.

    Args:
        source: a run or its folder, the folder of a PEFT adapter, a fine-tuned model (a folder or a name on the hub),
            or a `PeftModel`, which is not changed
        base: name or path of the base: of a fine-tuned model, or of an adapter whose config names none
        adapter_name: of a `PeftModel`
        device: on which updates are computed; by default a GPU if there is one

    Raises:
        InputError: there is nothing that can be analysed, or a fine-tuned model without a base.
        AdapterError: the adapter is damaged, or its update is not a change of weights.
    """
    device = analysis_device() if device is None else device
    if isinstance(source, PeftModel):
        method = str(source.peft_config[adapter_name].peft_type.value).lower()
        return ModelAdapter(source, method, adapter_name, device)
    if isinstance(source, Run) or (Path(source) / RECIPE_FILE).exists():
        run = source if isinstance(source, Run) else Run(source)
        if run.recipe.adapter.method == FULL:
            tuned = run.recipe.model.model_copy(update={"name_or_path": str(run.weights), "revision": None})
            return _pair(str(run.path), run.recipe.model, tuned, device)
        saved = read_saved_adapter(str(run.path))
        plain = run.recipe.model.model_copy(update={"quantization": "none"})
        return _adapter(saved, plain if base is None else ModelSection(name_or_path=base), "CAUSAL_LM", device)
    if adapter_folder(Path(source)) is not None:
        saved = read_saved_adapter(str(source))
        name = base or saved.base
        revision = None if base else saved.config.get("revision")
        section = None if name is None else ModelSection(name_or_path=name, dtype="float32", revision=revision)
        return _adapter(saved, section, saved.config.get("task_type"), device)
    tuned = candidate(source).base
    if base is None:
        raise InputError(
            f"{source}: is a model, not a run or an adapter; give the model that it was tuned from with --base"
        )
    return _pair(str(source), ModelSection(name_or_path=base), tuned, device)


def _pair(label: str, before: ModelSection, after: ModelSection, device: torch.device) -> WeightPair:
    return WeightPair(label, FULL, _weights(before), _weights(after), device)


def _weights(section: ModelSection) -> Weights:
    try:
        return StoredWeights(section)
    except NotByShardsError:
        return LoadedWeights(load_any_base(section, "CAUSAL_LM", {}, None))


def _adapter(
    saved: SavedAdapter, section: ModelSection | None, task_type: str | None, device: torch.device
) -> UpdateSource:
    """The updates of an adapter, in the cheapest way that is right for its method."""
    if is_low_rank(saved):
        weights = None if section is None else find_weights(section, task_type)
        try:
            return FactorFile(saved, weights, device)
        except NotStreamableError:
            factors = open_source(saved.path, base=_given(section, saved)).factors()
            return LoadedFactors(saved.path, saved.method, factors, weights, device)
    if section is None:
        raise AdapterError(
            f"{saved.path}: the update of method {saved.method!r} depends on its base, which its config does not name; "
            "give the base with --base"
        )
    try:
        config = adapted_config(section, task_type, read_weights(saved))
        stored = StoredWeights(section, task_type, config)
        return MergedAdapter(saved, stored, empty_base(section, task_type, config), device)
    except NotByShardsError:
        return _merged_in_memory(saved, section, device)


def _given(section: ModelSection | None, saved: SavedAdapter) -> str | None:
    """The base that was given instead of the recorded one."""
    return None if section is None or section.name_or_path == saved.base else section.name_or_path


def _merged_in_memory(saved: SavedAdapter, section: ModelSection, device: torch.device) -> WeightPair:
    """The merged model minus the base, both in memory in float32.

    Raises:
        AdapterError: the adapter cannot be merged.
    """
    source = open_source(saved.path, base=_given(section, saved))
    base: Any = source.load_base(torch.float32)
    model: Any = source.load_model(torch.float32)
    try:
        merged = model.merge_and_unload()
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise AdapterError(
            f"{saved.path}: the update of method {saved.method!r} is not a change of the weights "
            f"({' '.join(str(error).split())[:300]}), so it has no spectrum"
        ) from error
    return WeightPair(saved.path, saved.method, LoadedWeights(base), LoadedWeights(merged), device)
