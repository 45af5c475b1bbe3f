"""The update of an adapter as the tensors of a GGUF adapter, which llama.cpp adds to a base in GGUF.

The rules are those of llama.cpp's converters (`convert_hf_to_gguf.py`, `convert_lora_to_gguf.py`): a tensor is called
as in the base's GGUF with `.lora_a` [rank, d_in] or `.lora_b` [d_out, rank] at the end, and where llama.cpp rotates
neighbouring features (rotary position embedding), the rows of the query and key projections are reordered. Every pair
is scaled by `adapter.lora.alpha` / rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from multilora.errors import AdapterError
from multilora.export.factors import TO_MERGED, AdapterFactors
from multilora.export.formats.update_files import module_updates, vocabulary_error

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


def family_of(factors: AdapterFactors) -> Family:
    """Return the family of an adapter's base.

    Raises:
        AdapterError: this architecture is left to llama.cpp's own converter.
    """
    model_type = getattr(factors.config, "model_type", None)
    family = FAMILIES.get(str(model_type))
    if family is None:
        lora = "--to lora --per-expert" if factors.experts else "--to lora"
        raise AdapterError(
            f"model type `{model_type}` cannot be exported to GGUF, only {', '.join(sorted(FAMILIES))}; export with "
            f"{lora} to a folder LORA instead, and convert that with llama.cpp: python convert_lora_to_gguf.py "
            f"--base {factors.base or 'BASE'} --outtype f32 --outfile LORA.gguf LORA"
        )
    return family


def gguf_tensors(factors: AdapterFactors) -> tuple[dict[str, Tensor], int]:
    """Return the tensors of the GGUF adapter by name, and `adapter.lora.alpha`.

    Alpha is the largest rank, and the up-projections of smaller ranks are scaled accordingly.

    Args:
        factors: what the adapter changes

    Raises:
        AdapterError: llama.cpp has no such architecture here, or cannot add something that the adapter changes.
    """
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    family, config = family_of(factors), factors.config
    architecture = {name: item for item, name in MODEL_ARCH_NAMES.items()}[family.architecture]
    names = get_tensor_name_map(MODEL_ARCH(architecture), config.num_hidden_layers)
    alpha = factors.largest_rank
    tensors: dict[str, Tensor] = {}
    for module, update in module_updates(factors, "a GGUF adapter").items():
        name = names.get_name(module)
        if name is None:
            raise AdapterError(f"{module}: llama.cpp's `{family.architecture}` has no such weight; {TO_MERGED}")
        if name in (EMBEDDING, HEAD) and (module in factors.tied or config.tie_word_embeddings):
            raise vocabulary_error(module, "llama.cpp")
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
    """Reorder [heads * d_head, rank] so that the two halves of every head, which rotate together, alternate."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
