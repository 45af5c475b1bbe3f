"""Drafted recipes: what is guessed about data fits every record, and the recipe loads and plans."""

from __future__ import annotations

import gzip
import json

import pytest
import yaml
from conftest import write_jsonl

import multilora
from multilora.errors import DataError, InputError
from multilora.runs.draft import GOALS, draft_recipe, write_draft
from multilora.tasks.look import guess_task

CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
LONG = "one two three four five six seven eight"


def rows(count, **fields):
    """Records whose fields are functions of their number, or constants."""
    return [{name: value(i) if callable(value) else value for name, value in fields.items()} for i in range(count)]


DATA = {
    "chats": (rows(4, messages=CHAT, source="x"), "chats", {"messages": "messages"}),
    "sharegpt": (
        rows(4, conversations=[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]),
        "chats",
        {"messages": "conversations"},
    ),
    "tools": (rows(4, messages=CHAT, tools="[]"), "chats", {"messages": "messages", "tools": "tools"}),
    "multiple choice": (
        rows(4, question=str, choices=["x", "y", "z"], answer=lambda i: i % 3),
        "multiple choice",
        {"question": "{{ question }}", "choices": "choices", "answer": "{{ answer }}"},
    ),
    "nested choices": (
        rows(4, question=str, choices={"text": ["x", "y"], "label": ["A", "B"]}, answerKey="B"),
        "multiple choice",
        {"question": "{{ question }}", "choices": "choices.text", "answer": "{{ answerKey }}"},
    ),
    "labels": (
        rows(20, text=str, label=lambda i: ["good", "bad: no"][i % 2], date="1"),
        "fixed responses",
        {"prompt": "{{ text }}", "response": "{{ label }}", "choices": ["bad: no", "good"]},
    ),
    "numbered labels": (
        rows(20, text=str, label=lambda i: i % 2),
        "fixed responses",
        {"prompt": "{{ text }}", "response": "{{ label }}", "choices": ["0", "1"]},
    ),
    "few labels": (  # too few records to know all of them
        rows(6, text=str, label=lambda i: f"l{i % 3}"),
        "text",
        {"prompt": "{{ text }}", "response": "{{ label }}", "metric": "exact_match"},
    ),
    "instructions": (
        rows(6, instruction=str, input=lambda i: "" if i else "more", output=lambda i: f"{LONG} {i}"),
        "text",
        {
            "prompt": "{{ instruction }}{% if input is defined and input %}\n\n{{ input }}{% endif %}",
            "response": "{{ output }}",
            "metric": "token_f1",
        },
    ),
    "two unknown columns": (
        rows(6, ask=str, say=lambda i: f"s {i}"),
        "text",
        {"prompt": "{{ ask }}", "response": "{{ say }}", "metric": "exact_match"},
    ),
}


@pytest.mark.parametrize("name", DATA)
def test_guesses(name, tmp_path):
    records, kind, keys = DATA[name]
    guess = guess_task(str(write_jsonl(tmp_path / "data.jsonl", records)))
    assert (guess.kind, guess.keys) == (kind, keys)
    assert set(guess.reasons) == set(keys)
    assert guess.records == len(records)


@pytest.mark.parametrize("goal", GOALS)
def test_a_draft_plans(goal, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, (records, _, _) in DATA.items():
        if name not in ("chats", "sharegpt", "tools"):
            write_jsonl(tmp_path / f"{name}.jsonl", records)
    draft = draft_recipe(str(model_folder), sorted(path.name for path in tmp_path.glob("*.jsonl")), goal=goal)
    values = yaml.safe_load(draft.text)
    for section in values["tasks"]:
        guess = draft.guesses[section["name"]]
        assert {key: section[key] for key in guess.keys} == guess.keys
    if goal != "memory":  # which needs bitsandbytes and a GPU
        plan = multilora.plan(values)
        assert plan.task_names == list(draft.guesses)


def test_every_key_has_a_comment(tmp_path):
    write_jsonl(tmp_path / "labels.jsonl", DATA["labels"][0])
    text = draft_recipe("nano", [str(tmp_path / "labels.jsonl")]).text
    task = text[text.index("tasks:") : text.index("data:")]
    for line in task.splitlines()[1:]:
        assert "#" in line or "path:" in line or not line
    assert "# not used: date" in text


def test_columns_that_say_nothing(tmp_path):
    path = str(write_jsonl(tmp_path / "data.jsonl", rows(6, a=str, b=str, c=str)))
    with pytest.raises(DataError, match=r"the columns are 'a', 'b', 'c'\. Name them: --prompt COLUMN"):
        guess_task(path)
    keys = guess_task(path, "a", "{{ b }}, {{ c }}").keys
    assert keys == {"prompt": "{{ a }}", "response": "{{ b }}, {{ c }}"}
    with pytest.raises(DataError, match="--response: no column 'd'"):
        guess_task(path, "a", "d")
    spaced = str(write_jsonl(tmp_path / "spaced.jsonl", [{"my text": "a", "label": "b"}] * 2))
    with pytest.raises(DataError, match="cannot tell which column"):
        guess_task(spaced)
    with pytest.raises(DataError, match="templates cannot name the column 'my text'; rename it"):
        guess_task(spaced, "my text", "label")


def test_files_patterns_and_folders(tmp_path):
    records = DATA["labels"][0]
    write_jsonl(tmp_path / "train.jsonl", records)
    with gzip.open(tmp_path / "part-1.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    for path, count in ((tmp_path, 20), (tmp_path / "part-*.gz", 20), (tmp_path / "*.jsonl*", 40)):
        assert guess_task(str(path)).records == count


def test_nothing_is_overwritten(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", DATA["labels"][0])
    draft = draft_recipe("nano", [str(tmp_path / "a.jsonl")])
    (tmp_path / "recipe.yaml").write_text("mine")
    with pytest.raises(InputError, match="there is a file already, and it is kept"):
        write_draft(draft, tmp_path / "recipe.yaml")
    assert (tmp_path / "recipe.yaml").read_text() == "mine"


def test_options_that_cannot_be_used(tmp_path):
    path = str(write_jsonl(tmp_path / "a.jsonl", DATA["labels"][0]))
    for arguments, message in (
        ({"data": []}, "there is no data"),
        ({"data": [path, path], "prompt": "text"}, "--prompt can only be given with a single --data"),
        ({"data": [path], "goal": "fast"}, "expected one of try, quality, memory"),
    ):
        with pytest.raises(InputError, match=message):
            draft_recipe("nano", **arguments)
    assert list(draft_recipe("nano", [path, path]).guesses) == ["a-1", "a-2"]
