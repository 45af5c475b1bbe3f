"""Generated responses equal those of `model.generate`, one prompt at a time, however they are batched."""

from __future__ import annotations

import json
import logging
from itertools import pairwise

import pytest
import torch
from conftest import make_llama
from generation_models import LIMIT, MODELS, TOKENIZER, alone, assert_alone, model_of, prompt_of, run
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import WORLD, run_in_two_processes
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from multilora.errors import InputError, RunError


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch_tokens", [1, 150, None])
def test_equals_single_prompts(name, batch_tokens):
    prompts = [prompt_of(length, length) for length in (1, 40, 9, 2, 23, 23, 17, 5, 31, 1, 12)]
    assert_alone(name, prompts, run(name, prompts, batch_tokens=batch_tokens), [LIMIT] * len(prompts))


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), max_size=8),
    limits=st.lists(st.integers(1, 9), min_size=8, max_size=8),
    batch_tokens=st.integers(1, 400),
    name=st.sampled_from(["llama", "gemma with a sliding window"]),
)
def test_does_not_depend_on_lengths_and_batches(lengths, limits, batch_tokens, name):
    prompts = [prompt_of(length, seed) for seed, length in enumerate(lengths)]
    limits = limits[: len(prompts)]
    results = run(name, prompts, max_new_tokens=limits, batch_tokens=batch_tokens)
    assert_alone(name, prompts, results, limits)


@pytest.mark.parametrize("name", ["llama", "gemma with a sliding window", "MultiLoRA"])
@pytest.mark.parametrize("batch_tokens", [200, None])
def test_shared_prefix_is_computed_once(name, batch_tokens, monkeypatch):
    shots = prompt_of(50, 0)
    prompts = [shots + prompt_of(length, length) for length in (1, 9, 30, 9, 2, 17)] + [shots]
    processed = 0
    forward = model_of(name).forward

    def counted(*args, **kwargs):
        nonlocal processed
        if kwargs.get("use_cache"):
            processed += kwargs["input_ids"].numel() if kwargs["input_ids"].shape[1] > 1 else 0
        return forward(*args, **kwargs)

    run(name, [[1]])  # the check of the cache happens once per model
    monkeypatch.setattr(model_of(name), "forward", counted)
    results = run(name, prompts, batch_tokens=batch_tokens)
    assert processed < sum(map(len, prompts))
    if batch_tokens is None:
        assert processed <= len(shots) + len(prompts) * 31
    monkeypatch.undo()
    assert_alone(name, prompts, results, [LIMIT] * len(prompts))


@pytest.mark.parametrize("lengths", [[40], [1, 40, 9, 40]])
def test_the_output_layer_gets_no_slices(lengths):
    """With a slice of the states, torch copies the weight of a frozen output layer on a CPU."""
    head = model_of("llama").lm_head
    strides = []
    hook = head.register_forward_pre_hook(lambda _, args: strides.append((args[0].shape, args[0].stride())))
    try:
        run("llama", [prompt_of(length, length) for length in lengths])
    finally:
        hook.remove()
    assert strides
    for shape, stride in strides:
        assert stride == (shape[1] * shape[2], shape[2], 1)


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_stop_string_across_tokens(name):
    prompts = [prompt_of(length, length) for length in (4, 19, 7, 11, 12, 13)]
    texts = [TOKENIZER.decode(alone(name, prompt), skip_special_tokens=True) for prompt in prompts]
    pieces = [[TOKENIZER.decode([token]) for token in alone(name, prompt)[1:]] for prompt in prompts]
    # The last character of a token and the first of the next one.
    borders = [a[-1:] + b[:1] for row in pieces for a, b in pairwise(row) if "�" not in a + b]
    border = next(border for border in borders if len(border) == 2)
    for result, text, prompt in zip(run(name, prompts, stop_strings=[border, "never"]), texts, prompts, strict=True):
        assert result.text == text.split(border)[0]
        assert result.finished == (border in text or alone(name, prompt)[-1] == 2)
        if border in text:
            generated = alone(name, prompt)
            assert border in TOKENIZER.decode(generated[: result.tokens])
            assert border not in TOKENIZER.decode(generated[: result.tokens - 1])


