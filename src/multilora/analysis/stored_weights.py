"""The weights of a checkpoint as matrices [d_out, d_in], one at a time, by the names of its modules."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from multilora.errors import InputError
from multilora.export.merged.base_files import base_files
from multilora.export.merged.names import Names, NotByShardsError
from multilora.export.merged.shards import BaseWeights
from multilora.export.sources.base import empty_base
from multilora.modeling import model_source
from multilora.recipe.schema import ModelSection

logger = logging.getLogger(__name__)


class Weights(Protocol):
    """Weights of a model.

    model: its modules; their weights may be on the meta device
    """

    model: Any

    def matrix(self, name: str) -> Tensor:
        """The weight [d_out, d_in] of a module, or the matrices [experts, d_out, d_in] of a stack, as stored."""


class StoredWeights:
    """Weights in safetensors files; each is read when it is asked for.

    Args:
        section: the model
        task_type: PEFT's name of its task
        config: if it is not that of the files

    Raises:
        InputError: the model cannot be found, or a file is damaged.
        NotByShardsError: the files are in another format or quantized.
    """

    def __init__(self, section: ModelSection, task_type: str | None = "CAUSAL_LM", config: Any = None) -> None:
        files = base_files(model_source(section), section.revision)
        self.model = empty_base(section, task_type, config)
        self._weights = BaseWeights(Names(self.model, files.slots))

    def read(self, name: str) -> Tensor:
        """Read a parameter in the layout and dtype of the model."""
        return self._weights.read(name)

    def matrix(self, name: str) -> Tensor:
        """See `Weights`."""
        return as_matrix(self.model, name, self.read(parameter_name(self.model, name)))


class LoadedWeights:
    """Weights of a model in memory."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def matrix(self, name: str) -> Tensor:
        """See `Weights`."""
        weight = self.model.get_parameter(parameter_name(self.model, name)).detach()
        return as_matrix(self.model, name, weight)


def parameter_name(model: nn.Module, name: str) -> str:
    """The name of the parameter of a matrix: `<module>.weight`, or the name itself for a stack."""
    try:
        model.get_submodule(name)
    except AttributeError:
        return name
    return f"{name}.weight"


def as_matrix(model: nn.Module, name: str, weight: Tensor) -> Tensor:
    """A weight in the layout [..., d_out, d_in], without a copy. Embeddings stay [vocabulary, d]."""
    owner = name.rpartition(".")[0]
    try:
        module = model.get_submodule(name)
    except AttributeError:
        module = model.get_submodule(owner)
        return weight.mT if getattr(module, "is_transposed", False) else weight
    if isinstance(module, Conv1D):
        return weight.mT
    return weight if weight.dim() < 3 else weight.flatten(1)  # a convolution


def linear_names(model: Any) -> list[str]:
    """The names of all linear layers and stacks of experts, except for the output head, in the order of the model.

    These are the matrices that `target_modules: all-linear` adapts, so that all methods are compared on the same ones.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    names = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            if module is not head:
                names.append(name)
        elif not isinstance(module, _ConvNd):
            stacks = [key for key, item in module._parameters.items() if item is not None and item.dim() == 3]
            names += [f"{name}.{key}" if name else key for key in stacks]
    return names


def find_weights(section: ModelSection, task_type: str | None, config: Any = None) -> StoredWeights | None:
    """Open the weights of a base if they are on this machine; None if not, or if they cannot be read one at a time.

    For an update that is known without its base, so a base that cannot be used is only a warning.
    """
    source = model_source(section)
    if not Path(source).is_dir() and not _is_cached(source, section.revision):
        return None
    try:
        return StoredWeights(section, task_type, config)
    except (NotByShardsError, InputError) as error:
        logger.warning("%s: the base cannot be used, so nothing is compared with it (%s)", source, error)
        return None


def _is_cached(name: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        files = [try_to_load_from_cache(name, file, revision=revision) for file in ("model.safetensors", "config.json")]
        index = try_to_load_from_cache(name, "model.safetensors.index.json", revision=revision)
    except HFValidationError:
        return False
    return isinstance(files[1], str) and (isinstance(files[0], str) or isinstance(index, str))


def analysis_device() -> torch.device:
    """A GPU if there is one; others than CUDA's have no float64."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
