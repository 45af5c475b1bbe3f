"""Scores equal those of one sequence at a time, whatever is shared, batched or distributed."""

from __future__ import annotations

import logging

import pytest
import torch
from conftest import make_gpt2, make_llama, make_qwen3_moe, randomise
from peft import get_peft_model
from processes import WORLD, run_in_two_processes
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from multilora import MultiLoraConfig
from multilora.errors import RunError
from multilora.evaluation.requests import Request
from multilora.evaluation.scoring import likelihoods
from multilora.evaluation.scoring.engine import Sharing
from multilora.evaluation.scoring.likelihoods import score_requests
from multilora.evaluation.scoring.supported import NOTHING, supported_sharing

SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
WINDOWED = {**SIZES, "head_dim": 8, "sliding_window": 16}
MAMBA = MambaConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2, state_size=4)
EVERYTHING = Sharing()


def eager():
    model = make_llama()
    model.set_attn_implementation("eager")
    return model


def adapted():
    model = get_peft_model(make_llama(), MultiLoraConfig(r=2, target_modules="all-linear", init_weights=False))
    randomise(model)
    return model


MODELS = {
    "llama": (make_llama, EVERYTHING),
    "gpt2": (make_gpt2, Sharing(last_mlp=False)),
    "eager attention": (eager, EVERYTHING),
    "mixture of experts": (make_qwen3_moe, EVERYTHING),
    "adapter": (adapted, EVERYTHING),
    "sliding window in all layers": (lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=16)), EVERYTHING),
    "sliding window in some layers": (
        lambda: Gemma3ForCausalLM(
            Gemma3TextConfig(**WINDOWED, layer_types=["sliding_attention", "full_attention", "sliding_attention"])
        ),
        EVERYTHING,
    ),
    "capped logits": (lambda: Gemma2ForCausalLM(Gemma2Config(**WINDOWED)), EVERYTHING),
    "ALiBi, which refuses masks": (
        lambda: BloomForCausalLM(BloomConfig(vocab_size=320, hidden_size=32, n_layer=2, n_head=4)),
        Sharing(trees=False, last_mlp=False),
    ),
    "no attention": (lambda: MambaForCausalLM(MAMBA), NOTHING),
}


def build(make):
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "lora" not in name:
                parameter.normal_(std=0.2)
    return model


