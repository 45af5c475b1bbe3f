"""What can be exported, behind one interface: a run, an adapter made elsewhere, or a model in memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftModel

from multilora.errors import AdapterError, RunDirectoryError
from multilora.export.factors import AdapterFactors, adapter_factors
from multilora.export.proof.prompts import Prompt, random_prompts, run_prompts
from multilora.export.sources.base import AUTO_CLASSES, adapted_config, empty_base, load_any_base, model_class
from multilora.export.sources.in_memory import bare_base, shared_copy, unchanged_gradients
from multilora.export.sources.skeleton import saved_factors
from multilora.initialise import adapter_state, read_weights
from multilora.methods import FULL
from multilora.modeling import load_adapter, load_config, max_positions, model_source
from multilora.recipe import Recipe
from multilora.recipe.schema import ModelSection
from multilora.runs.directory import RECIPE_FILE, Run
from multilora.saved_adapter import SavedAdapter, read_saved_adapter

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


class Source(Protocol):
    """A trained adapter and its base.

    label: what messages call it
    base: name or path of the base, as it was given; None if a model in memory does not know it
    recipe: of a run, else None
    section: the base as a recipe would name it; None for a model in memory
    auto_class: the class of transformers that loads the base, such as `AutoModelForCausalLM`
    stock_base: whether that class loads the base as it was trained on; not if tokens or labels were added
    """

    label: str
    base: str | None
    recipe: Recipe | None
    auto_class: str
    stock_base: bool

    @property
    def section(self) -> ModelSection | None:
        """See above."""

    def tokenizer_folder(self) -> str | None:
        """A folder or hub name from which `AutoTokenizer` loads the tokenizer; None without one."""

    def load_base(self, dtype: torch.dtype | None = None) -> Any:
        """The base, unquantized; by default in the precision of the run, or of the checkpoint."""

    def load_model(self, dtype: torch.dtype | None = None) -> Any:
        """The adapted model, unquantized: a `PeftModel`, or the model itself for method `full`."""

    def factors(self) -> AdapterFactors:
        """The update of the adapter; weights of the base are not loaded.

        Raises:
            AdapterError: the method has no low-rank factors, or a file is damaged or of another base.
        """

    def prompts(self) -> list[Prompt]:
        """Token sequences for comparisons: of the run's tasks, or else random. Empty if the model reads no tokens."""


def open_source(
    source: Run | str | Path | PeftModel, *, base: str | None = None, adapter_name: str = "default"
) -> Source:
    """Open a run, its folder, a folder with a PEFT adapter, or a `PeftModel`.

    Args:
        source: what to export
        base: for an adapter folder: name or path of the base, if its config has none or one that is not here
        adapter_name: of a `PeftModel`

    Raises:
        RunDirectoryError: a run that is damaged or did not finish, or no such folder.
        AdapterError: the config of an adapter is damaged, or nothing is known of its base.
    """
    if isinstance(source, PeftModel):
        return MemorySource(source, adapter_name)
    if isinstance(source, Run):
        return RunSource(source)
    path = Path(source).expanduser()
    if not (path / "adapter_config.json").is_file() or (path / RECIPE_FILE).exists():
        return RunSource(Run(path))  # also raises for a folder that is neither
    return FolderSource(read_saved_adapter(str(path)), base)


