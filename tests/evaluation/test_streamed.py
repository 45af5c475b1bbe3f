"""Text that is passed on while it is generated, and the penalty of repetitions."""

from __future__ import annotations

import pytest
import torch
from generation_models import LIMIT, TOKENIZER, model_of, prompt_of, run
from hypothesis import given, settings
from hypothesis import strategies as st

from multilora.errors import InputError

PROMPTS = [prompt_of(length, length) for length in (4, 19, 7, 11, 2)]
TEXTS = [result.text for result in run("llama", PROMPTS)]


def streamed(**options):
    parts = {index: [] for index in range(len(PROMPTS))}
    results = run("llama", PROMPTS, on_text=lambda index, *part: parts[index].append(part), **options)
    return results, parts


@settings(max_examples=25, deadline=None)
@given(
    ends=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30), st.integers(1, 4)), max_size=2),
    batch_tokens=st.sampled_from([1, 60, None]),
)
def test_the_parts_are_the_text(ends, batch_tokens):
    stops = [stop for index, start, size in ends if (stop := TEXTS[index][start : start + size]) and "�" not in stop]
    results, parts = streamed(stop_strings=stops, batch_tokens=batch_tokens)
    assert results == run("llama", PROMPTS, stop_strings=stops)
    for index, result in enumerate(results):
        assert "".join(text for text, _ in parts[index]) == result.text
        assert [last for _, last in parts[index]] == [False] * (len(parts[index]) - 1) + [True]


def test_text_arrives_before_the_end():
    _, parts = streamed()
    assert max(map(len, parts.values())) > 3


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_the_penalty_is_that_of_transformers(name):
    for prompt in PROMPTS:
        expected = model_of(name).generate(
            torch.tensor([prompt]),
            max_new_tokens=LIMIT,
            do_sample=False,
            repetition_penalty=1.7,
            eos_token_id=2,
            pad_token_id=0,
        )[0, len(prompt) :]
        (result,) = run(name, [prompt], repetition_penalty=1.7)
        assert result.text == TOKENIZER.decode(expected, skip_special_tokens=True)
    assert run(name, PROMPTS, repetition_penalty=1.7) != run(name, PROMPTS)


def test_a_penalty_of_zero_is_refused():
    with pytest.raises(InputError, match="repetition_penalty is 0; use 1"):
        run("llama", PROMPTS, repetition_penalty=0)
