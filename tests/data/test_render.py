"""Prompts, responses and chats as tokens, for several kinds of tokenizers."""

from __future__ import annotations

import json

import pytest
from conftest import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from multilora.data.render import PLAIN_TEMPLATES, Renderer
from multilora.data.tokenize import TokenizeOptions, tokenize_task
from multilora.errors import DataError
from multilora.example import free_example, to_dataset

SPECIAL = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
TEXT = [
    "### Instruction: Question: Answer: ### Response: the answer to the question is yes or no and one two three",
    "four five six seven eight nine zero apple banana? what! is it, then. Yes No maybe\nnew line",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
FORGETFUL = (  # shows what was thought in the last turn only
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def unigram():
    """SentencePiece-like: spaces are part of the words, and a text begins with one."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    letters = sorted(set("".join(TEXT)))
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=list(SPECIAL.values()),
        unk_token="<unk>",
        initial_alphabet=letters,
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=list(SPECIAL.values()), show_progress=False)
    tokenizer.train_from_iterator(TEXT * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def characters():
    alphabet = [*SPECIAL.values(), *sorted(set("".join(TEXT)))]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(alphabet)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


MAKERS = {"byte-level BPE": make_tokenizer, "unigram": unigram, "wordpiece": wordpiece, "characters": characters}
TOKENIZERS = {name: make() for name, make in MAKERS.items()}
WORDS = ["yes", "no", "one", "two", "three", "the", "answer", "apple", "banana?", "is", "it,", "Yes", "then."]
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join)


def squeezed(text):
    """Without spaces and case, which WordPiece does not keep."""
    return "".join(text.lower().split())


@settings(max_examples=40, deadline=None)
@given(prompt=texts, response=texts, other=texts, template=st.sampled_from(sorted(PLAIN_TEMPLATES)))
@pytest.mark.parametrize("name", TOKENIZERS)
def test_one_beginning_one_end_and_the_response_in_between(name, prompt, response, other, template):
    tokenizer = TOKENIZERS[name]
    renderer = Renderer(tokenizer, template)
    ((prefix, said),) = renderer.example_pieces([prompt], [response])
    ids = prefix.ids + said.ids
    assert (prefix.trained, said.trained) == (False, True)
    assert ids.index(tokenizer.bos_token_id) == 0
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids.index(tokenizer.eos_token_id) == len(ids) - 1
    assert tokenizer.unk_token_id not in said.ids
    # The prompt is the same whatever follows it: generation starts from it.
    both = renderer.example_pieces([prompt, prompt], [response, other])
    assert both[0] == [prefix, said]
    assert both[1][0] == prefix
    assert said.ids == renderer.response_ids(response) + renderer.closing_ids()
    assert prefix.ids == renderer.prefix_ids(prompt)
    decoded = tokenizer.decode(said.ids, skip_special_tokens=True)
    assert squeezed(decoded) == squeezed(response)
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert squeezed(whole) == squeezed(renderer.prefix_text(prompt) + response)
    if name != "wordpiece":  # spaces are kept: none too many, none too few
        assert whole.lstrip() == renderer.prefix_text(prompt) + renderer.head + response


def test_a_response_begins_with_a_space_only_where_the_template_has_one():
    tokenizer = TOKENIZERS["unigram"]
    after_newline = Renderer(tokenizer, "instruction").response_ids("yes")
    after_colon = Renderer(tokenizer, "question").response_ids("yes")
    assert tokenizer.convert_ids_to_tokens(after_newline)[0][0] != "▁"
    assert tokenizer.convert_ids_to_tokens(after_colon)[0][0] == "▁"


def chat_tokenizer(template):
    tokenizer = make_tokenizer(
        pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<|im_start|>", sep_token="<|im_end|>"
    )
    tokenizer.chat_template = template
    return tokenizer


turns = st.lists(st.tuples(texts, texts), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(pairs=turns, system=st.booleans())
@pytest.mark.parametrize("template", [CHATML, INST, None], ids=["chatml", "inst", "plain"])
def test_of_a_chat_every_assistant_turn_is_trained_on_and_nothing_else(template, pairs, system):
    tokenizer = chat_tokenizer(template)
    renderer = Renderer(tokenizer)
    messages = [{"role": "system", "content": "the question"}] if system and template is not INST else []
    for asked, answered in pairs:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    pieces = renderer.chat_pieces(messages)
    ids = [token for piece in pieces for token in piece.ids]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id
    said = [tokenizer.decode(piece.ids) for piece in pieces if piece.trained]
    assert said == [renderer.head + answered + renderer.closing for _, answered in pairs]
    text = tokenizer.decode(ids)
    if template is not None:
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        assert ("" if template is INST else "<s>") + whole.rstrip() == text
    # A single turn is what a prompt and its response become.
    single = renderer.chat_pieces([{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}])
    assert single == renderer.example_pieces(["one"], ["two"])[0]


def test_a_template_that_changes_earlier_turns_is_refused():
    renderer = Renderer(chat_tokenizer(FORGETFUL))
    one = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert [piece.trained for piece in renderer.chat_pieces(one)] == [False, True]
    with pytest.raises(DataError, match=r"turn 1 \(assistant\) differently once other turns follow.*split the chat"):
        renderer.chat_pieces(one * 2)


def test_tools_reach_the_template_as_they_are():
    template = "{% if tools %}{{ tools | tojson }}{% endif %}" + CHATML.replace(
        "{{ m.content }}", "{{ m.content or '' }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}"
    )
    tokenizer = chat_tokenizer(template)
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"a": "int"}}}]
    call = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": None, "tool_calls": call},
        {"role": "tool", "content": "two"},
        {"role": "assistant", "content": "three"},
    ]
    pieces = Renderer(tokenizer).chat_pieces(messages, tools)
    said = [tokenizer.decode(piece.ids) for piece in pieces if piece.trained]
    assert json.loads(said[0].removesuffix("<|im_end|>")) == call
    assert said[1] == "three<|im_end|>"
    assert '"parameters"' in tokenizer.decode(pieces[0].ids)
    with pytest.raises(DataError, match=r"turn 0 \(user\) needs the tokenizer's chat template"):
        Renderer(tokenizer, "instruction").chat_pieces(messages, tools)


def test_a_template_that_was_asked_for_and_is_not_there():
    with pytest.raises(DataError, match=r"data.template is `chat`, and the tokenizer has no chat template"):
        Renderer(make_tokenizer(), "chat")


def task_of(examples, **options):
    return tokenize_task("t", to_dataset(examples), Renderer(make_tokenizer()), TokenizeOptions(**options))


def test_loss_on_everything_trains_all_but_the_first_token():
    task = task_of([free_example("a b", "c")], max_length=200, loss_on="all")
    row = task.dataset[0]
    assert row["spans"] == [1, row["length"]]
    assert row["trained_tokens"] == row["length"] - 1


def test_overlong_examples_as_chosen():
    examples = [free_example("word " * 100, "c"), free_example("a", "one two three " * 40), free_example("a", "b")]
    kept = task_of(examples, max_length=64)
    assert (kept.truncated, kept.cut, kept.dropped) == (1, 0, 1)
    strict = task_of(examples, max_length=64, overlong="drop")
    assert (strict.truncated, strict.cut, strict.dropped) == (0, 0, 2)
    cut = task_of(examples, max_length=64, cut_responses=True)
    assert (cut.truncated, cut.cut, cut.dropped) == (1, 1, 0)
    lengths = cut.column("length").tolist()
    assert lengths[:2] == [64, 64]
    assert cut.dataset["spans"][1][1] == 64  # it has lost its end


def test_tokens_come_from_the_cache_the_second_time(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    examples = to_dataset([free_example("a", "b"), free_example("c", "d")])
    renderer = Renderer(make_tokenizer())
    first = tokenize_task("t", examples, renderer, TokenizeOptions(64))
    monkeypatch.setattr(Renderer, "example_pieces", None)  # would fail if it were called
    again = tokenize_task("t", examples, renderer, TokenizeOptions(64))
    assert again.dataset["input_ids"] == first.dataset["input_ids"]
    with pytest.raises(TypeError):
        tokenize_task("t", examples, renderer, TokenizeOptions(63))
