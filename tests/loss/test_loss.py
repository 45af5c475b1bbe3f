"""The chunked loss equals the model's own loss and gradients for any head, without materializing full logits."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import make_gpt2, make_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTJConfig,
    GPTJForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from multilora import MultiLoraConfig
from multilora.data.collate import Collator
from multilora.loss import output_head
from multilora.loss.linear_cross_entropy import LogitMap, linear_cross_entropy
from multilora.loss.token_losses import token_losses

VOCABULARY, BATCH, LENGTH = 320, 3, 12
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def build(model_class, config):
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():  # larger logits, so that a cap or a scale has an effect
        model.get_output_embeddings().weight.mul_(20)
    return model


def make_gptj():
    """A model whose head has a bias."""
    config = GPTJConfig(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4)
    model = build(GPTJForCausalLM, config)
    torch.nn.init.normal_(model.lm_head.bias)
    return model


MODELS = {
    "llama": make_llama,
    "gpt2": make_gpt2,
    "gptj": make_gptj,
    "qwen2": lambda: build(Qwen2ForCausalLM, Qwen2Config(**SIZES)),
    "gemma2": lambda: build(Gemma2ForCausalLM, Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=3.0)),
    "cohere": lambda: build(CohereForCausalLM, CohereConfig(**SIZES, logit_scale=0.0625)),
    "granite": lambda: build(GraniteForCausalLM, GraniteConfig(**SIZES, logits_scaling=8.0)),
}


def make_batch(seed=0, vocabulary=VOCABULARY):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocabulary, (BATCH, LENGTH), generator=generator)
    labels = torch.where(torch.rand(BATCH, LENGTH, generator=generator) < 0.4, ids, -100)
    mask = torch.ones_like(ids)
    mask[1, -3:], labels[1, -3:] = 0, -100
    return {"input_ids": ids, "attention_mask": mask}, labels


def reference_losses(model, inputs, labels):
    """torch's cross-entropy of the model's full logits."""
    logits = model(**inputs, use_cache=False).logits[:, :-1].float()
    targets = labels[:, 1:]
    return F.cross_entropy(logits[targets != -100], targets[targets != -100], reduction="none")


def gradients(model, losses, weights):
    model.zero_grad()
    (losses * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model, inputs, labels, *, chunk=5, rtol=1e-5, atol=1e-5):
    weights = torch.rand(int((labels[:, 1:] != -100).sum()), generator=torch.Generator().manual_seed(1))
    expected = reference_losses(model, inputs, labels)
    expected_gradients = gradients(model, expected, weights)
    losses, _ = token_losses(model, inputs, labels, chunk=chunk)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected, rtol=rtol, atol=atol)
    actual_gradients = gradients(model, losses, weights)
    assert actual_gradients.keys() == expected_gradients.keys()
    assert expected_gradients
    for name, gradient in expected_gradients.items():
        size = float(gradient.abs().max()) or 1.0
        torch.testing.assert_close(actual_gradients[name], gradient, rtol=rtol, atol=atol * max(1.0, size), msg=name)
    with torch.no_grad():
        torch.testing.assert_close(token_losses(model, inputs, labels, chunk=chunk)[0], expected, rtol=rtol, atol=atol)


def is_chunked(model):
    return output_head.plain_head(model) is not None and isinstance(
        output_head._detected[model.get_output_embeddings()], LogitMap
    )


@pytest.mark.parametrize("trained", ["all", "frozen head"])
@pytest.mark.parametrize("name", list(MODELS))
def test_losses_and_gradients_equal_the_models_own(name, trained):
    model = MODELS[name]()
    if trained == "frozen head":
        model.get_output_embeddings().requires_grad_(False)
    inputs, labels = make_batch()
    assert_same(model, inputs, labels)
    assert is_chunked(model)
    with torch.no_grad():
        labels = torch.where(inputs["attention_mask"] == 1, inputs["input_ids"], -100)
        model_loss = model(**inputs, labels=labels).loss
        torch.testing.assert_close(token_losses(model, inputs, labels)[0].mean(), model_loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", LogitMap()),
        ("gemma2", LogitMap(cap=3.0)),
        ("cohere", LogitMap(scale=0.0625)),
        ("granite", LogitMap(scale=0.125)),
    ],
)
def test_logit_map_is_detected(name, expected):
    model = MODELS[name]()
    token_losses(model, *make_batch())
    assert output_head._detected[model.get_output_embeddings()] == expected


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_bfloat16(name):
    model = MODELS[name]().to(torch.bfloat16)
    model.get_output_embeddings().requires_grad_(False)
    assert_same(model, *make_batch(), rtol=5e-2, atol=3e-2)
    assert is_chunked(model)


@pytest.mark.parametrize("head_trained", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reduced_precision_heads_against_float32(dtype, head_trained):
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(9, 16), torch.randn(50, 16) / 4, torch.randint(0, 50, (9,))
    results = []
    for kind in (torch.float32, dtype):
        h = hidden.to(kind, copy=True).requires_grad_()
        w = weight.to(kind, copy=True).requires_grad_(head_trained)
        losses = linear_cross_entropy(h, w, None, targets, chunk=4)
        (losses.sum() * 3).backward()
        results.append([losses, h.grad, *([w.grad] if head_trained else [])])
        assert h.grad.dtype == kind
    for precise, reduced in zip(*results, strict=True):
        torch.testing.assert_close(reduced.float(), precise, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("config", [MultiLoraConfig, LoraConfig])
def test_adapted_model(config):
    model = get_peft_model(make_llama(), config(r=2, target_modules="all-linear"))
    assert_same(model, *make_batch())
    assert is_chunked(model.get_base_model())


def test_autocast():
    model = make_llama().requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(model, *make_batch(), rtol=5e-2, atol=3e-2)
    assert is_chunked(model)


def test_gradient_checkpointing():
    model = get_peft_model(make_llama(), MultiLoraConfig(r=2, target_modules="all-linear"))
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    assert_same(model, *make_batch())
    assert is_chunked(model.get_base_model())


def test_packed_rows():
    generator = torch.Generator().manual_seed(0)
    rows = []
    for lengths in ([5, 7], [4, 3, 3]):
        ids = torch.randint(3, VOCABULARY, (sum(lengths),), generator=generator).tolist()
        positions = [i for size in lengths for i in range(size)]
        labels = [i if position > 1 else -100 for i, position in zip(ids, positions, strict=True)]
        rows.append({"input_ids": ids, "labels": labels, "task_ids": [0] * len(ids), "position_ids": positions})
    batch = Collator(0, packed=True)(rows)
    inputs = {key: batch[key] for key in ("input_ids", "position_ids")}
    assert_same(make_llama(), inputs, batch["labels"])


def test_the_first_call_does_not_change_random_state_or_modules():
    model = make_llama(attention_dropout=0.3).train()
    inputs, labels = make_batch()
    results = []
    for _ in range(2):  # only the first call measures the head
        torch.manual_seed(3)
        results.append(token_losses(model, inputs, labels)[0].detach())
        assert "forward" not in vars(model.lm_head)
    assert torch.equal(*results)


def test_a_failing_forward_restores_the_head():
    model = make_llama()
    inputs, labels = make_batch()
    token_losses(model, inputs, labels)
    with pytest.raises(IndexError):
        token_losses(model, {"input_ids": inputs["input_ids"] + 10_000}, labels)
    assert "forward" not in vars(model.lm_head)
    assert model(**inputs).logits.shape == (BATCH, LENGTH, VOCABULARY)


class ShiftedLogits(type(make_llama())):
    """A model that changes its logits by more than scaling and capping."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + torch.linspace(0, 1, output.logits.shape[-1])
        return output


