"""Scores equal those of a simple implementation: one sequence at a time, without padding."""

from __future__ import annotations

import json
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from conftest import make_llama, write_jsonl

from multilora.data.render import Renderer
from multilora.errors import DataError
from multilora.evaluation.choices import is_near_tie, most_likely
from multilora.evaluation.evaluation_set import EvaluationSet
from multilora.evaluation.generation.generate import generate
from multilora.evaluation.score import evaluation_sets, score_tasks
from multilora.example import chat_example, choice_example, free_example, to_dataset
from multilora.recipe import EvaluationSection, Recipe, TaskSection
from multilora.tasks.base import Task


def ignore(*_, **__):
    pass


class FixedTask(Task):
    def __init__(self, name, kind, examples, **section):
        self.kind = kind
        super().__init__(TaskSection(name=name, **section))
        self.examples = examples

    def load(self, split):
        return to_dataset(self.examples)


def scored(model, renderer, task, examples, section, **options):
    """The score of one task."""
    return score_tasks(model, renderer, {"t": EvaluationSet(task, examples)}, section, "scoring", **options)["t"]


def test_scores_of_a_choice_task(tokenizer):
    model, renderer = make_llama(), Renderer(tokenizer)
    examples = [choice_example(f"question {i}", ["yes", "no", "five"], i % 3) for i in range(12)]
    task = FixedTask("t", "choice", examples)
    section = EvaluationSection(batch_tokens=50)
    score = scored(model, renderer, task, examples, section, length=128)
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
    score = scored(make_llama(), Renderer(tokenizer), task, examples, section, length=60)
    assert (score.n, score.truncated, score.dropped) == (2, 1, 1)
    with pytest.raises(DataError, match="none of the 1 evaluation examples"):
        scored(make_llama(), Renderer(tokenizer), task, examples[2:], section, length=60)


def test_exact_match_compares_final_answers(tokenizer):
    model, renderer = make_llama(), Renderer(tokenizer)
    prompt = "say"
    (generation,) = generate(
        model, tokenizer, [renderer.prefix_ids(prompt)], stop_ids=[2], max_new_tokens=4, advance=ignore
    )
    answer = generation.text
    assert answer.strip()
    examples = [free_example(prompt, "x", answer.strip()), free_example(prompt, "x", "something else")]
    task = FixedTask("t", "generate", examples)
    section = EvaluationSection(max_new_tokens=4)
    score = scored(model, renderer, task, examples, section, length=128)
    assert score.value == 0.5


def test_the_first_of_equal_choices_is_picked_and_near_ties_are_counted(tokenizer):
    assert most_likely([-2.0, -1.0, -1.0]) == 1
    assert is_near_tie([-1.0, -1.00001, -9.0], torch.float32)
    assert not is_near_tie([-1.0, -1.01, -9.0], torch.float32)
    assert is_near_tie([-1.0, -1.01, -9.0], torch.bfloat16)
    model = make_llama()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    examples = [choice_example(f"question {i}", ["yes", "no"], i % 2) for i in range(6)]
    task = FixedTask("t", "choice", examples)
    score = scored(model, Renderer(tokenizer), task, examples, EvaluationSection())
    assert (score.value, score.near_ties) == (0.5, 6)


def test_a_choice_that_begins_another_does_not_always_win(tokenizer):
    """Without its end token, the shorter choice could never be less likely."""
    examples = [choice_example("where", ["one", "one two"], 1)]
    model, renderer = make_llama(), Renderer(tokenizer)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    # All tokens are equally likely. With the end token counted, the shorter choice wins; without it, they would tie.
    task = FixedTask("t", "choice", examples)
    score = scored(model, renderer, task, examples, EvaluationSection(), length=128)
    assert (score.value, score.end_scored) == (0.0, 1)


