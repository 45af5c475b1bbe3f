"""Factors as a PEFT LoRA: the config and the tensors of an adapter folder that every reader of LoRA understands.

Some readers ignore `rank_pattern`, `alpha_pattern` and rsLoRA, take one alpha for all modules, read alpha as an integer
or only the tensors, or need the same rank everywhere. So all updates get one rank r, with zeros where their own is
smaller, `lora_alpha` is r, and all constants are in B:

    lora_A [r, d_in] = [down; 0]        lora_B [d_out, r] = [up | 0]        Delta W = (alpha / r) B A = up @ down
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection

from peft import LoraConfig
from torch import Tensor
from torch.nn.functional import pad

from multilora.export.factors import PREFIX, AdapterFactors, Factors
from multilora.low_rank import stacked


def lora_files(factors: AdapterFactors, *, ragged: bool = False) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Return the config and the tensors of an adapter folder.

    Args:
        factors: of the adapter
        ragged: keep the rank of every module, in `rank_pattern` and `alpha_pattern`, instead of one for all; smaller,
            but only PEFT and vLLM read the patterns

    Returns:
        the config, and the tensors by their names in `adapter_model.safetensors`, float32 except for `saved`
    """
    ranks = {name: item.rank for name, item in factors.matrices()}
    values = list(ranks.values())
    r = max(set(values), key=values.count) if ragged and values else max(values, default=1)
    wrappers = wrapper_names(factors)
    state: dict[str, Tensor] = {}
    for name, item in factors.matrices():
        down, up = _padded(item, ranks[name] if ragged else r)
        if down.dim() == 3:
            down, up = stacked(down, up)
        key, (part_a, part_b) = PREFIX + wrappers.get(name, name), ("lora_A.weight", "lora_B.weight")
        if name in factors.embeddings:
            part_a, part_b = "lora_embedding_A", "lora_embedding_B"
        state |= {f"{key}.{part_a}": down.contiguous(), f"{key}.{part_b}": up.contiguous()}
    for name, tokens in factors.tokens.items():
        state[f"{PREFIX}{name}.token_adapter.trainable_tokens_delta"] = tokens.rows
    for key, tensor in factors.saved.items():
        module, _, parameter = key.rpartition(".")
        inner = ".base_layer" if module in factors.modules else ""
        state[f"{PREFIX}{module}{inner}.{parameter}"] = tensor
    pattern = {rf"^{re.escape(name)}$": rank for name, rank in ranks.items() if rank != r} if ragged else {}
    return _config(factors, r, pattern), state


def _config(factors: AdapterFactors, r: int, pattern: dict[str, int]) -> LoraConfig:
    targets = suffixes(factors.modules)
    excluded = sorted(matching(targets, factors.module_names) - factors.modules.keys())
    return LoraConfig(
        r=r,
        lora_alpha=r,
        lora_dropout=0.0,
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
        target_modules=targets,
        exclude_modules=excluded or None,
        target_parameters=sorted({_suffix(name, 2) for name in [*factors.parameters, *factors.experts]}) or None,
        fan_in_fan_out=bool(factors.conv1d) and factors.conv1d >= factors.modules.keys() - factors.embeddings,
        bias=factors.bias,
        modules_to_save=factors.modules_to_save or None,
        trainable_token_indices=factors.token_indices,
        task_type=factors.task_type,
        base_model_name_or_path=hub_name(factors.base),
        revision=factors.revision,
        inference_mode=True,
    )


def suffixes(names: Collection[str]) -> list[str]:
    """Return the last parts of module names, sorted: `q_proj`, or `to_out.0` if the last part is an index."""
    return sorted({_suffix(name, 1) for name in names})


def matching(targets: Collection[str], names: Collection[str]) -> set[str]:
    """Return the names that a list of `target_modules` selects, as PEFT reads it."""
    return {name for name in names if any(name == target or name.endswith(f".{target}") for target in targets)}


def hub_name(base: str | None) -> str | None:
    """Return `owner/name` for a path in the cache of the hub, and any other base as it is."""
    found = re.search(r"models--([^/\\]+)--([^/\\]+)[/\\]snapshots[/\\]", base or "")
    return f"{found[1]}/{found[2]}" if found else base


def _suffix(name: str, parts: int) -> str:
    split = name.split(".")
    while parts < len(split) and split[-parts].isdigit():
        parts += 1
    return ".".join(split[-parts:])


def _padded(item: Factors, rank: int) -> tuple[Tensor, Tensor]:
    """(down, up) with zeros up to a rank."""
    missing = rank - item.rank
    return pad(item.down, (0, 0, 0, missing)), pad(item.up, (0, missing))


def wrapper_names(factors: AdapterFactors) -> dict[str, str]:
    """Return name of a parameter that is no module's weight -> module name of its wrapper in an adapted model.

    PEFT wraps the parameters of a module in the order of their definition, so that the last one is outermost.
    """
    result: dict[str, str] = {}
    depth: Counter[str] = Counter()
    names = [*factors.parameters, *factors.experts]
    for name in sorted(names, key=factors.parameter_names.index, reverse=True):
        module = name.rpartition(".")[0]
        result[name] = module + ".base_layer" * depth[module]
        depth[module] += 1
    return result
