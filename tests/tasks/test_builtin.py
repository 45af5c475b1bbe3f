"""Every built-in task on a hand-written record of its official file and of the hub's form."""

from __future__ import annotations

import json

import pytest
from conftest import write_jsonl

from multilora.errors import DataError
from multilora.recipe import TaskSection
from multilora.tasks import BUILT_IN, make_task
from multilora.tasks.superglue import RENDERERS

PASSAGE = "Ann met Bob in Rome.\n@highlight\nAnn likes Rome"
# task -> (official record, hub record, label as the response text)
SUPERGLUE = {
    "boolq": (
        {"question": "is ice cold", "passage": "Ice is cold.", "label": True},
        {"question": "is ice cold", "passage": "Ice is cold.", "label": 1},
        ["yes"],
    ),
    "cb": (
        {"premise": "He left.", "hypothesis": "he stayed", "label": "contradiction"},
        {"premise": "He left.", "hypothesis": "he stayed", "label": 1},
        ["false"],
    ),
    "copa": (
        {
            "premise": "It rained.",
            "choice1": "The sun came.",
            "choice2": "I got wet.",
            "question": "effect",
            "label": 1,
        },
        {
            "premise": "It rained.",
            "choice1": "The sun came.",
            "choice2": "I got wet.",
            "question": "effect",
            "label": 1,
        },
        ["I got wet."],
    ),
    "multirc": (
        {
            "passage": {
                "text": "Ann ate.",
                "questions": [
                    {"question": "Who ate?", "answers": [{"text": "Ann", "label": 1}, {"text": "Bob", "label": 0}]}
                ],
            }
        },
        {"paragraph": "Ann ate.", "question": "Who ate?", "answer": "Ann", "label": 1},
        ["yes", "no"],
    ),
    "record": (
        {
            "passage": {
                "text": PASSAGE,
                "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 10}, {"start": 15, "end": 18}],
            },
            "qas": [{"query": "@placeholder is in Italy", "answers": [{"text": "Rome", "start": 15, "end": 18}]}],
        },
        {
            "passage": PASSAGE,
            "query": "@placeholder is in Italy",
            "entities": ["Ann", "Bob", "Rome"],
            "answers": ["Rome"],
        },
        ["Rome"],
    ),
    "rte": (
        {"premise": "He left.", "hypothesis": "He went.", "label": "not_entailment"},
        {"premise": "He left.", "hypothesis": "He went.", "label": 1},
        ["no"],
    ),
    "wic": (
        {"word": "bank", "sentence1": "The bank lends.", "sentence2": "The river bank.", "label": False},
        {"word": "bank", "sentence1": "The bank lends.", "sentence2": "The river bank.", "label": 0},
        ["no"],
    ),
    "wsc": (
        {"text": "Mark told Pete. He lied.", "target": {"span1_text": "Mark", "span2_text": "He"}, "label": True},
        {"text": "Mark told Pete. He lied.", "span1_text": "Mark", "span2_text": "He", "label": 1},
        ["yes"],
    ),
}


@pytest.mark.parametrize("name", RENDERERS)
def test_superglue_official_and_hub_records_agree(name):
    official, hub, responses = SUPERGLUE[name]
    ours = list(RENDERERS[name](official, "here"))
    assert [example["response"] for example in ours] == responses
    assert next(RENDERERS[name](hub, "here")) == ours[0]
    for example in ours:
        assert example["response"] == example["choices"][example["labels"][0]]


def test_copa_asks_for_the_cause_when_asked():
    record = {**SUPERGLUE["copa"][0], "question": "cause"}
    (example,) = RENDERERS["copa"](record, "here")
    assert "cause" in example["prompt"]
    assert "result" not in example["prompt"]


def test_record_counts_every_official_answer():
    record = dict(SUPERGLUE["record"][1], answers=["Rome", "Ann", "Rome"])
    (example,) = RENDERERS["record"](record, "here")
    assert example["labels"] == [2, 0]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("rte", {"label": "maybe"}, "label 'maybe', expected one of"),
        ("boolq", {"label": 7}, "label 7, expected true or false"),
        ("cb", {"label": 3}, "label 3"),
        ("copa", {"question": "why"}, "question 'why'"),
    ],
)
def test_wrong_labels_are_named(name, change, message):
    with pytest.raises(DataError, match=message):
        list(RENDERERS[name]({**SUPERGLUE[name][0], **change}, "here"))