class RunSource:
    """A finished run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.label = str(run.path)
        self.recipe: Recipe | None = run.recipe
        self.section = run.recipe.model
        self.base: str | None = model_source(self.section)
        self.method = run.recipe.adapter.method
        self.auto_class = AUTO_CLASSES["CAUSAL_LM"]
        self.stock_base = True

    def tokenizer_folder(self) -> str | None:
        """See `Source`."""
        return self.base

    def load_base(self, dtype: torch.dtype | None = None) -> Any:
        """See `Source`."""
        return _cast(self.run.load_base(quantized=False), dtype)

    def load_model(self, dtype: torch.dtype | None = None) -> Any:
        """See `Source`."""
        model = self.run.load_model(quantized=False)
        if self.method != FULL:
            adapter_state(model, read_saved_adapter(self.label))  # PEFT only warns about weights that are missing
        return _cast(model, dtype)

    def factors(self) -> AdapterFactors:
        """See `Source`."""
        if self.method == FULL:
            raise RunDirectoryError(
                f"{self.label}: method `full` has no adapter to convert; export it with --to merged"
            )
        saved = read_saved_adapter(self.label)
        return saved_factors(empty_base(self.section), saved, self.load_base)

    def prompts(self) -> list[Prompt]:
        """See `Source`."""
        return run_prompts(self.run)


class FolderSource:
    """A folder that PEFT's `save_pretrained` wrote."""

    def __init__(self, saved: SavedAdapter, base: str | None) -> None:
        self.saved = saved
        self.label = saved.path
        self.recipe: Recipe | None = None
        self.base: str | None = base or saved.base
        if self.base is None:
            raise AdapterError(
                f"{saved.path}: its config does not say which base it is for; set base_model_name_or_path in "
                "adapter_config.json, or give the base with --base"
            )
        revision = None if base else saved.config.get("revision")
        self.section = ModelSection(name_or_path=self.base, dtype="float32", revision=revision)
        self.task_type: str | None = saved.config.get("task_type")
        self.state = read_weights(saved)
        self.config = adapted_config(self.section, self.task_type, self.state)
        self.auto_class = model_class(self.config, self.task_type)
        self.stock_base = self.config.to_dict() == load_config(self.section).to_dict()

    def tokenizer_folder(self) -> str | None:
        """See `Source`."""
        folders = [self.saved.folder, Path(str(self.base))]
        with_tokenizer = [str(path) for path in folders if any((path / name).is_file() for name in TOKENIZER_FILES)]
        is_hub_name = not Path(str(self.base)).exists()
        return with_tokenizer[0] if with_tokenizer else self.base if is_hub_name else None

    def load_base(self, dtype: torch.dtype | None = None) -> Any:
        """See `Source`."""
        return load_any_base(self.section, self.task_type, self.state, dtype)

    def load_model(self, dtype: torch.dtype | None = None) -> Any:
        """See `Source`."""
        model = load_adapter(self.load_base(dtype), str(self.saved.folder))
        adapter_state(model, self.saved)  # PEFT only warns about weights that are missing
        return _cast(model, dtype)

    def factors(self) -> AdapterFactors:
        """See `Source`."""
        return saved_factors(empty_base(self.section, self.task_type, self.config), self.saved, self.load_base)

    def prompts(self) -> list[Prompt]:
        """See `Source`."""
        return random_prompts(self.config.get_text_config().vocab_size, max_positions(self.config))


class MemorySource:
    """An adapter of a `PeftModel`, which is never changed."""

    def __init__(self, model: PeftModel, adapter_name: str) -> None:
        self.model = model
        self.adapter_name = adapter_name
        self.label = f"the adapter {adapter_name!r} of a {type(model.get_base_model()).__name__}"
        self.recipe: Recipe | None = None
        self.section: ModelSection | None = None
        self.auto_class = type(model.get_base_model()).__name__
        self.stock_base = False
        config = model.peft_config.get(adapter_name)
        self.base: str | None = (
            getattr(config, "base_model_name_or_path", None)
            or getattr(model.get_base_model(), "name_or_path", None)
            or None
        )

    def tokenizer_folder(self) -> str | None:
        """See `Source`."""
        folder = Path(self.base) if self.base else None
        return self.base if folder and any((folder / name).is_file() for name in TOKENIZER_FILES) else None

    def load_base(self, dtype: torch.dtype | None = None) -> Any:
        """See `Source`. The parameters are shared with the model unless they are cast."""
        return _cast_copy(bare_base(self.load_model(), self.factors().saved), dtype)

    def load_model(self, dtype: torch.dtype | None = None) -> Any:
        """See `Source`. The parameters are shared with the model unless they are cast."""
        twin = shared_copy(self.model)
        twin.base_model.enable_adapter_layers()
        with unchanged_gradients(self.model):
            twin.set_adapter(self.adapter_name)
        return _cast_copy(twin, dtype)

    def factors(self) -> AdapterFactors:
        """See `Source`."""
        return adapter_factors(self.model, self.adapter_name)

    def prompts(self) -> list[Prompt]:
        """See `Source`."""
        base = self.model.get_base_model()
        if getattr(base, "main_input_name", None) != "input_ids" or not hasattr(base, "config"):
            return []
        return random_prompts(base.config.get_text_config().vocab_size, max_positions(base.config))


def _cast(model: Any, dtype: torch.dtype | None) -> Any:
    return model if dtype is None else model.to(dtype)


def _cast_copy(model: Any, dtype: torch.dtype | None) -> Any:
    """The model, or a copy without shared parameters if a parameter has another dtype."""
    if dtype is None or all(item.dtype == dtype for item in model.parameters() if item.is_floating_point()):
        return model
    return copy.deepcopy(model).to(dtype)