def test_earliest_stop_string_cuts_and_a_broken_character_is_no_text():
    ids = TOKENIZER.encode("yes and no é two three", add_special_tokens=False)
    for stops, expected in [(["no", "and"], "yes "), (["é"], "yes and no "), (["hree"], "yes and no é two t")]:
        (result,) = run(repeating(ids), [[1, 5]], stop_strings=stops, max_new_tokens=len(ids))
        assert (result.text, result.finished) == (expected, True)
    (result,) = run(repeating(ids), [[1, 5]], stop_strings=["nowhere"], max_new_tokens=len(ids))
    assert (result.text, result.finished, result.tokens) == ("yes and no é two three", False, len(ids))


def test_special_token_as_stop_string():
    (result,) = run(repeating([9, 10, 2, 11]), [[1, 5]], stop_ids=[], stop_strings=["</s>"])
    assert (result.tokens, result.text, result.finished) == (3, TOKENIZER.decode([9, 10]), True)


def repeating(answer):
    """A model that says `answer` after a prompt of two tokens."""
    model = make_llama()
    table = torch.tensor([0, *answer])

    def head(_, __, logits):
        return (
            torch.nn.functional.one_hot(table[position["ids"].clamp(max=len(answer))], 320).float()[:, -1:] + 0 * logits
        )

    position = {}

    def remember(_, __, kwargs):
        position["ids"] = kwargs["position_ids"]

    model.register_forward_pre_hook(remember, with_kwargs=True)
    model.lm_head.register_forward_hook(head)
    return model


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_first_token_stops(name):
    prompt = prompt_of(7, 3)
    (first, *_) = alone(name, prompt)
    (result,) = run(name, [prompt], stop_ids=[first])
    assert (result.text, result.tokens, result.finished) == ("", 1, True)


def test_no_prompts():
    assert run("llama", []) == []


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1], []], {}, "prompt 1 has no tokens"),
        ([[1]], {"max_new_tokens": [1, 2]}, "2 numbers for 1 prompts"),
        ([[1]], {"max_new_tokens": 0, "top_p": 0.0}, "max_new_tokens is 0.*top_p is 0.0"),
        ([[1]], {"temperature": -1.0, "top_k": -1, "batch_tokens": 0}, "temperature.*top_k.*batch_tokens"),
    ],
)
def test_bad_input(prompts, options, message):
    with pytest.raises(InputError, match=message):
        run("llama", prompts, **options)


def limit_memory(monkeypatch, model, slots):
    """Let forward passes with more than `slots` rows x slots run out of memory."""
    forward, failures = model.forward, []

    def limited(*args, **kwargs):
        cached = kwargs.get("past_key_values")
        rows, width = kwargs["input_ids"].shape
        used = cached.get_seq_length() if hasattr(cached, "get_seq_length") else 0
        if rows * (width + used) > slots:
            failures.append(rows)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", limited)
    return failures


@pytest.mark.parametrize("name", ["llama", "gemma with a sliding window", "mamba"])
def test_out_of_memory_makes_batches_smaller(name, monkeypatch):
    lengths = (20, 20, 20, 20, 35, 3, 8, 1)
    prompts = [prompt_of(length, index) for index, length in enumerate(lengths)]
    expected = run(name, prompts)
    failures = limit_memory(monkeypatch, model_of(name), 50)
    counts = []
    assert run(name, prompts, advance=counts.append) == expected
    assert failures
    assert sum(counts) == len(prompts)


def test_prompt_that_does_not_fit(monkeypatch):
    run("llama", [[1]])
    limit_memory(monkeypatch, model_of("llama"), 50)
    with pytest.raises(RunError, match=r"out of memory.*60 tokens"):
        run("llama", [prompt_of(60, 0), prompt_of(3, 1)])


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_samples_depend_on_the_seed_only(name):
    prompts = [prompt_of(length, length) for length in (4, 19, 7, 7, 30)]
    options = {"temperature": 1.5, "top_p": 0.9, "top_k": 50}
    samples = run(name, prompts, seed=3, **options)
    assert samples == run(name, prompts, seed=3, batch_tokens=1, **options)
    assert samples == run(name, prompts, seed=3, batch_tokens=70, **options)
    assert samples != run(name, prompts, seed=4, **options)


