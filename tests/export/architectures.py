"""Tiny bases of many architectures, and adapters of them with an effect; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
import transformers as t
from conftest import make_gpt2, make_llama, make_qwen3_moe

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 320,
    "max_position_embeddings": 128,
}
CAUSAL: dict[str, Any] = {**SMALL, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
T5: dict[str, Any] = {"vocab_size": 320, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4}
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]

# name -> (task type, how to make the base, options of the adapter)
ARCHITECTURES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "llama": ("CAUSAL_LM", make_llama, {}),
    "gpt2": ("CAUSAL_LM", make_gpt2, {}),
    "qwen2 tied": ("CAUSAL_LM", lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**CAUSAL, tie_word_embeddings=True)), {}),
    "gemma3": (
        "CAUSAL_LM",
        lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**CAUSAL, head_dim=8, sliding_window=16)),
        {},
    ),
    "phi3": ("CAUSAL_LM", lambda: t.Phi3ForCausalLM(t.Phi3Config(**CAUSAL)), {}),
    "bert classifier": (
        "SEQ_CLS",
        lambda: t.BertForSequenceClassification(t.BertConfig(**SMALL, num_labels=3)),
        {"modules_to_save": ["classifier"]},
    ),
    "t5": (
        "SEQ_2_SEQ_LM",
        lambda: t.T5ForConditionalGeneration(t.T5Config(**T5, decoder_start_token_id=0, tie_word_embeddings=False)),
        {},
    ),
    "mixtral": (
        "CAUSAL_LM",
        lambda: t.MixtralForCausalLM(t.MixtralConfig(**CAUSAL, num_local_experts=4)),
        {"target_parameters": EXPERTS},
    ),
    "qwen3 moe": ("CAUSAL_LM", make_qwen3_moe, {"target_parameters": EXPERTS}),
}


def make_base(name: str) -> Any:
    """Create a base with weights large enough that an adapter's effect is visible."""
    torch.manual_seed(0)
    model = ARCHITECTURES[name][1]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.tie_weights()
    return model


def scramble(model: Any, seed: int = 3) -> Any:
    """Give every trainable parameter other values, as training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@torch.no_grad()
def outputs(model: Any) -> torch.Tensor:
    """Logits on fixed tokens."""
    ids = torch.arange(3, 27).reshape(2, 12)
    decoder = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    logits: torch.Tensor = model.eval()(input_ids=ids, **decoder).logits
    return logits
