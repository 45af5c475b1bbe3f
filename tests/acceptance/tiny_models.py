"""Tiny random checkpoints in folders named like the hub ids that PEFT's tests ask for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers as t

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
ENCODER = {**SMALL, "vocab_size": 1024, "max_position_embeddings": 128}
LLAMA = {**SMALL, "vocab_size": 1024, "num_key_value_heads": 4, "max_position_embeddings": 256}
OPT = {
    "vocab_size": 1024,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 32,
    "word_embed_proj_dim": 16,
    "max_position_embeddings": 128,
}
GPT2 = {"vocab_size": 1024, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 128}


def models() -> dict[str, Any]:
    """Hub id -> a function that makes the model."""
    gemma = {**LLAMA, "head_dim": 4, "sliding_window": 16}
    return {
        "peft-internal-testing/tiny-random-OPTForCausalLM": lambda: t.OPTForCausalLM(t.OPTConfig(**OPT)),
        # The quantised tests count 24 adapted layers: q_proj and v_proj of twelve.
        "peft-internal-testing/opt-125m": lambda: t.OPTForCausalLM(
            t.OPTConfig(
                **{**OPT, "num_hidden_layers": 12, "hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 128}
            )
        ),
        "peft-internal-testing/tiny-random-GPT2LMHeadModel": lambda: t.GPT2LMHeadModel(t.GPT2Config(**GPT2)),
        "hf-internal-testing/tiny-random-gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**GPT2)),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**GPT2)),
        "peft-internal-testing/tiny-random-GPTJForCausalLM": lambda: t.GPTJForCausalLM(
            t.GPTJConfig(**{**GPT2, "rotary_dim": 4})
        ),
        "trl-internal-testing/tiny-random-LlamaForCausalLM": lambda: t.LlamaForCausalLM(t.LlamaConfig(**LLAMA)),
        "hf-internal-testing/tiny-random-MistralForCausalLM": lambda: t.MistralForCausalLM(t.MistralConfig(**LLAMA)),
        "peft-internal-testing/tiny-dummy-qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**LLAMA)),
        "trl-internal-testing/tiny-Qwen3ForCausalLM": lambda: t.Qwen3ForCausalLM(
            t.Qwen3Config(**{**LLAMA, "head_dim": 4})
        ),
        "hf-internal-testing/tiny-random-Gemma3ForCausalLM": lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**gemma)),
        "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": lambda: t.T5ForConditionalGeneration(
            t.T5Config(
                vocab_size=1024,
                d_model=16,
                d_ff=32,
                d_kv=4,
                num_layers=2,
                num_heads=4,
                decoder_start_token_id=0,
            )
        ),
        "peft-internal-testing/tiny-random-BartForConditionalGeneration": lambda: t.BartForConditionalGeneration(
            t.BartConfig(
                vocab_size=1024,
                d_model=16,
                encoder_layers=2,
                decoder_layers=2,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                encoder_ffn_dim=32,
                decoder_ffn_dim=32,
                max_position_embeddings=128,
            )
        ),
        "peft-internal-testing/tiny-random-BertModel": lambda: t.BertModel(t.BertConfig(**ENCODER)),
        "bert-base-uncased": lambda: t.BertForSequenceClassification(t.BertConfig(**ENCODER)),
        "peft-internal-testing/tiny-random-RobertaModel": lambda: t.RobertaModel(t.RobertaConfig(**ENCODER)),
        "peft-internal-testing/tiny-random-DebertaModel": lambda: t.DebertaModel(t.DebertaConfig(**ENCODER)),
        "peft-internal-testing/tiny-random-DebertaV2Model": lambda: t.DebertaV2Model(t.DebertaV2Config(**ENCODER)),
        "peft-internal-testing/tiny-random-BertForSequenceClassification": lambda: t.BertForSequenceClassification(
            t.BertConfig(**ENCODER)
        ),
        "peft-internal-testing/tiny-random-RobertaForSequenceClassification": lambda: (
            t.RobertaForSequenceClassification(t.RobertaConfig(**ENCODER))
        ),
        "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": lambda: t.LlamaForSequenceClassification(
            t.LlamaConfig(**LLAMA)
        ),
    }


def main(root: Path) -> None:
    for name, make in models().items():
        folder = root / name
        if folder.is_dir():
            continue
        torch.manual_seed(0)
        model = make()
        for parameter in model.parameters():
            # The default initialisation is so small that an adapter's effect would drown in tolerances.
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