def requests_of(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def tokens(low, high):
        length = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(3, 320, (length,), generator=generator).tolist()

    requests = []
    for _ in range(2):
        few_shot = tokens(60, 61)
        for _ in range(4):
            question = few_shot + tokens(3, 30)
            requests += [Request(question, tokens(1, 5)) for _ in range(3)]
    requests += [Request(tokens(1, 40), tokens(1, 9)) for _ in range(4)]
    # Twice the same, and a context that ends within another.
    return [*requests, requests[0], Request(requests[0].context[:10], requests[0].context[10:20])]


REQUESTS = requests_of()


def expected(model, requests):
    results = []
    for request in requests:
        ids = torch.tensor([request.context + request.continuation])
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits[0].float().log_softmax(-1)
        start = len(request.context) - 1
        rows = logits[start : start + len(request.continuation)]
        values = rows.gather(1, torch.tensor(request.continuation)[:, None])[:, 0]
        results.append((values, rows.argmax(-1).tolist() == request.continuation))
    return results


def assert_equal(scores, reference, tolerance=1e-4):
    for score, (values, greedy) in zip(scores, reference, strict=True):
        torch.testing.assert_close(score.tokens, values, rtol=0, atol=tolerance)
        assert score.greedy == greedy


@pytest.mark.parametrize("name", MODELS)
def test_scores_equal_those_of_single_sequences(name):
    make, sharing = MODELS[name]
    model = build(make)
    finished = []
    assert_equal(score_requests(model, REQUESTS, advance=finished.append), expected(model, REQUESTS))
    assert sum(finished) == len(REQUESTS)
    assert supported_sharing(model, REQUESTS) == sharing


@pytest.mark.parametrize("name", ["llama", "sliding window in some layers", "no attention"])
@pytest.mark.parametrize("batch_tokens", [1, 70, 300])
@pytest.mark.parametrize("row_tokens", [0, 40, 100, 10_000])
def test_scores_do_not_depend_on_batches_and_rows(name, batch_tokens, row_tokens, monkeypatch):
    monkeypatch.setattr(likelihoods, "ROW_TOKENS", row_tokens)
    model = build(MODELS[name][0])
    assert_equal(score_requests(model, REQUESTS, batch_tokens=batch_tokens), expected(model, REQUESTS))


def test_a_model_that_ignores_masks_is_found_out(caplog):
    """Its results would be wrong without an error."""
    model = build(make_llama)
    forward = model.forward

    def without_mask(*args, attention_mask=None, **kwargs):
        return forward(*args, **kwargs)

    model.forward = without_mask
    with caplog.at_level(logging.WARNING):
        scores = score_requests(model, REQUESTS)
    assert supported_sharing(model, REQUESTS) == Sharing(trees=False)
    assert "does not share rows between requests and takes longer (log-probabilities differ by" in caplog.text
    del model.forward
    assert_equal(scores, expected(model, REQUESTS))


def mixing(mlp):
    """Let a feed-forward module mix the tokens of a row."""
    forward = mlp.forward
    mlp.forward = lambda hidden: forward(hidden).cumsum(dim=1)


def test_a_last_layer_that_mixes_tokens_is_computed_completely(caplog):
    model = build(make_llama)
    mixing(model.model.layers[-1].mlp)
    requests = [Request(list(range(n, n + 20)), [n]) for n in range(3, 40, 7)]  # nothing to share
    reference = expected(model, requests)
    with caplog.at_level(logging.WARNING):
        assert_equal(score_requests(model, requests), reference)
    assert not supported_sharing(model, requests).last_mlp


def test_out_of_memory_halves_the_batch(caplog):
    model = build(make_llama)
    reference = expected(model, REQUESTS)
    supported_sharing(model, REQUESTS)
    sizes = []
    forward = model.forward

    def limited(*args, input_ids, **kwargs):
        sizes.append(input_ids.numel())
        if input_ids.numel() > 160:
            raise torch.OutOfMemoryError("no memory")
        return forward(*args, input_ids=input_ids, **kwargs)

    model.forward = limited
    assert_equal(score_requests(model, REQUESTS, batch_tokens=10_000), reference)
    assert max(sizes) > 160
    assert "out of memory: continuing with" in caplog.text
    with pytest.raises(RunError, match="out of memory: a sequence of 199 tokens behind 0 others does not fit"):
        score_requests(model, [Request([3] * 199, [4])])


def test_no_requests_and_no_training_mode_change():
    model = build(make_llama)
    assert score_requests(model, []) == []
    assert not model.training


@pytest.mark.parametrize("name", ["llama", "sliding window in some layers"])
def test_bfloat16_shares_and_stays_close_to_float32(name):
    model = build(MODELS[name][0])
    reference = expected(model, REQUESTS)
    scores = score_requests(model.bfloat16(), REQUESTS)
    assert supported_sharing(model, REQUESTS) == EVERYTHING
    differences = [
        float((score.tokens - values).abs().mean()) for score, (values, _) in zip(scores, reference, strict=True)
    ]
    assert sum(differences) / len(differences) < 0.2


def sharp_bfloat16_model():
    """Its attention and its logits are as large as in trained models, so bfloat16 rounds a logit by up to 0.1."""
    model = build(make_llama)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(8)
        model.lm_head.weight.mul_(6 / float(model.lm_head(model.model.norm(torch.randn(9, 32))).std()))
    return model.bfloat16()


@pytest.mark.parametrize("length", range(4, 40, 4))
def test_large_logits_in_bfloat16_share(length):
    requests = [
        Request(torch.randint(3, 320, (length,), generator=torch.Generator().manual_seed(length)).tolist(), [7, 9])
    ]
    model = sharp_bfloat16_model()
    assert float(score_requests(model, requests)[0].tokens.abs().max()) > 4
    assert supported_sharing(model, requests) == EVERYTHING


@pytest.mark.parametrize("length", range(8, 40, 8))
def test_large_logits_in_bfloat16_hide_no_ignored_mask(length):
    requests = [
        Request(torch.randint(3, 320, (length,), generator=torch.Generator().manual_seed(length)).tolist(), [7, 9])
    ]
    model = sharp_bfloat16_model()
    forward = model.forward
    model.forward = lambda *args, attention_mask=None, **kwargs: forward(*args, **kwargs)
    assert not supported_sharing(model, requests).trees


def score_in_process(rank, folder, kind):
    model = build(make_llama)
    counted = []
    forward = model.forward

    def counting(*args, **kwargs):
        counted.append(kwargs["input_ids"].numel())
        return forward(*args, **kwargs)

    reference = expected(model, REQUESTS)
    if kind == "FSDP2":
        for layer in model.model.layers:
            fully_shard(layer, mesh=init_device_mesh("cpu", (WORLD,)))
        fully_shard(model, mesh=init_device_mesh("cpu", (WORLD,)))
    else:
        supported_sharing(model, REQUESTS)
        model.forward = counting
    # One process has one request only, so that the other runs more forward passes.
    for requests in (REQUESTS, REQUESTS[:13]):
        assert_equal(score_requests(model, requests, batch_tokens=100), reference[: len(requests)])
    if kind == "replicas":
        alone = sum(counted)
        score_requests(model, REQUESTS, batch_tokens=100, share=False)
        score_requests(model, REQUESTS[:13], batch_tokens=100, share=False)
        assert alone < 0.75 * (sum(counted) - alone)


@pytest.mark.parametrize("kind", [pytest.param("replicas", marks=pytest.mark.slow), "FSDP2"])
def test_two_processes_share_the_work(tmp_path, kind):
    run_in_two_processes(score_in_process, tmp_path, kind)