def test_prompts_are_not_truncated_for_generation(tokenizer):
    """Prompt and response together are limited only by the model's positions, not by the training length."""
    model, renderer = make_llama(), Renderer(tokenizer)
    examples = [free_example("word " * 12, "x", "y")]
    task = FixedTask("t", "generate", examples)
    section = EvaluationSection(max_new_tokens=60)
    score = scored(model, renderer, task, examples, section)
    assert score.truncated == 0
    with pytest.raises(DataError, match="leaves no room"):
        scored(model, renderer, task, examples, EvaluationSection(max_new_tokens=256))


def test_a_generation_prompt_is_truncated_by_its_own_limit_once(tokenizer):
    """Not by the length of the reference, which the model must not be told."""
    model, renderer = make_llama(), Renderer(tokenizer)
    kept = []
    for response in ("x", "one two three " * 20):
        examples = [free_example("word " * 300, response, "y")]
        task = FixedTask("t", "generate", examples)
        section = EvaluationSection(max_new_tokens=8)
        score = scored(model, renderer, task, examples, section, keep=lambda task, answers: kept.append(answers))
        assert score.truncated == 1
    assert kept[0].questions[0].prompt == kept[1].questions[0].prompt
    assert len(kept[0].questions[0].prompt) == 256 - 8


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
    score = scored(model, renderer, task, [example], EvaluationSection(), length=128)
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
    short = scored(model, renderer, task, [example], EvaluationSection(), length=len(ids) - 1)
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
        examples = evaluation_sets(recipe, limit)["superglue/multirc"].examples
        assert len(examples) == kept
        assert all(count == 3 for count in Counter(example["group"] for example in examples).values())


@pytest.mark.parametrize("kind", ["sum", "per_character", "per_byte", "per_token", "mutual_information"])
def test_every_choice_score(kind, tokenizer):
    """Against one sequence at a time; the choices differ in characters, bytes and tokens."""
    model, renderer = make_llama(), Renderer(tokenizer, "question")
    choices = ["yes", "ééé", "one two three four five", "the answer is no"]
    examples = [choice_example(f"question {i}", choices, i % 4) for i in range(12)]
    task = FixedTask("t", "choice", examples, choice_score=kind)
    kept = []
    score = scored(model, renderer, task, examples, EvaluationSection(), keep=lambda _, answers: kept.append(answers))

    def log_probability(prompt, text):
        prefix, ids = renderer.prefix_ids(prompt), renderer.response_ids(text)
        with torch.no_grad():
            logits = model(torch.tensor([prefix + ids])).logits[0].log_softmax(-1)
        return sum(float(logits[len(prefix) + i - 1, token]) for i, token in enumerate(ids))

    size = {"per_character": len, "per_byte": lambda text: len(text.encode())}
    size["per_token"] = lambda text: len(renderer.response_ids(text))
    expected = []
    for example in examples:
        values = [log_probability(example["prompt"], text) / size.get(kind, lambda _: 1)(text) for text in choices]
        if kind == "mutual_information":
            values = [value - log_probability("", text) for value, text in zip(values, choices, strict=True)]
        expected.append(choices[max(range(4), key=values.__getitem__)])
    assert kept[0].predictions == expected
    assert score.protocol == ("ours, 0-shot" if kind == "sum" else f"ours, 0-shot, choices by {kind}")


def test_a_choice_score_needs_choices():
    with pytest.raises(DataError, match="choice_score is per_byte, and this task has no choices; leave it out"):
        FixedTask("t", "generate", [], choice_score="per_byte")


def test_end_tokens_count_only_where_a_choice_could_not_win_without(tokenizer):
    examples = [choice_example("where", ["one", "one two"], 1)]
    for kind, count in (("sum", 1), ("per_token", 0), ("mutual_information", 0)):
        task = FixedTask("t", "choice", examples, choice_score=kind)
        assert scored(make_llama(), Renderer(tokenizer), task, examples, EvaluationSection()).end_scored == count


def test_near_ties_of_normalised_scores():
    """Rounding is divided by the length too."""
    assert is_near_tie([-1.0, -1.00005], torch.float32)
    assert not is_near_tie([-1.0, -1.00005], torch.float32, [10, 10])
    assert is_near_tie([-1.0, -1.000005], torch.float32, [10, 10])
