"""Dense updates: of any PEFT method that can be merged, of a pair of checkpoints, and of a model in memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from multilora.analysis.factor_sources import reader
from multilora.analysis.stored_weights import StoredWeights, Weights, as_matrix, linear_names
from multilora.analysis.update import Branches, Update
from multilora.errors import AdapterError, InputError
from multilora.export.merged.layers import LayerMerger
from multilora.export.merged.names import NotByShardsError
from multilora.low_rank import layer_factors
from multilora.peft_method import MultiLoraLayer
from multilora.saved_adapter import SavedAdapter


class WeightPair:
    """The difference of two models: full fine-tuning, or a merged adapter and its base. One layer is in memory.

    Args:
        label, method: of the update
        before, after: weights of both
        device: of the updates

    Raises:
        InputError: the models have no linear layer in common, or matrices of another shape.
    """

    def __init__(self, label: str, method: str, before: Weights, after: Weights, device: torch.device) -> None:
        self.label, self.method = label, method
        self._before, self._after, self._device = before, after, device
        names, others = linear_names(after.model), set(linear_names(before.model))
        if set(names) != others:
            only = sorted(set(names) ^ others)
            raise InputError(
                f"{label}: has other linear layers than its base ({len(only)} are in one of them only, such as "
                f"{only[0]}); give the model that it was tuned from"
            )
        self.names = names

    def read(self, name: str) -> list[Update]:
        """See `multilora.analysis.sources.UpdateSource`."""
        before, after = (weights.matrix(name).to(self._device) for weights in (self._before, self._after))
        if before.shape != after.shape:
            raise InputError(
                f"{self.label}: {name} is {list(after.shape)}, and {list(before.shape)} in its base; give the model "
                "that it was tuned from"
            )
        return list(_dense_updates(name, after.double() - before.double(), before))


def _dense_updates(name: str, difference: Tensor, before: Tensor) -> Iterator[Update]:
    if difference.dim() == 2:
        yield Update(name, dense=difference, base=lambda: before)
        return
    for index in range(difference.shape[0]):
        yield Update(f"{name}[{index}]", dense=difference[index], base=partial(before.__getitem__, index))


class MergedAdapter:
    """An adapter of any method that PEFT can merge: the merged weights minus the base's, layer by layer, in float64.

    Args:
        saved: the adapter
        weights: of its base
        base: the modules of the base on the meta device; they are changed
        device: of the updates

    Raises:
        AdapterError: the adapter is damaged, of another base, or adapts no matrix.
        NotByShardsError: it has to be merged in memory.
    """

    def __init__(self, saved: SavedAdapter, weights: StoredWeights, base: Any, device: torch.device) -> None:
        self.label, self.method = saved.path, saved.method
        self._weights, self._device = weights, device
        self._merger = LayerMerger(base, saved, lambda name: weights.read(name).double())
        for tensor in (*base.parameters(), *base.buffers()):
            if tensor.is_floating_point() and not _is_expanded(tensor):
                tensor.data = tensor.data.double()
        whole = tuple(saved.config.get("modules_to_save") or ())
        self.names = [
            name.removesuffix(".weight")
            for name, shape in self._merger.shapes.items()
            if len(shape) > 1 and not (whole and name.removesuffix(".weight").endswith(whole))
        ]
        if not self.names:
            raise AdapterError(
                f"{self.label}: method {self.method!r} adapts no weight matrix; analyze an adapter of another method"
            )
        self._first = (self.names[0], self._merged(self.names[0]))  # fails now if it cannot be merged by layers

    def _merged(self, name: str) -> Tensor:
        weight = f"{name}.weight"
        return self._merger.merged(weight if weight in self._merger.shapes else name)

    def read(self, name: str) -> list[Update]:
        """See `multilora.analysis.sources.UpdateSource`."""
        try:
            merged = self._first[1] if name == self._first[0] else self._merged(name)
        except NotByShardsError as error:
            raise AdapterError(f"{self.label}: {error}; analyze an adapter of another method") from error
        weight = f"{name}.weight"
        before = self._weights.read(weight if weight in self._merger.shapes else name)
        after, original = (as_matrix(self._weights.model, name, item.to(self._device)) for item in (merged, before))
        return list(_dense_updates(name, after.double() - original.double(), original))


def _is_expanded(tensor: Tensor) -> bool:
    """Whether a tensor is a placeholder without memory of its own."""
    return tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size()


class ModelAdapter:
    """An adapter of a `PeftModel` in memory: its factors, or what merging a copy of each layer adds.

    Args:
        model: it is not changed
        method: of the adapter
        adapter_name: of the adapter
        device: of the updates

    Raises:
        AdapterError: its initialisation changed the base, or it adapts no matrix.
    """

    def __init__(self, model: Any, method: str, adapter_name: str, device: torch.device) -> None:
        self.label, self.method = f"adapter {adapter_name!r}", method
        self._adapter, self._device = adapter_name, device
        _check_base_unchanged(model, method, adapter_name)
        self._modules = dict(_adapted_layers(model, adapter_name))
        self.names = list(self._modules)
        if not self.names:
            raise AdapterError(f"analyze: method {method!r} adapts no weight matrix; analyze a run of another method")

    def read(self, name: str) -> list[Update]:
        """See `multilora.analysis.sources.UpdateSource`."""
        module = self._modules[name]
        factors = layer_factors(module, self._adapter)
        name = _full_name(name, module)
        if factors is None:
            before, after = merged_weights(module, self.method, self._adapter)
            difference = (after - before).to(self._device)
            return list(_dense_updates(name, difference.flatten(1), before.flatten(1).to(self._device)))
        up, down = (factor.detach().to(self._device) for factor in factors)
        if up.dim() == 3:
            return [Update(f"{name}[{i}]", up=up[i], down=down[i]) for i in range(up.shape[0])]
        branches = None
        if isinstance(module, MultiLoraLayer):
            scale = module.branches(self._adapter)[2].detach().to(self._device)
            branches = Branches(scale.shape[-1], scale)
        return [Update(name, up=up, down=down, base=reader(_Layer(module), name, self._device), branches=branches)]


class _Layer:
    """The base's weight of one adapted layer; a quantized one is not at hand."""

    def __init__(self, module: Any) -> None:
        self.model = module

    def matrix(self, name: str) -> Tensor:
        from transformers.pytorch_utils import Conv1D

        inner = self.model.get_base_layer()
        weight: Tensor = inner.weight.detach()
        return weight.mT if isinstance(inner, Conv1D) else weight


