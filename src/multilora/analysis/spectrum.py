"""Singular values of Delta W, and measures of how concentrated they are.

With sigma the singular values of one matrix's update and p_i = sigma_i^2 / sum sigma^2:

    energy in the top k     sum of the k largest p_i (near 1 for small k: a few directions dominate)
    effective rank          exp(H(p)), H the entropy in nats (Roy & Vetterli 2007, on p instead of sigma)
    stable rank             sum sigma^2 / sigma_1^2
    participation ratio     1 / sum p_i^2
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from multilora.analysis.low_rank import layer_factors, singular_values_of_product
from multilora.errors import AdapterError
from multilora.methods import FULL


@dataclass(frozen=True)
class Measures:
    """How concentrated a spectrum is; for an update that is exactly zero, all but the norm are NaN."""

    norm: float
    top1_energy: float
    top4_energy: float
    effective_rank: float
    stable_rank: float
    participation_ratio: float


def measures(singular_values: Tensor) -> Measures:
    """Compute the measures of a spectrum [k], in any order."""
    squared = torch.sort(singular_values.double() ** 2, descending=True).values
    total = squared.sum()
    if total == 0:
        nan = float("nan")
        return Measures(0.0, nan, nan, nan, nan, nan)
    p = squared / total
    entropy = -(p * p.clamp_min(1e-300).log()).sum()
    return Measures(
        norm=float(total.sqrt()),
        top1_energy=float(p[0]),
        top4_energy=float(p[:4].sum()),
        effective_rank=float(entropy.exp()),
        stable_rank=float(total / squared[0]),
        participation_ratio=float(1 / (p**2).sum()),
    )


@dataclass(frozen=True)
class MatrixSpectrum:
    """The update of one weight matrix."""

    name: str
    shape: tuple[int, int]
    singular_values: list[float]
    measures: Measures

    @property
    def kind(self) -> str:
        """The module type: the last part of the name, such as `q_proj`, without the index of an expert."""
        return self.name.rsplit(".", 1)[-1].partition("[")[0]


@dataclass(frozen=True)
class Spectrum:
    """The updates of all adapted matrices of a run."""

    method: str
    matrices: list[MatrixSpectrum]

    def by_kind(self) -> dict[str, list[MatrixSpectrum]]:
        """Group the matrices by module type, in order of appearance."""
        groups: dict[str, list[MatrixSpectrum]] = {}
        for matrix in self.matrices:
            groups.setdefault(matrix.kind, []).append(matrix)
        return groups

    def mean(self, matrices: list[MatrixSpectrum] | None = None) -> dict[str, float]:
        """Average every measure over matrices (by default, all), ignoring updates that are zero."""
        nonzero = [m for m in (self.matrices if matrices is None else matrices) if m.measures.norm > 0]
        if not nonzero:
            return dict.fromkeys(Measures.__dataclass_fields__, float("nan"))
        return {
            name: sum(getattr(m.measures, name) for m in nonzero) / len(nonzero)
            for name in Measures.__dataclass_fields__
        }

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        return {
            "method": self.method,
            "mean": self.mean(),
            "matrices": [asdict(matrix) for matrix in self.matrices],
        }


def _spectrum(name: str, shape: tuple[int, int], singular_values: Tensor) -> MatrixSpectrum:
    return MatrixSpectrum(name, shape, singular_values.tolist(), measures(singular_values))


def _has_adapter(module: Any, adapter_name: str) -> bool:
    return any(adapter_name in getattr(module, part, ()) for part in module.adapter_layer_names)


def _merged_difference(module: Any, method: str, adapter_name: str) -> Tensor:
    """Return what merging adds to the weight of a layer, in float64; not every method's `get_delta_weight` is that.

    Raises:
        AdapterError: the layer cannot be merged.
    """
    weight = module.get_base_layer().weight
    if not weight.is_floating_point() or hasattr(weight, "quant_state"):
        raise AdapterError(
            f"analyze: the update of method {method!r} cannot be computed on a quantized base; use lora or multilora, "
            "or set model.quantization to none"
        )
    merged = copy.deepcopy(module).double()
    before = merged.get_base_layer().weight.detach().clone()
    try:
        with torch.no_grad():
            merged.merge(adapter_names=[adapter_name])
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise AdapterError(
            f"analyze: the update of method {method!r} is not a change of the weights, or not one that PEFT can "
            f"compute ({' '.join(str(error).split())}); analyze a run of another method"
        ) from error
    difference: Tensor = merged.get_base_layer().weight.detach() - before
    return difference


def _low_rank_spectra(name: str, module: Any, up: Tensor, down: Tensor) -> list[MatrixSpectrum]:
    """Return one spectrum, or one per matrix of a stack of experts, named as in `experts.down_proj[3]`."""
    shape = (up.shape[-2], down.shape[-1])
    if hasattr(module, "parameter_name"):
        name = ".".join([*(part for part in name.split(".") if part != "base_layer"), module.parameter_name])
    if up.dim() == 2:
        return [_spectrum(name, shape, singular_values_of_product(up, down))]
    return [_spectrum(f"{name}[{i}]", shape, singular_values_of_product(up[i], down[i])) for i in range(up.shape[0])]


def _check_base_unchanged(model: Any, method: str, adapter_name: str) -> None:
    """Check that attaching the adapter left the base weights as they were.

    Raises:
        AdapterError: its initialisation changed them, so that the adapter alone is not the update.
    """
    init = getattr(model.peft_config[adapter_name], "init_lora_weights", None)
    if isinstance(init, str) and init.startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
        raise AdapterError(
            f"analyze: {method} with init_lora_weights {init!r} changes the base weights, so its update cannot be "
            "computed from the adapter; analyze a run with the default init_lora_weights"
        )


def _adapted_layers(model: Any, adapter_name: str) -> Iterator[tuple[str, Any]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in model.get_base_model().named_modules():
        if isinstance(module, BaseTunerLayer) and _has_adapter(module, adapter_name):
            yield name, module


def adapter_spectrum(model: Any, method: str, adapter_name: str = "default") -> Spectrum:
    """Compute the spectrum of every adapted matrix of a `PeftModel`.

    MultiLoRA and plain LoRA use their factors, other methods the difference that merging makes to the weights.

    Raises:
        AdapterError: the method is not a change of weights, or changes no weight matrix.
    """
    _check_base_unchanged(model, method, adapter_name)
    matrices: list[MatrixSpectrum] = []
    for name, module in _adapted_layers(model, adapter_name):
        factors = layer_factors(module, adapter_name)
        if factors is not None:
            matrices += _low_rank_spectra(name, module, *factors)
            continue
        if getattr(module.get_base_layer(), "weight", torch.empty(0)).dim() < 2:  # the scale of a norm
            continue
        dense = _merged_difference(module, method, adapter_name).flatten(1)
        rows = dense[dense.any(dim=1)] if dense.any() else dense[:1]  # few rows of an embedding are trained
        name = name.removesuffix(".token_adapter")
        matrices.append(_spectrum(name, (dense.shape[0], dense.shape[1]), torch.linalg.svdvals(rows)))
    if not matrices:
        raise AdapterError(f"analyze: method {method!r} adapts no weight matrix; analyze a run of another method")
    return Spectrum(method, matrices)


def difference_spectrum(before: Any, after: Any, method: str = FULL) -> Spectrum:
    """Compute the spectrum of `after - before` for every linear layer except the output head.

    These are the matrices that `target_modules: all-linear` adapts, so all methods are compared on the same matrices.
    """
    head = after.get_output_embeddings()
    modules_before = dict(before.named_modules())
    matrices = []
    for name, module in after.named_modules():
        if not isinstance(module, torch.nn.Linear | Conv1D) or module is head:
            continue
        with torch.no_grad():
            delta = module.weight.double() - modules_before[name].weight.double()
        matrices.append(_spectrum(name, (delta.shape[0], delta.shape[1]), torch.linalg.svdvals(delta)))
    return Spectrum(method, matrices)
