"""The low-rank update of an adapter, read from a model: what every export is made from.

Delta W = up @ down for every adapted matrix, with the scales of MultiLoRA, alpha, rsLoRA and the patterns folded into
`up` (`multilora.functional`). This is exact except for rounding in the folding: nothing is decomposed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from multilora.errors import AdapterError
from multilora.export.verify import check_finite
from multilora.low_rank import layer_factors
from multilora.saved_adapter import UNCHANGED_BASE

PREFIX = "base_model.model."
TO_MERGED = "export it with --to merged"


@dataclass(frozen=True)
class Factors:
    """Delta W = up @ down of one matrix [d_out, d_in], in float32 on the CPU.

    down: [rank, d_in]
    up: [d_out, rank], with all constants and scales
    """

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        """The rank of the factors."""
        return self.down.shape[-2]

    def delta(self) -> Tensor:
        """Delta W [d_out, d_in]."""
        return self.up @ self.down


@dataclass(frozen=True)
class ExpertFactors(Factors):
    """Delta W = up @ down of every matrix in a stack of experts.

    down: [experts, rank, d_in]
    up: [experts, d_out, rank]
    transposed: whether the base stores the stack as [experts, d_in, d_out]
    """

    transposed: bool = False


@dataclass(frozen=True)
class TrainedTokens:
    """New rows of an embedding or head: ids [count], rows [count, d] in float32 on the CPU."""

    ids: list[int]
    rows: Tensor


@dataclass
class AdapterFactors:
    """What an adapter changes in its base. Names are those of the base without the adapter.

    modules: name of a module with one weight (`model.layers.0.self_attn.q_proj`) -> its update
    experts: name of a parameter that is a stack of matrices (`model.layers.0.mlp.experts.down_proj`) -> its update
    parameters: name of a parameter that is one matrix and was named in `target_parameters` -> its update
    saved: key in the base's state dict -> trained tensor, in its own dtype (modules_to_save, embeddings of a resized
        vocabulary, biases)
    tokens: module name -> trained rows (`trainable_token_indices`)
    conv1d: the modules that are transformers' Conv1D, whose weight is stored as [d_in, d_out]
    embeddings: the modules that are nn.Embedding, whose weight [vocabulary, d] is changed by (up @ down)^T
    tied: the adapted modules whose weight is shared with another module, such as a head tied to the embeddings
    base: name or path of the base, None if it is not known
    revision: of the base on the hub
    task_type: PEFT's name of it, such as `CAUSAL_LM`
    modules_to_save: as in the adapter's config
    bias: which biases were trained, in LoRA's words: none, all or lora_only
    token_indices: as in the adapter's config
    module_names: of all modules of the base
    parameter_names: of the parameters of the base, in the order of their definition
    config: of the base, from transformers; None if it is another model
    branches: number of branches of a MultiLoRA adapter; the ranks of a branch are next to each other. 1 for LoRA
    """

    modules: dict[str, Factors] = field(default_factory=dict)
    experts: dict[str, ExpertFactors] = field(default_factory=dict)
    parameters: dict[str, Factors] = field(default_factory=dict)
    saved: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, TrainedTokens] = field(default_factory=dict)
    conv1d: set[str] = field(default_factory=set)
    embeddings: set[str] = field(default_factory=set)
    tied: set[str] = field(default_factory=set)
    base: str | None = None
    revision: str | None = None
    task_type: str | None = None
    modules_to_save: list[str] = field(default_factory=list)
    bias: str = "none"
    token_indices: Any = None
    module_names: list[str] = field(default_factory=list)
    parameter_names: list[str] = field(default_factory=list)
    config: Any = None
    branches: int = 1

    def matrices(self) -> Iterator[tuple[str, Factors]]:
        """All updates by name; a stack of experts is one item."""
        yield from self.modules.items()
        yield from self.parameters.items()
        yield from self.experts.items()

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by a name for messages."""
        parts = {f"{name} ({part})": getattr(item, part) for name, item in self.matrices() for part in ("down", "up")}
        return parts | self.saved | {f"{name} (trained tokens)": item.rows for name, item in self.tokens.items()}

    @property
    def largest_rank(self) -> int:
        """The largest rank of any update, 0 without one."""
        return max((factors.rank for _, factors in self.matrices()), default=0)