def shifted():
    model = make_llama()
    model.__class__ = ShiftedLogits
    return model


def hooked():
    model = make_llama()
    model.lm_head.register_forward_hook(lambda _, __, output: output * 2)
    return model


def custom_linear():
    model = make_llama()

    class RoundingLinear(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x).round(decimals=1) + self.weight.sum() * 0

    model.lm_head.__class__ = RoundingLinear
    return model


FALLBACKS = {
    "head in modules_to_save": lambda: get_peft_model(
        make_llama(), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    ),
    "adapted head": lambda: get_peft_model(make_llama(), MultiLoraConfig(r=2, target_modules=["q_proj", "lm_head"])),
    "LoRA on the head": lambda: get_peft_model(make_llama(), LoraConfig(r=2, target_modules=["q_proj", "lm_head"])),
    "hook": hooked,
    "other class": custom_linear,
    "logits shifted": shifted,
}


@pytest.mark.parametrize("name", list(FALLBACKS))
def test_other_heads_use_the_models_own_logits_and_warn(name, caplog):
    model = FALLBACKS[name]()
    assert_same(model, *make_batch())
    assert caplog.text.count("the loss is computed from the model's own logits") == 1


def test_a_head_adapted_later_is_detected():
    model, (inputs, labels) = make_llama(), make_batch()
    token_losses(model, inputs, labels)
    adapted = get_peft_model(model, MultiLoraConfig(r=2, target_modules=["lm_head"], init_weights=False))
    assert_same(adapted, inputs, labels)