def _full_name(name: str, module: Any) -> str:
    if hasattr(module, "parameter_name"):
        return ".".join([*(part for part in name.split(".") if part != "base_layer"), module.parameter_name])
    return name.removesuffix(".token_adapter")


def merged_weights(module: Any, method: str, adapter_name: str) -> tuple[Tensor, Tensor]:
    """The weight of a layer before and after merging, in float64; not every method's `get_delta_weight` is that.

    Raises:
        AdapterError: the layer cannot be merged.
    """
    weight = module.get_base_layer().weight
    if not weight.is_floating_point() or hasattr(weight, "quant_state"):
        raise AdapterError(
            f"analyze: the update of method {method!r} cannot be computed on a quantized model in memory; load the "
            "base without quantization, or analyze the saved adapter"
        )
    merged = copy.deepcopy(module).double()
    before: Tensor = merged.get_base_layer().weight.detach().clone()
    try:
        with torch.no_grad():
            merged.merge(adapter_names=[adapter_name])
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise AdapterError(
            f"analyze: the update of method {method!r} is not a change of the weights, or not one that PEFT can "
            f"compute ({' '.join(str(error).split())}); analyze a run of another method"
        ) from error
    return before, merged.get_base_layer().weight.detach()


def _check_base_unchanged(model: Any, method: str, adapter_name: str) -> None:
    """Check that attaching the adapter left the base weights as they were.

    Raises:
        AdapterError: its initialisation changed them, so that the adapter alone is not the update.
    """
    init = getattr(model.peft_config[adapter_name], "init_lora_weights", None)
    if isinstance(init, str) and init.startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
        raise AdapterError(
            f"analyze: {method} with init_lora_weights {init!r} changes the base weights, so its update cannot be "
            "computed from the model in memory; analyze the saved adapter"
        )


def _adapted_layers(model: Any, adapter_name: str) -> Iterator[tuple[str, Any]]:
    """The adapted layers with a weight matrix; the scale of a norm is none."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in model.get_base_model().named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        if not any(adapter_name in getattr(module, part, ()) for part in module.adapter_layer_names):
            continue
        weight = getattr(module.get_base_layer(), "weight", None)
        if hasattr(module, "parameter_name") or (weight is not None and weight.dim() > 1):
            yield name, module
