"""One BOS, one end token, loss on the response only, and everything truncated or dropped is counted."""

from __future__ import annotations

import pytest
from conftest import make_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from multilora.data.collate import Collator, labelled
from multilora.data.render import Renderer
from multilora.data.tokenize import TokenizeOptions, fit, tokenize_task
from multilora.errors import DataError
from multilora.example import free_example, to_dataset

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_tokenizer():
    tokenizer = make_tokenizer(pad_token="<pad>", bos_token="<s>", eos_token="<|im_end|>", unk_token="<|im_start|>")
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.mark.parametrize("make", [make_tokenizer, chat_tokenizer])
def test_one_bos_one_end_token_and_the_text_between_them(make):
    tokenizer = make()
    renderer = Renderer(tokenizer)
    task = tokenize_task("t", to_dataset([free_example("what?", "four five")]), renderer, TokenizeOptions(200))
    row = task.dataset[0]
    ids, (start, end) = row["input_ids"], row["spans"]
    assert end == len(ids) == row["length"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[-1] == tokenizer.eos_token_id
    assert ids[start:].count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids[start:-1]) == "four five"
    assert "what?" in tokenizer.decode(ids[:start])


def test_a_template_that_writes_bos_gets_no_second_bos():
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}" + CHATML
    ids = Renderer(tokenizer).prefix_ids("what?")
    assert ids.count(tokenizer.bos_token_id) == 1


def test_generation_starts_where_training_does(tokenizer):
    renderer = Renderer(tokenizer)
    row = tokenize_task("t", to_dataset([free_example("a b", "c")]), renderer, TokenizeOptions(200)).dataset[0]
    assert row["input_ids"][: row["spans"][0]] == renderer.prefix_ids("a b")


def test_only_the_response_is_trained_on(tokenizer):
    row = tokenize_task(
        "t", to_dataset([free_example("a b", "c d")]), Renderer(tokenizer), TokenizeOptions(200)
    ).dataset[0]
    item = labelled(row, task=5)
    start = row["spans"][0]
    assert item["labels"][:start] == [-100] * start
    assert item["labels"][start:] == item["input_ids"][start:]
    assert item["task_ids"] == [5] * len(item["input_ids"])


@given(
    prefix=st.lists(st.integers(3, 9), min_size=1, max_size=30), response=st.integers(1, 20), limit=st.integers(8, 40)
)
def test_a_long_prompt_loses_its_start_and_keeps_bos(prefix, response, limit):
    ids = [1, *prefix]
    fitted = fit(ids, [7] * response, limit, bos=1)
    if fitted is None:
        assert response + 2 > limit
        return
    assert len(fitted) == min(len(ids), limit - response)
    assert fitted[0] == 1
    assert fitted[1:] == ids[len(ids) - len(fitted) + 1 :]


def test_truncated_and_dropped_are_counted(tokenizer):
    examples = [free_example("word " * 100, "c"), free_example("a", "one two three " * 40), free_example("a", "b")]
    task = tokenize_task("t", to_dataset(examples), Renderer(tokenizer), TokenizeOptions(64))
    assert (task.truncated, task.dropped, len(task)) == (1, 1, 2)
    assert max(len(ids) for ids in task.dataset["input_ids"]) == 64
    assert task.dataset["example"] == [0, 2]


def test_an_empty_response_is_rejected(tokenizer):
    with pytest.raises(DataError, match="example 1: the response is empty"):
        tokenize_task(
            "t", to_dataset([free_example("a", "b"), free_example("a", " ")]), Renderer(tokenizer), TokenizeOptions(64)
        )


def test_a_task_without_a_fitting_example_is_rejected(tokenizer):
    with pytest.raises(DataError, match="all 1 are longer than max_length 8"):
        tokenize_task(
            "t", to_dataset([free_example("a", "one two three " * 9)]), Renderer(tokenizer), TokenizeOptions(8)
        )


def test_a_tokenizer_without_eos_is_rejected():
    with pytest.raises(DataError, match="no eos_token"):
        Renderer(make_tokenizer(pad_token="<pad>", bos_token="<s>"))


def test_collator_pads_on_the_right():
    batch = Collator(pad_token_id=0)(
        [
            {"input_ids": [1, 5, 6], "labels": [-100, 5, 6], "task_ids": [1, 1, 1]},
            {"input_ids": [1, 7], "labels": [-100, 7], "task_ids": [2, 2]},
        ]
    )
    assert batch["input_ids"].tolist() == [[1, 5, 6], [1, 7, 0]]
    assert batch["labels"].tolist() == [[-100, 5, 6], [-100, 7, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["task_ids"].tolist() == [[1, 1, 1], [2, 2, 0]]