class LargestTensor(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else [result]:
            if isinstance(item, torch.Tensor):
                self.largest = max(self.largest, item.numel())
        return result


@pytest.mark.parametrize("head_trained", [True, False])
def test_full_logits_are_never_materialized(head_trained):
    vocabulary, chunk = 4096, 4
    model = make_llama(vocab_size=vocabulary, hidden_size=16)
    model.get_input_embeddings().requires_grad_(False)
    model.lm_head.requires_grad_(head_trained)
    inputs, labels = make_batch(vocabulary=vocabulary)
    labels = inputs["input_ids"]
    trained = labels[:, 1:].numel()
    with LargestTensor() as tracker:
        losses, _ = token_losses(model, inputs, labels, chunk=chunk)
        losses.sum().backward()
    # The head's gradient is as large as its weight; the first call measures 18 rows of logits.
    allowed = max(18, 16 if head_trained else 0) * vocabulary
    assert tracker.largest <= allowed < trained * vocabulary
    if not head_trained:
        with LargestTensor() as tracker:
            token_losses(model, inputs, labels, chunk=chunk)[0].sum().backward()
        assert tracker.largest <= 16 * vocabulary  # at most the weight itself (its transpose is a view)


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 12),
    chunk=st.integers(1, 14),
    vocabulary=st.integers(1, 9),
    with_bias=st.booleans(),
    trained=st.booleans(),
    scale=st.sampled_from([1.0, 0.25, -2.0]),
    cap=st.sampled_from([None, 1.5]),
)
def test_results_do_not_depend_on_the_chunk_size(tokens, chunk, vocabulary, with_bias, trained, scale, cap):
    generator = torch.Generator().manual_seed(tokens)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).float()

    hidden, weight, bias = draw(tokens, 4), draw(vocabulary, 4), draw(vocabulary) if with_bias else None
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    weights = draw(tokens)
    results = []
    for chunked in (True, False):
        tensors = [copy.deepcopy(tensor) for tensor in (hidden, weight, bias)]
        tensors[0].requires_grad_()
        for tensor in tensors[1:]:
            if tensor is not None:
                tensor.requires_grad_(trained)
        if chunked:
            losses = linear_cross_entropy(*tensors, targets, LogitMap(scale, cap), chunk=chunk)
        else:
            logits = F.linear(*tensors) * scale
            logits = logits if cap is None else torch.tanh(logits / cap) * cap
            losses = F.cross_entropy(logits, targets, reduction="none")
        (losses * weights).sum().backward()
        results.append([losses, *(tensor.grad for tensor in tensors if tensor is not None)])
    for actual, expected in zip(*results, strict=True):
        assert (actual is None) == (expected is None)
        if actual is not None:
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_a_batch_without_trained_tokens():
    model = make_llama()
    inputs, labels = make_batch()
    losses, trained = token_losses(model, inputs, torch.full_like(labels, -100))
    assert losses.shape == (0,)
    assert not trained.any()
    losses.sum().backward()
