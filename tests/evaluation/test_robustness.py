"""Evaluation with a tokenizer that merges prompt and response, and with a model that has no cache."""

from __future__ import annotations

import pytest
import torch
from conftest import make_llama
from generation_models import LIMIT, prompt_of
from test_likelihoods import assert_equal, expected, requests_of
from tokenizers import Tokenizer, decoders, models, trainers
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel, PreTrainedTokenizerFast

from multilora.data.render import Renderer
from multilora.evaluation.evaluation_set import EvaluationSet
from multilora.evaluation.generation.generate import generate
from multilora.evaluation.questions import questions_of
from multilora.evaluation.scoring.likelihoods import score_requests
from multilora.example import choice_example
from multilora.recipe import TaskSection
from multilora.tasks.make import make_task

BOOLQ = make_task(TaskSection(name="superglue/boolq"))


def merging_tokenizer():
    """BPE that does not stop at spaces or line breaks, so tokens reach from the prompt into the response."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.Fuse()
    text = [
        "### Instruction:\nis it?\n\n### Response:\nyes",
        "### Instruction:\nis it?\n\n### Response:\nno, it is not",
    ]
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=list(special.values()), show_progress=False)
    tokenizer.train_from_iterator(text * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def test_a_tokenizer_that_merges_prompt_and_response():
    """Choices, references and generated text all follow the tokens that training and generation have as the prompt."""
    tokenizer = merging_tokenizer()
    renderer = Renderer(tokenizer, "instruction")
    example = choice_example("is it?", ["yes", "no"], 1)
    prefix = renderer.prefix_ids("is it?")
    whole = tokenizer.encode(tokenizer.decode(prefix, skip_special_tokens=True) + "yes", add_special_tokens=False)
    assert prefix[1:] != whole[: len(prefix) - 1]  # in one piece, the text has other tokens
    (question,) = questions_of(renderer, EvaluationSet(BOOLQ, [example]), 100, answers=True)
    ((trained, _),) = renderer.example_pieces(["is it?"], ["no"])
    assert question.reference[0].context == trained.ids == prefix
    assert [request.context for request in question.choices] == [prefix, prefix]
    texts = [tokenizer.decode(request.continuation) for request in question.choices]
    assert texts == ["yes", "no"]
    model = make_llama()
    assert_equal(score_requests(model, question.choices), expected(model, question.choices))


@pytest.fixture
def without_cache():
    """The first GPT returns no keys and values."""
    torch.manual_seed(0)
    config = OpenAIGPTConfig(vocab_size=320, n_positions=256, n_embd=32, n_layer=2, n_head=4)
    return OpenAIGPTLMHeadModel(config).eval()


def test_a_model_without_a_cache(without_cache):
    requests = requests_of()
    assert_equal(score_requests(without_cache, requests), expected(without_cache, requests))


def test_a_model_without_a_cache_generates(without_cache):
    prompts = [prompt_of(length, length) for length in (5, 30, 11)]
    tokenizer = merging_tokenizer()
    results = generate(
        without_cache, tokenizer, prompts, stop_ids=[2], max_new_tokens=LIMIT, advance=lambda *_, **__: None
    )
    for prompt, result in zip(prompts, results, strict=True):
        tokens = without_cache.generate(torch.tensor([prompt]), max_new_tokens=LIMIT, do_sample=False, eos_token_id=2)
        assert result.text == tokenizer.decode(tokens[0, len(prompt) :], skip_special_tokens=True)
