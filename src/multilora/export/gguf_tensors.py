"""The update of an adapter as the tensors of a GGUF adapter, which llama.cpp adds to a base in GGUF.

The rules are those of llama.cpp's converters (`convert_hf_to_gguf.py`, `convert_lora_to_gguf.py`): a tensor is called
as in the base's GGUF with `.lora_a` [rank, d_in] or `.lora_b` [d_out, rank] at the end, and where llama.cpp rotates
neighbouring features (rotary position embedding), the rows of the query and key projections are reordered. Every pair
is scaled by `adapter.lora.alpha` / rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from multilora.errors import AdapterError
from multilora.export.factors import TO_MERGED, AdapterFactors, Factors
from multilora.export.unstack import split_projections

EMBEDDING, HEAD = "token_embd", "output"  # llama.cpp's names


@dataclass(frozen=True)
class Family:
    """How llama.cpp represents the models of one `model_type` of transformers.

    architecture: llama.cpp's name
    reordered: whether the rows of the query and key projections are reordered
    """

    architecture: str
    reordered: bool = False


FAMILIES = {
    "llama": Family("llama", reordered=True),
    "mistral": Family("llama", reordered=True),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "qwen3_moe": Family("qwen3moe"),
    "gemma": Family("gemma"),
    "gemma2": Family("gemma2"),
    "gemma3_text": Family("gemma3"),
}


def family_of(config: Any) -> Family:
    """Return the family of a base.

    Raises:
        AdapterError: this architecture is left to llama.cpp's own converter.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise AdapterError(
            f"model type `{config.model_type}` cannot be exported to GGUF, only {', '.join(sorted(FAMILIES))}; export "
            "with --to lora instead, and convert the folder with llama.cpp: "
            "python convert_lora_to_gguf.py --base BASE_FOLDER --outtype f32 LORA_FOLDER"
        )
    return family


def gguf_tensors(factors: AdapterFactors, config: Any) -> tuple[dict[str, Tensor], int]:
    """Return the tensors of the GGUF adapter by name, and `adapter.lora.alpha`.

    Alpha is the largest rank, and the up-projections of smaller ranks are scaled accordingly.

    Args:
        factors: what the adapter changes
        config: of the base

    Raises:
        AdapterError: llama.cpp has no such architecture here, or cannot add something that the adapter changes.
    """
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    family = family_of(config)
    _check_only_updates(factors)
    architecture = {name: item for item, name in MODEL_ARCH_NAMES.items()}[family.architecture]
    names = get_tensor_name_map(MODEL_ARCH(architecture), config.num_hidden_layers)
    alpha = factors.largest_rank
    tensors: dict[str, Tensor] = {}
    updates: dict[str, Factors] = {**factors.modules, **split_projections(factors, config.model_type)}
    updates |= {name.removesuffix(".weight"): update for name, update in factors.parameters.items()}
    for module, update in updates.items():
        name = names.get_name(module)
        if name is None:
            raise AdapterError(f"{module}: llama.cpp's `{family.architecture}` has no such weight; {TO_MERGED}")
        if name in (EMBEDDING, HEAD):
            _check_vocabulary(module, factors, config)
        down, up = update.down, update.up * (update.rank / alpha)
        if module in factors.embeddings:
            down = down.mT  # llama.cpp looks up rows of it
        if family.reordered and module.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if module.endswith("q_proj") else config.num_key_value_heads
            up = reordered(up, heads)
        tensors[f"{name}.weight.lora_a"] = down.contiguous()
        tensors[f"{name}.weight.lora_b"] = up.contiguous()
    return tensors, alpha


def reordered(rows: Tensor, heads: int) -> Tensor:
    """Reorder [heads * d_head, ...] so that the two halves of every head, which rotate together, alternate."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _check_only_updates(factors: AdapterFactors) -> None:
    replaced = sorted(factors.saved) + sorted(factors.tokens)
    if replaced:
        more = f" and {len(replaced) - 1} more" if len(replaced) > 1 else ""
        raise AdapterError(
            f"{replaced[0]}{more}: the adapter replaces these weights (modules_to_save, biases, token indices or new "
            f"tokens), and a GGUF adapter can only add low-rank updates; {TO_MERGED} and convert the folder"
        )


def _check_vocabulary(module: str, factors: AdapterFactors, config: Any) -> None:
    if module in factors.tied or config.tie_word_embeddings:
        raise AdapterError(
            f"{module}: its weight is both the embedding and the head, and llama.cpp cannot change one of them alone; "
            f"{TO_MERGED}"
        )
    if f"{module}.weight" in factors.parameters:
        raise AdapterError(
            f"{module}.weight: adapted by target_parameters; train it by target_modules to export it to GGUF, or "
            f"{TO_MERGED}"
        )