@torch.no_grad()
def adapter_factors(model: PeftModel, adapter_name: str = "default") -> AdapterFactors:
    """Read the update of a MultiLoRA or plain LoRA adapter.

    Args:
        model: unchanged. The base may be on the meta device, the adapter may not.
        adapter_name: of the adapter

    Raises:
        AdapterError: there is no such adapter, it is merged into the base, its method has no low-rank factors (DoRA,
            IA3, ...), its initialisation changed the base (PiSSA, ...), or a weight is NaN or infinite.
    """
    config = model.peft_config.get(adapter_name)
    if config is None:
        raise AdapterError(f"no adapter {adapter_name!r} in this model; it has {sorted(model.peft_config)}")
    method = str(config.peft_type.value).lower()
    check_initialisation(config)
    base = model.get_base_model()
    result = AdapterFactors(
        base=config.base_model_name_or_path or getattr(base, "name_or_path", None) or None,
        revision=config.revision,
        task_type=getattr(config.task_type, "value", config.task_type),
        modules_to_save=sorted(config.modules_to_save or ()),
        bias=str(getattr(config, "bias", "none")).replace("multilora_only", "lora_only"),
        token_indices=getattr(config, "trainable_token_indices", None),
        module_names=_base_names(base),
        parameter_names=[base_key(name) for name, _ in base.named_parameters() if "lora_" not in name],
        config=getattr(base, "config", None),
        branches=getattr(config, "num_branches", 1),
    )
    owners = Counter(id(item) for module in base.modules() for item in module._parameters.values() if item is not None)
    own_keys: set[str] = set()  # the entries of the checkpoint that are the updates
    for name, module in base.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        parts = [part for part in module.adapter_layer_names if adapter_name in getattr(module, part, ())]
        if not parts:
            continue
        own_keys |= {f"{PREFIX}{name}.{part}" for part in parts}
        if adapter_name in module.merged_adapters:
            raise AdapterError(
                f"adapter {adapter_name!r} is merged into the base ({name}); call model.unmerge_adapter() first"
            )
        if isinstance(module, TrainableTokensLayer):
            ids = [int(index) for index in module.token_indices[adapter_name]]
            rows = _float32(module.trainable_tokens_delta[adapter_name])
            result.tokens[name.removesuffix(".token_adapter")] = TrainedTokens(ids, rows)
            continue
        _add_update(result, name, module, adapter_name, method)
        inner = module.get_base_layer()
        if any(owners[id(item)] > 1 for item in inner._parameters.values() if item is not None):
            result.tied.add(name)
    result.saved = _saved(model, adapter_name, own_keys)
    check_finite(result.tensors())
    if not (result.largest_rank or result.tokens or result.saved):
        raise AdapterError(f"adapter {adapter_name!r} of method `{method}` changes no weight of its base")
    return result


def _base_names(base: nn.Module) -> list[str]:
    """The names of the modules that the base has without adapters."""
    added, wrapping = ("lora_", "multilora_", "modules_to_save"), ("base_layer", "original_module", "token_adapter")
    names = [name.split(".") for name, _ in base.named_modules() if name]
    kept = [parts for parts in names if not any(part.startswith(added) for part in parts)]
    return list(dict.fromkeys(".".join(part for part in parts if part not in wrapping) for parts in kept))


