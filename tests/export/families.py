"""A tiny model of every architecture that GGUF and MLX exports know, with a MultiLoRA adapter that has an effect."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from conftest import randomise
from peft import get_peft_model

from multilora import MultiLoraConfig

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,  # as in the published models; llama.cpp knows no other
}
# model_type -> class, and what its config has beyond `SIZES`
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "qwen3_moe": ("Qwen3Moe", EXPERTS),
    "gemma": ("Gemma", {}),
    "gemma2": ("Gemma2", {"query_pre_attn_scalar": 8}),
    # llama.cpp and mlx-lm know no other pattern than five layers with a sliding window and one without.
    "gemma3_text": ("Gemma3", {"query_pre_attn_scalar": 8, "num_hidden_layers": 6}),
}


def make_base(model_type: str, **options: Any) -> Any:
    """Create a tiny causal model with random weights and a fixed seed."""
    torch.manual_seed(0)
    name, more = FAMILIES[model_type]
    cls = getattr(transformers, f"{name}ForCausalLM")
    model = cls(cls.config_class(**{**SIZES, **more, **options})).eval()
    for parameter in model.parameters():  # so that the logits differ clearly from zero
        parameter.data.mul_(4 if parameter.dim() > 1 else 1)
    return model


def make_adapted(model_type: str, **options: Any) -> Any:
    """Create a tiny base with MultiLoRA on all linear modules, and on the experts if it has any."""
    experts = ["experts.gate_up_proj", "experts.down_proj"] if FAMILIES[model_type][1] is EXPERTS else None
    config = MultiLoraConfig(
        **{
            "r": 2,
            "num_branches": 3,
            "target_modules": "all-linear",
            "target_parameters": experts,
            "task_type": "CAUSAL_LM",
            **options,
        }
    )
    model = get_peft_model(make_base(model_type), config)
    randomise(model)
    return model.eval()


def deltas(model: Any) -> dict[str, torch.Tensor]:
    """Name of an adapted weight in the base -> Delta W, as the layer itself computes it."""
    result = {}
    for name, module in model.get_base_model().named_modules():
        if hasattr(module, "multilora_A"):
            full = module.full_name(name) if hasattr(module, "full_name") else f"{name}.weight"
            result[full] = module.get_delta_weight("default").detach()
    return result
