"""A row ends at the first token with which its decoded text contains a stop string."""

from __future__ import annotations

import pytest
from conftest import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from multilora.evaluation.generation.stops import Row, Stops

PROMPT = [1, 5, 7]


def make_byte_fallback():
    """Words with a mark for spaces, as in LLaMA and Gemma; other characters are bytes; the first space is stripped."""
    words = ["<pad>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += [
        *"abcdeé.:!?\n",
        *("▁", "▁▁", "▁a", "▁b", "▁yes", "yes", "▁no", "no", "Question", "▁Question", "\n\n", "ion:", "▁.", "n't"),
    ]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


TOKENIZERS = {"bytes": make_tokenizer(), "byte fallback": make_byte_fallback()}


def first_stop(tokenizer, ids, stops):
    """Number of tokens up to the first one with a stop string, and the text before the string; else None."""
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count], skip_special_tokens=True)
        starts = [text.find(stop) for stop in stops if stop in text]
        if starts:
            return count, text[: min(starts)]
    return None


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_equals_decoding_everything_at_every_step(name, data):
    tokenizer = TOKENIZERS[name]
    # Bytes of characters with several bytes, special tokens, and all others.
    character = st.sampled_from(["é", "日", "🙂", "yes", "\n"]).map(
        lambda text: tokenizer.encode(text, add_special_tokens=False)
    )
    anything = st.integers(0, len(tokenizer) - 1).map(lambda token: [token])
    ids = [token for part in data.draw(st.lists(character | anything, min_size=1, max_size=40)) for token in part]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    starts = data.draw(st.lists(st.integers(0, max(len(text) - 1, 0)), max_size=2))
    pieces = [text[start : start + data.draw(st.integers(1, 6))] for start in starts]
    stops = [piece for piece in pieces if piece and "�" not in piece] + ["yes!"]
    expected = first_stop(tokenizer, ids, stops)

    row = Row(0, list(PROMPT), len(PROMPT), len(ids))
    decider = Stops(tokenizer, [], stops)
    count = next(count for count, token in enumerate(ids, start=1) if decider.add(row, token))
    result = row.result
    assert result is not None
    assert result.tokens == count
    if expected is None:
        assert (count, result.text, result.finished) == (len(ids), text, False)
    else:
        assert (count, result.text, result.finished) == (*expected, True)


def test_few_tokens_are_decoded():
    """Only tokens that can complete a stop string cost a decoding of the row's end."""
    tokenizer = make_tokenizer()
    calls = 0
    decode = tokenizer.decode

    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        return decode(*args, **kwargs)

    tokenizer.decode = counted
    ids = tokenizer.encode("two three " * 50, add_special_tokens=False)
    row = Row(0, [1], 1, len(ids))
    decider = Stops(tokenizer, [2], ["yes", "\n"])
    for token in ids:
        decider.add(row, token)
    assert row.result is not None
    assert calls <= 2 * len(set(ids)) + 1
