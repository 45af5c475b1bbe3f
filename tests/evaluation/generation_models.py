"""Tiny models to generate with, and what `model.generate` says for a single prompt."""

from __future__ import annotations

from functools import cache

import torch
from conftest import make_gpt2, make_llama, make_tokenizer, randomise
from peft import get_peft_model
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, MambaConfig, MambaForCausalLM

from multilora import MultiLoraConfig
from multilora.evaluation.generation.generate import generate

LIMIT = 12
TOKENIZER = make_tokenizer()


def ignore(*_, **__):
    pass


def make_gemma():
    """A window of 8 tokens is shorter than most sequences."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=8,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return Gemma3ForCausalLM(config).eval()


def make_mamba():
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=320, hidden_size=32, state_size=4, num_hidden_layers=2, eos_token_id=2)
    return MambaForCausalLM(config).eval()


def make_adapted():
    model = get_peft_model(make_llama(), MultiLoraConfig(r=2, num_branches=2, target_modules="all-linear"))
    randomise(model)
    return model.eval()


MODELS = {
    "llama": make_llama,
    "gpt2": make_gpt2,
    "gemma with a sliding window": make_gemma,
    "mamba": make_mamba,
    "MultiLoRA": make_adapted,
}


@cache
def model_of(name):
    return MODELS[name]()


def prompt_of(length, seed):
    """A prompt that starts with BOS."""
    generator = torch.Generator().manual_seed(seed)
    return [1, *torch.randint(3, 320, (length - 1,), generator=generator).tolist()]


@cache
def _alone(name, prompt, limit):
    output = model_of(name).generate(
        torch.tensor([prompt]), max_new_tokens=limit, do_sample=False, eos_token_id=2, pad_token_id=0
    )
    return output[0, len(prompt) :].tolist()


def alone(name, prompt, limit=LIMIT):
    """Tokens of `model.generate` for a single prompt."""
    return _alone(name, tuple(prompt), limit)


def assert_alone(name, prompts, results, limits):
    for prompt, result, limit in zip(prompts, results, limits, strict=True):
        tokens = alone(name, prompt, limit)
        assert result.tokens == len(tokens)
        assert result.finished == (tokens[-1] == 2)
        assert result.text == TOKENIZER.decode(tokens, skip_special_tokens=True)


def run(name_or_model, prompts, **options):
    model = model_of(name_or_model) if isinstance(name_or_model, str) else name_or_model
    options = {"stop_ids": [2], "max_new_tokens": LIMIT, "advance": ignore} | options
    return generate(model, TOKENIZER, prompts, **options)
