"""Scores equal those of a simple implementation: one sequence at a time, without padding."""

from __future__ import annotations

import json
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from conftest import make_gpt2, make_llama, write_jsonl

from multilora.data.render import Renderer
from multilora.errors import DataError
from multilora.evaluation.choices import most_likely_choice
from multilora.evaluation.score import evaluation_sets, score_tasks
from multilora.evaluation.scoring import generate, log_likelihoods
from multilora.example import chat_example, choice_example, free_example, to_dataset
from multilora.recipe import EvaluationSection, Recipe, TaskSection
from multilora.tasks.base import Task


def ignore(*_, **__):
    pass


SEQUENCES = [([1, 5, 6, 7], [8, 2]), ([1, 9], [10, 11, 12, 2]), ([1, 30, 31, 32, 33, 34, 35], [40]), ([1], [5, 2])]


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_log_likelihoods_equal_those_of_single_sequences(make, batch_size):
    model = make()
    likelihoods = log_likelihoods(model, SEQUENCES, pad=0, batch_size=batch_size, advance=ignore)
    for (prefix, continuation), actual in zip(SEQUENCES, likelihoods, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prefix + continuation])).logits[0].log_softmax(-1)
        expected = [logits[len(prefix) + i - 1, token] for i, token in enumerate(continuation)]
        torch.testing.assert_close(actual, torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_generated_text_does_not_depend_on_the_batch_size(tokenizer):
    model = make_llama()
    prefixes = [[1, 5, 6, 7, 8, 9], [1, 20], [1, 40, 41]]
    options = {"stop_ids": [2], "max_new_tokens": 6, "advance": ignore}
    batched = generate(model, tokenizer, prefixes, batch_size=3, **options)
    assert batched == generate(model, tokenizer, prefixes, batch_size=1, **options)
    for prefix, text in zip(prefixes, batched, strict=True):
        ids = list(prefix)
        with torch.no_grad():
            for _ in range(6):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
                if ids[-1] == 2:
                    break
        generated = [token for token in ids[len(prefix) :] if token != 2]
        assert text == tokenizer.decode(generated, skip_special_tokens=True)


def test_generation_stops_at_the_stop_token(tokenizer):
    model = make_llama()
    (unstopped,) = generate(model, tokenizer, [[1, 5, 6]], batch_size=1, stop_ids=[2], max_new_tokens=5, advance=ignore)
    with torch.no_grad():
        first = int(model(torch.tensor([[1, 5, 6]])).logits[0, -1].argmax())
    (stopped,) = generate(
        model, tokenizer, [[1, 5, 6]], batch_size=1, stop_ids=[first], max_new_tokens=5, advance=ignore
    )
    assert unstopped != ""
    assert stopped == ""


class FixedTask(Task):
    def __init__(self, name, kind, examples):
        self.kind = kind
        super().__init__(TaskSection(name=name))
        self.examples = examples

    def load(self, split):
        return to_dataset(self.examples)


def test_scores_of_a_choice_task(tokenizer):
    model, renderer = make_llama(), Renderer(tokenizer)
    examples = [choice_example(f"question {i}", ["yes", "no", "five"], i % 3) for i in range(12)]
    task = FixedTask("t", "choice", examples)
    section = EvaluationSection(batch_size=5)
    score = score_tasks(model, renderer, {"t": (task, examples)}, section, 128, "scoring")["t"]
    correct, loss, tokens = [], 0.0, 0
    for example in examples:
        prefix = renderer.prefix_ids(example["prompt"])
        sums = []
        for choice in example["choices"]:
            ids = renderer.response_ids(choice)
            with torch.no_grad():
                logits = model(torch.tensor([prefix + ids + [2]])).logits[0].log_softmax(-1)
            likelihoods = [float(logits[len(prefix) + i - 1, token]) for i, token in enumerate([*ids, 2])]
            sums.append(sum(likelihoods[:-1]))
            if choice == example["response"]:
                loss, tokens = loss - sum(likelihoods), tokens + len(likelihoods)
        correct.append(max(range(3), key=sums.__getitem__) == example["correct"][0])
    p = sum(correct) / 12
    assert (score.metric, score.value, score.metrics) == ("accuracy", p, {"accuracy": p})
    assert score.stderr == pytest.approx(math.sqrt(p * (1 - p) / 11))
    assert score.loss == pytest.approx(loss / tokens, rel=1e-4)
    assert (score.n, score.truncated, score.dropped) == (12, 0, 0)


def test_truncated_and_dropped_are_counted(tokenizer):
    long = "one two three " * 30
    examples = [free_example("say", "x"), free_example(long, "x"), free_example("say", long)]
    task = FixedTask("t", "loss", examples)
    section = EvaluationSection()
    score = score_tasks(make_llama(), Renderer(tokenizer), {"t": (task, examples)}, section, 60, "scoring")["t"]
    assert (score.n, score.truncated, score.dropped) == (2, 1, 1)
    with pytest.raises(DataError, match="none of the 1 evaluation examples"):
        score_tasks(make_llama(), Renderer(tokenizer), {"t": (task, examples[2:])}, section, 60, "scoring")


def test_exact_match_compares_final_answers(tokenizer):
    model, renderer = make_llama(), Renderer(tokenizer)
    prompt = "say"
    (answer,) = generate(
        model, tokenizer, [renderer.prefix_ids(prompt)], batch_size=1, stop_ids=[2], max_new_tokens=4, advance=ignore
    )
    assert answer.strip()
    examples = [free_example(prompt, "x", answer.strip()), free_example(prompt, "x", "something else")]
    task = FixedTask("t", "generate", examples)
    section = EvaluationSection(max_new_tokens=4)
    score = score_tasks(model, renderer, {"t": (task, examples)}, section, 128, "scoring")["t"]
    assert score.value == 0.5


def test_a_tie_is_incorrect():
    """A model that rates all choices equally must not be correct because of their order."""
    example = choice_example("q", ["a", "b"], 1)
    tied = [torch.tensor([-1.0, -5.0]), torch.tensor([-1.0, -0.1])]
    assert most_likely_choice(example, tied, closing=1) == "a"
    assert most_likely_choice(example, [torch.tensor([-0.5, -5.0]), tied[1]], closing=1) == "b"
    both_correct = choice_example("q", ["a", "b"], 1, also_correct=[0])
    assert most_likely_choice(both_correct, tied, closing=1) == "b"


def test_a_choice_that_begins_another_does_not_always_win(tokenizer):
    """Without its end token, the shorter choice could never be less likely."""
    examples = [choice_example("where", ["one", "one two"], 1)]
    model, renderer = make_llama(), Renderer(tokenizer)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    # All tokens are equally likely. With the end token counted, the shorter choice wins; without it, they would tie.
    task = FixedTask("t", "choice", examples)
    score = score_tasks(model, renderer, {"t": (task, examples)}, EvaluationSection(), 128, "scoring")["t"]
    assert score.value == 0.0
    likelihoods = [torch.tensor([-3.0, -0.1, -0.1]), torch.tensor([-3.0, -9.0])]
    assert most_likely_choice(examples[0], likelihoods, closing=0) == "one two"


def test_prompts_are_not_truncated_for_generation(tokenizer):
    """Prompt and response together are limited only by the model's positions, not by the training length."""
    model, renderer = make_llama(), Renderer(tokenizer)
    examples = [free_example("word " * 12, "x", "y")]
    task = FixedTask("t", "generate", examples)
    section = EvaluationSection(max_new_tokens=60)
    score = score_tasks(model, renderer, {"t": (task, examples)}, section, 100, "scoring")["t"]
    assert score.truncated == 0
    with pytest.raises(DataError, match="leaves no room"):
        score_tasks(model, renderer, {"t": (task, examples)}, EvaluationSection(max_new_tokens=256), 100, "scoring")


def test_every_assistant_turn_of_a_chat_is_scored(tokenizer):
    """Each turn is scored given all turns before it, as if it were scored alone."""

    class ChatRenderer(Renderer):
        def chat_pieces(self, messages, tools):
            return [
                SimpleNamespace(ids=self.response_ids(message["content"]), trained=message["role"] == "assistant")
                for message in messages
            ]

    texts = [("user", "one two"), ("assistant", "three"), ("user", "four"), ("assistant", "five five")]
    chat = [{"role": role, "content": text} for role, text in texts]
    example = chat_example(json.dumps(chat))
    model, renderer = make_llama(), ChatRenderer(tokenizer)
    task = FixedTask("t", "loss", [example])
    score = score_tasks(model, renderer, {"t": (task, [example])}, EvaluationSection(), 128, "scoring")["t"]
    assert (score.metric, score.value, score.stderr, score.metrics, score.n) == ("none", None, None, {}, 1)
    ids, loss, tokens = [], 0.0, 0
    for role, text in texts:
        turn_ids = renderer.response_ids(text)
        if role == "assistant":
            with torch.no_grad():
                logits = model(torch.tensor([ids + turn_ids])).logits[0].log_softmax(-1)
            loss -= sum(float(logits[len(ids) + i - 1, token]) for i, token in enumerate(turn_ids))
            tokens += len(turn_ids)
        ids += turn_ids
    assert score.loss == pytest.approx(loss / tokens, rel=1e-4)
    short = score_tasks(model, renderer, {"t": (task, [example])}, EvaluationSection(), len(ids) - 1, "scoring")["t"]
    assert (short.n, short.truncated) == (1, 1)


def test_a_subset_keeps_complete_groups(tmp_path):
    """MultiRC is scored per question, and a question with fewer candidates would be easier."""
    questions = [
        {"question": f"q{i}?", "idx": i, "answers": [{"text": f"a{j}", "label": j % 2} for j in range(3)]}
        for i in range(8)
    ]
    record = {"idx": 0, "passage": {"text": "p", "questions": questions}}
    for split in ("train", "val"):
        write_jsonl(tmp_path / f"{split}.jsonl", [record])
    recipe = Recipe.load({"model": "nano", "tasks": [{"name": "superglue/multirc", "path": str(tmp_path)}]})
    for limit, kept in ((24, 24), (10, 9), (2, 3)):
        _, examples = evaluation_sets(recipe, limit)["superglue/multirc"]
        assert len(examples) == kept
        assert all(count == 3 for count in Counter(example["group"] for example in examples).values())