def check_initialisation(config: Any) -> None:
    """Check that attaching an adapter with this config leaves the base as it is.

    Raises:
        AdapterError: it moves a part of the base into the adapter (PiSSA, OLoRA, ...).
    """
    initialisation = getattr(config, "init_lora_weights", None)
    if initialisation not in UNCHANGED_BASE:
        raise AdapterError(
            f"init_lora_weights is {initialisation!r}, which changes the base, so the adapter alone is not the update; "
            "save it with PEFT's path_initial_model_for_weight_conversion, or export it with --to merged"
        )


def _add_update(result: AdapterFactors, name: str, module: Any, adapter_name: str, method: str) -> None:
    inner = module.get_base_layer()
    if adapter_name in getattr(module, "lora_embedding_A", ()) and adapter_name not in module.lora_variant:
        down, up = module.lora_embedding_A[adapter_name], module.lora_embedding_B[adapter_name]
        result.modules[name] = Factors(_float32(down), _float32(up.float() * module.scaling[adapter_name]))
        result.embeddings.add(name)
        return
    factors = layer_factors(module, adapter_name)
    if factors is None:
        variant = type(module.lora_variant[adapter_name]).__name__ if _has_variant(module, adapter_name) else ""
        what = f"{variant.removesuffix('Variant')} on a {type(inner).__name__}" if variant else type(inner).__name__
        raise AdapterError(
            f"the update of method `{method}` on {name} ({what}) has no low-rank factors, so it is no LoRA; {TO_MERGED}"
        )
    if getattr(module, "lora_bias", {}).get(adapter_name):
        raise AdapterError(f"lora_bias: the LoRA of {name} also has a bias, which only PEFT reads; {TO_MERGED}")
    up, down = (_float32(factor) for factor in factors)
    if not hasattr(module, "parameter_name"):
        result.modules[name] = Factors(down, up)
        if isinstance(inner, Conv1D):
            result.conv1d.add(name)
        return
    full_name = ".".join([*(part for part in name.split(".") if part != "base_layer"), module.parameter_name])
    if down.dim() == 3:
        result.experts[full_name] = ExpertFactors(down, up, transposed=bool(getattr(inner, "is_transposed", False)))
    else:
        result.parameters[full_name] = Factors(down, up)


def _has_variant(module: Any, adapter_name: str) -> bool:
    return adapter_name in getattr(module, "lora_variant", ())


def _saved(model: PeftModel, adapter_name: str, own_keys: set[str]) -> dict[str, Tensor]:
    """The trained tensors of the checkpoint that are not updates, by their key in the base."""
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    saved = {
        base_key(key): tensor
        for key, tensor in state.items()
        if not any(key == own or key.startswith(f"{own}.") for own in own_keys)
    }
    if _has_resized_vocabulary(model, adapter_name):
        saved = _embeddings(model.get_base_model()) | saved
    return {key: tensor.detach().cpu().contiguous() for key, tensor in saved.items()}


def _has_resized_vocabulary(model: PeftModel, adapter_name: str) -> bool:
    """Whether the embeddings have another size than the stored base's."""
    base = model.get_base_model()
    place = model.peft_config[adapter_name].base_model_name_or_path
    if not place or not hasattr(base, "config") or any(item.is_meta for item in base.parameters()):
        return False
    try:
        stored = type(base.config).from_pretrained(place, local_files_only=True)
    except Exception:  # a model from a config has any name, and the base may not be on this machine
        return False
    return bool(stored.get_text_config().vocab_size != base.config.get_text_config().vocab_size)


def _embeddings(base: Any) -> dict[str, Tensor]:
    layers = (base.get_input_embeddings(), base.get_output_embeddings())
    inner = {id(layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer) for layer in layers}
    return {base_key(f"{name}.weight"): module.weight for name, module in base.named_modules() if id(module) in inner}


def base_key(key: str) -> str:
    """The key in the base's state dict of a tensor in an adapter's checkpoint."""
    return ".".join(part for part in key.removeprefix(PREFIX).split(".") if part != "base_layer")


def _float32(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()