def test_same_prompts_are_sampled_independently():
    texts = {result.text for result in run("llama", [prompt_of(5, 0)] * 6, temperature=1.0)}
    assert len(texts) > 3


def test_samples_follow_the_distribution():
    """Frequencies of the first token, for top-k and top-p, agree with the model's probabilities."""
    prompt = prompt_of(6, 1)
    with torch.no_grad():
        logits = model_of("llama")(torch.tensor([prompt])).logits[0, -1] / 0.1
    values, order = logits.softmax(-1).sort(descending=True)
    count = 400
    for options, size in [({"top_k": 3}, 3), ({"top_p": 0.3}, int((values.cumsum(-1) < 0.3).sum()) + 1)]:
        results = run("llama", [prompt] * count, temperature=0.1, max_new_tokens=1, stop_ids=[], **options)
        texts = [TOKENIZER.decode([token], skip_special_tokens=True) for token in order[:size].tolist()]
        assert {result.text for result in results} <= set(texts)
        expected = values[0] / values[:size].sum()
        actual = sum(result.text == texts[0] for result in results) / count
        assert abs(actual - expected) < 5 * (expected * (1 - expected) / count) ** 0.5


def test_mode_and_generation_config_stay():
    for name in ("llama", "mamba"):
        model = MODELS[name]().train()
        model.lm_head.eval()
        model.generation_config.repetition_penalty = 7.0
        prompts = [prompt_of(9, 9)]
        assert_alone(name, prompts, run(model, prompts), [LIMIT])
        assert model.training
        assert not model.lm_head.training
        assert model.generation_config.repetition_penalty == 7.0


def test_bfloat16():
    model = make_llama().bfloat16()
    prompts = [prompt_of(length, length) for length in (3, 30, 11)]
    for prompt, result in zip(prompts, run(model, prompts, batch_tokens=1), strict=True):
        tokens = model.generate(torch.tensor([prompt]), max_new_tokens=LIMIT, do_sample=False)[0, len(prompt) :]
        assert result.text == TOKENIZER.decode(tokens, skip_special_tokens=True)


def test_only_models_with_another_cache_fall_back_and_say_so_once(caplog):
    caplog.set_level(logging.WARNING)
    for name, make in MODELS.items():
        caplog.clear()
        model = make()
        for _ in range(2):
            run(model, [[1, 5, 9]])
        warnings = [record for record in caplog.records if "model.generate" in record.getMessage()]
        assert len(warnings) == (name == "mamba"), name


PROMPTS = [prompt_of(length, length) for length in (5, 30, 11, 2, 19)]


def test_a_last_layer_that_must_be_complete_needs_no_fallback(caplog):
    model, shapes = make_llama(), []
    layer = model.model.layers[-1]
    forward = layer.mlp.forward
    layer.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))

    def complete(hidden):
        assert hidden.shape == shapes[-1]
        return forward(hidden)

    layer.mlp.forward = complete
    assert_alone("llama", PROMPTS, run(model, PROMPTS), [LIMIT] * len(PROMPTS))
    assert "model.generate" not in caplog.text


def process(rank, folder):
    answers = {}
    for count in (5, 1):
        counts = []
        results = run(make_llama(), PROMPTS[:count], advance=counts.append)
        answers[f"replicas {count}"] = [[result.text for result in results], sum(counts)]
    sharded = make_llama()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (WORLD,)))
    counts = []
    answers["sharded"] = [[result.text for result in run(sharded, PROMPTS, advance=counts.append)], sum(counts)]
    model = make_llama()
    if rank == 1:
        model.forward = broken
    with pytest.raises(RunError if rank == 0 else ZeroDivisionError, match="a failure"):
        run(model, PROMPTS)
    (folder / f"{rank}.json").write_text(json.dumps(answers))


def broken(*_, **__):
    raise ZeroDivisionError("a failure")


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    run_in_two_processes(process, tmp_path)
    expected = [TOKENIZER.decode(alone("llama", prompt), skip_special_tokens=True) for prompt in PROMPTS]
    for rank in range(WORLD):
        answers = json.loads((tmp_path / f"{rank}.json").read_text())
        assert answers["replicas 5"] == [expected, 5]
        assert answers["replicas 1"] == [expected[:1], 1]
        assert answers["sharded"] == [expected, 5]