def test_a_missing_field_is_named_with_those_present():
    record = {"premise": "a", "label": 0}
    with pytest.raises(DataError, match=r"here: no field 'hypothesis'; the record has 'premise', 'label'"):
        list(RENDERERS["rte"](record, "here"))


def test_gsm8k(tmp_path):
    record = {"question": "How many?", "answer": "48/2 = <<48/2=24>>24.\n#### 1,024"}
    write_jsonl(tmp_path / "train.jsonl", [record])
    write_jsonl(tmp_path / "test.jsonl", [record, record])
    task = make_task(TaskSection(name="gsm8k", path=str(tmp_path)))
    (example,) = task.load("train")
    assert example["response"] == "48/2 = 24.\n#### 1,024"
    assert example["answer"] == "1024"
    assert len(task.load("eval")) == 2


@pytest.mark.parametrize(
    ("text", "answer"),
    [("so 3.\n#### 72", "72"), ("#### -5", "-5"), ("#### 1,000.", "1000"), ("#### 2.50", "2.50"), ("72", "")],
)
def test_gsm8k_final_answer(text, answer):
    task = make_task(TaskSection(name="gsm8k"))
    assert task.final_answer(text) == answer


def test_alpaca_and_dolly(tmp_path):
    alpaca = [{"instruction": "Add.", "input": "1 2" if i else "", "output": "3"} for i in range(4)]
    (tmp_path / "alpaca.json").write_text(json.dumps(alpaca))
    task = make_task(TaskSection(name="alpaca", path=str(tmp_path / "alpaca.json"), holdout=0.25))
    prompts = set(task.load("train")["prompt"]) | set(task.load("eval")["prompt"])
    assert prompts == {"Add.", "Add.\n\n1 2"}
    dolly = [{"instruction": "Add.", "context": "1 2", "response": "3", "category": "x"}] * 2
    write_jsonl(tmp_path / "dolly.jsonl", dolly)
    task = make_task(TaskSection(name="dolly", path=str(tmp_path / "dolly.jsonl")))
    assert task.load("train")[0]["prompt"] == "Add.\n\n1 2"
    assert task.metric == "none"


def test_records_without_a_response_are_left_out_and_logged(tmp_path, caplog):
    records = [{"instruction": f"Add {i}.", "input": "", "output": "" if i == 1 else "3"} for i in range(6)]
    (tmp_path / "alpaca.json").write_text(json.dumps(records))
    section = TaskSection(name="alpaca", path=str(tmp_path / "alpaca.json"))
    task = make_task(section)
    assert len(task.load("train")) + len(task.load("eval")) == 5
    assert "left out 1 records without a response" in caplog.text


def test_null_is_not_the_word_none(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", [{"q": "a", "a": None}] * 3)
    task = make_task(TaskSection(name="mine", path=str(path), prompt="{{ q }}", response="{{ a }}"))
    with pytest.raises(DataError, match="line 1: the response template: a field it uses is null"):
        task.load("train")


def test_own_data_with_templates(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", [{"q": f"a{i}", "a": i} for i in range(4)])
    section = TaskSection(name="mine", path=str(path), prompt="{{ q|upper }}?", response="{{ a + 1 }}", holdout=0.5)
    task = make_task(section)
    pairs = {(row["prompt"], row["response"]) for split in ("train", "eval") for row in task.load(split)}
    assert pairs == {(f"A{i}?", str(i + 1)) for i in range(4)}
    assert task.metric == "exact_match"


def test_templates_are_sandboxed(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", [{"q": "a"}] * 3)
    prompt = "{{ q.__class__.__mro__ }}"
    task = make_task(TaskSection(name="mine", path=str(path), prompt=prompt, response="x"))
    with pytest.raises(DataError, match="template"):
        task.load("train")


@pytest.mark.parametrize("family", [name for name in BUILT_IN if name.startswith("nano/")])
def test_generated_families(family):
    task = make_task(TaskSection(name=family))
    train, evaluation = task.load("train"), task.load("eval")
    assert not set(train["prompt"]) & set(evaluation["prompt"])
    row = evaluation[0]
    if task.metric == "accuracy":
        assert row["choices"][row["labels"][0]] == row["response"]
    else:
        assert task.final_answer(row["response"]) == row["answer"]


def test_every_built_in_task_can_be_made():
    for name in BUILT_IN:
        assert make_task(TaskSection(name=name)).name == name
