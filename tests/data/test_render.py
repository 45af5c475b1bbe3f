"""Rendering prompts, responses and chats with several kinds of tokenizers."""

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
FORGETFUL = (  # writes <think> in the last turn only
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def unigram():
    """Like SentencePiece: spaces are part of the words, and every text starts with one."""
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
    """Remove spaces and case, which WordPiece does not preserve."""
    return "".join(text.lower().split())


@settings(max_examples=40, deadline=None)
@given(prompt=texts, response=texts, another=texts, template=st.sampled_from(sorted(PLAIN_TEMPLATES)))
@pytest.mark.parametrize("name", TOKENIZERS)
def test_one_bos_one_eos_and_the_response_before_eos(name, prompt, response, another, template):
    tokenizer = TOKENIZERS[name]
    renderer = Renderer(tokenizer, template)
    ((prefix, answer),) = renderer.example_pieces([prompt], [response])
    ids = prefix.ids + answer.ids
    assert (prefix.trained, answer.trained) == (False, True)
    assert ids.index(tokenizer.bos_token_id) == 0
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids.index(tokenizer.eos_token_id) == len(ids) - 1
    assert tokenizer.unk_token_id not in answer.ids
    # The prefix does not depend on the response, since generation starts from it.
    both = renderer.example_pieces([prompt, prompt], [response, another])
    assert both[0] == [prefix, answer]
    assert both[1][0] == prefix
    assert answer.ids == renderer.response_ids(response) + renderer.closing_ids()
    assert prefix.ids == renderer.prefix_ids(prompt)
    decoded = tokenizer.decode(answer.ids, skip_special_tokens=True)
    assert squeezed(decoded) == squeezed(response)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert squeezed(text) == squeezed(renderer.prefix_text(prompt) + response)
    if name != "wordpiece":  # no space is added or lost
        assert text.lstrip() == renderer.prefix_text(prompt) + renderer.head + response


def test_a_response_starts_with_a_space_only_if_the_template_has_one():
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


def test_a_chat_that_the_assistant_opens_starts_with_bos():
    tokenizer = make_tokenizer()
    messages = [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "no"}]
    messages.append({"role": "assistant", "content": "five"})
    for pieces in (Renderer(tokenizer).chat_pieces(messages), Renderer(tokenizer).chat_pieces(messages[:1])):
        assert pieces[0].ids[0] == tokenizer.bos_token_id
        assert sum(piece.ids.count(tokenizer.bos_token_id) for piece in pieces) == 1


turns = st.lists(st.tuples(texts, texts), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(pairs=turns, system=st.booleans())
@pytest.mark.parametrize("template", [CHATML, INST, None], ids=["chatml", "inst", "plain"])
def test_only_the_assistant_turns_of_a_chat_are_trained_on(template, pairs, system):
    tokenizer = chat_tokenizer(template)
    renderer = Renderer(tokenizer)
    messages = [{"role": "system", "content": "the question"}] if system and template is not INST else []
    for question, answer in pairs:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    pieces = renderer.chat_pieces(messages)
    ids = [token for piece in pieces for token in piece.ids]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id
    trained = [tokenizer.decode(piece.ids) for piece in pieces if piece.trained]
    assert trained == [renderer.head + answer + renderer.closing for _, answer in pairs]
    text = tokenizer.decode(ids)
    if template is not None:
        chat = tokenizer.apply_chat_template(messages, tokenize=False)
        assert ("" if template is INST else "<s>") + chat.rstrip() == text
    # A chat of one turn equals a prompt with its response.
    single = renderer.chat_pieces([{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}])
    assert single == renderer.example_pieces(["one"], ["two"])[0]


def test_a_template_that_changes_earlier_turns_is_rejected():
    renderer = Renderer(chat_tokenizer(FORGETFUL))
    one = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert [piece.trained for piece in renderer.chat_pieces(one)] == [False, True]
    with pytest.raises(DataError, match=r"turn 1 \(assistant\) differently once other turns follow.*split the chat"):
        renderer.chat_pieces(one * 2)


def test_tools_are_passed_to_the_template_unchanged():
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
    trained = [tokenizer.decode(piece.ids) for piece in pieces if piece.trained]
    assert json.loads(trained[0].removesuffix("<|im_end|>")) == call
    assert trained[1] == "three<|im_end|>"
    assert '"parameters"' in tokenizer.decode(pieces[0].ids)
    with pytest.raises(DataError, match=r"turn 0 \(user\) needs the tokenizer's chat template"):
        Renderer(tokenizer, "instruction").chat_pieces(messages, tools)


def test_a_missing_chat_template_is_an_error():
    with pytest.raises(DataError, match=r"data.template is `chat`, and the tokenizer has no chat template"):
        Renderer(make_tokenizer(), "chat")


def task_of(examples, **options):
    return tokenize_task("t", to_dataset(examples), Renderer(make_tokenizer()), TokenizeOptions(**options))


def test_loss_on_all_trains_all_but_the_first_token():
    task = task_of([free_example("a b", "c")], max_length=200, loss_on="all")
    row = task.dataset[0]
    assert row["spans"] == [1, row["length"]]
    assert row["trained_tokens"] == row["length"] - 1


def test_overlong_examples_are_handled_as_configured():
    examples = [free_example("word " * 100, "c"), free_example("a", "one two three " * 40), free_example("a", "b")]
    kept = task_of(examples, max_length=64)
    assert (kept.truncated, kept.cut, kept.dropped) == (1, 0, 1)
    strict = task_of(examples, max_length=64, overlong="drop")
    assert (strict.truncated, strict.cut, strict.dropped) == (0, 0, 2)
    cut = task_of(examples, max_length=64, cut_responses=True)
    assert (cut.truncated, cut.cut, cut.dropped) == (1, 1, 0)
    lengths = cut.column("length").tolist()
    assert lengths[:2] == [64, 64]
    assert cut.dataset["spans"][1][1] == 64  # the response has lost its end


def test_the_second_call_reads_the_tokens_from_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    examples = to_dataset([free_example("a", "b"), free_example("c", "d")])
    renderer = Renderer(make_tokenizer())
    first = tokenize_task("t", examples, renderer, TokenizeOptions(64))
    monkeypatch.setattr(Renderer, "example_pieces", None)  # fails if called
    second = tokenize_task("t", examples, renderer, TokenizeOptions(64))
    assert second.dataset["input_ids"] == first.dataset["input_ids"]
    with pytest.raises(TypeError):
        tokenize_task("t", examples, renderer, TokenizeOptions(63))
