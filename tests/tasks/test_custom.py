"""Your own data: every file format, every form, and recipes with keys that cannot be combined."""

from __future__ import annotations

import csv
import json

import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import numbered, write_jsonl
from datasets import Dataset

from multilora.errors import DataError, RecipeError
from multilora.recipe import Recipe, TaskSection
from multilora.tasks import make_task

RECORDS = [{"q": f"what, {i}?\nsay", "a": str(i)} for i in range(6)]


def write(path, records):
    """Write the records in the format of the path's suffix."""
    if path.suffix in (".jsonl", ".ndjson"):
        write_jsonl(path, records)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, records[0])
            writer.writeheader()
            writer.writerows(records)
    else:
        pyarrow.parquet.write_table(pa.Table.from_pylist(records), path)
    return path


def section(path, **keys):
    keys = keys or {"prompt": "{{ q }}", "response": "{{ a }}"}
    return TaskSection(name="mine", path=str(path), **keys)


SUFFIXES = [".jsonl", ".ndjson", ".json", ".csv", ".parquet"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_has_the_same_examples(suffix, tmp_path):
    task = make_task(section(write(tmp_path / f"t{suffix}", RECORDS)))
    rows = [row for split in ("train", "eval") for row in task.load(split)]
    assert sorted((row["prompt"], row["response"]) for row in rows) == [(r["q"], r["a"]) for r in RECORDS]
    assert len(task.load("eval")) == 1


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_folder_with_files_named_after_splits(suffix, name, tmp_path):
    write(tmp_path / f"train{suffix}", RECORDS)
    write(tmp_path / f"{name}{suffix}", RECORDS[:2])
    task = make_task(section(tmp_path))
    assert (len(task.load("train")), len(task.load("eval"))) == (6, 2)


def test_validation_is_preferred_to_test_unless_eval_split_is_set(tmp_path):
    for name, count in (("train", 6), ("validation", 1), ("test", 2), ("extra", 3)):
        write(tmp_path / f"{name}.csv", RECORDS[:count])
    keys = {"prompt": "{{ q }}", "response": "{{ a }}"}
    assert len(make_task(section(tmp_path)).load("eval")) == 1
    task = make_task(section(tmp_path, split="extra", eval_split="test", **keys))
    assert (len(task.load("train")), len(task.load("eval"))) == (3, 2)


def test_shards_are_one_split_and_without_an_evaluation_split_records_are_held_out(tmp_path):
    for shard in range(2):
        write(tmp_path / f"train-0000{shard}-of-00002.parquet", RECORDS[3 * shard : 3 * shard + 3])
    task = make_task(section(tmp_path))
    assert (len(task.load("train")), len(task.load("eval"))) == (5, 1)
    write(tmp_path / "train.csv", RECORDS)
    with pytest.raises(DataError, match="could all be the split 'train'"):
        task.load("train")


def test_hub_data_with_config_and_splits(monkeypatch):
    calls = []

    def load_dataset(*arguments, **options):
        calls.append((*arguments, options["split"]))
        return Dataset.from_list(RECORDS)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    keys = {"prompt": "{{ q }}", "response": "{{ a }}"}
    task = make_task(section("hub:me/data:small", eval_split="dev", **keys))
    assert (len(task.load("train")), len(task.load("eval"))) == (6, 6)
    assert calls == [("me/data", "small", "train"), ("me/data", "small", "dev")]
    task = make_task(section("hub:me/data"))
    assert (len(task.load("train")), len(task.load("eval"))) == (5, 1)


def test_templates(tmp_path):
    path = write(tmp_path / "t.jsonl", [{"q": f"a{i}", "a": i} for i in range(4)])
    task = make_task(section(path, prompt="{{ q|upper }}?", response="{{ a + 1 }}", holdout=0.5))
    pairs = {(row["prompt"], row["response"]) for split in ("train", "eval") for row in task.load(split)}
    assert pairs == {(f"A{i}?", str(i + 1)) for i in range(4)}
    assert task.kind == "generate"


def test_templates_are_sandboxed(tmp_path):
    path = write(tmp_path / "t.jsonl", numbered({"q": "a"}, 3))
    task = make_task(section(path, prompt="{{ q.__class__.__mro__ }}", response="x"))
    with pytest.raises(DataError, match="template"):
        task.load("train")


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather in Rome?", "name": "ann"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}],
    },
    {"role": "tool", "content": "18 C", "tool_call_id": "1"},
    {"role": "assistant", "content": "18 °C."},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_chats_keep_every_key(suffix, tmp_path):
    path = write(tmp_path / f"t{suffix}", numbered({"chat": CHAT, "functions": TOOLS}, 3))
    task = make_task(section(path, messages="chat", tools="functions"))
    example = task.load("train")[0]
    assert json.loads(example["messages"]) == CHAT
    assert json.loads(example["tools"]) == TOOLS
    assert (example["prompt"], example["response"], example["choices"]) == ("", "", [])
    assert (task.kind, task.score([example], [""])) == ("loss", {})


def test_chats_as_json_text_and_in_sharegpt_format(tmp_path):
    chat = [{"from": "human", "value": "Hi", "weight": 0}, {"from": "gpt", "value": "Hello"}]
    path = write(tmp_path / "t.jsonl", numbered({"conversations": chat}, 3))
    example = make_task(section(path, messages="conversations")).load("train")[0]
    expected = [{"role": "user", "content": "Hi", "weight": 0}, {"role": "assistant", "content": "Hello"}]
    assert json.loads(example["messages"]) == expected
    assert example["tools"] == ""
    texts = [{"m": json.dumps(expected), "t": json.dumps(TOOLS)}, {"m": json.dumps(expected), "t": ""}]
    path = write(tmp_path / "t.csv", [record for text in texts for record in numbered(text, 3)])
    rows = list(make_task(section(path, messages="m", tools="t")).load("train"))
    assert {row["messages"] for row in rows} == {example["messages"]}
    assert {row["tools"] for row in rows} == {json.dumps(TOOLS), ""}


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([{"role": "user", "content": "Hi"}], r"no assistant turn \(roles: user\)"),
        ([], "an empty list"),
        ("hello", "text and not JSON"),
        ([{"role": "bot", "content": "Hi"}], "message 1: role 'bot', expected one of system, user, assistant, tool"),
        ([{"from": "robot", "value": "Hi"}], "from 'robot', expected one of human, gpt, system"),
        ([{"content": "Hi"}], "no role among the keys 'content'"),
        (["Hi"], "expected an object with role and content"),
        ([{"role": "user", "content": None}], "a user message without content"),
        ([{"role": "user", "content": 3}], "content is int, expected text"),
        ([{"role": "assistant", "content": " "}], "neither content nor tool_calls"),
    ],
)
def test_chats_that_cannot_be_used(chat, message, tmp_path):
    good = numbered({"m": CHAT}, 3)
    path = write(tmp_path / "t.jsonl", [good[0], {"m": chat}, *good[1:]])
    with pytest.raises(DataError, match=f"t.jsonl, line 2.*{message}"):
        make_task(section(path, messages="m")).load("train")
    task = make_task(section(path, messages="m", on_error="drop"))
    assert len(task.load("train")) + len(task.load("eval")) == 3


def test_tools_that_are_not_a_list(tmp_path):
    path = write(tmp_path / "t.jsonl", numbered({"m": CHAT, "t": {"name": "weather"}}, 2))
    with pytest.raises(DataError, match=r"the tools are .*expected a list of objects"):
        make_task(section(path, messages="m", tools="t")).load("train")


QUESTION = {"stem": "Why?", "options": ["ice", "fire", "7"], "nested": {"text": ["ice", "fire", "7"]}, "key": "fire"}


@pytest.mark.parametrize("choices", ["options", "nested.text", ["{{ options[0] }}", "fire", "{{ 3 + 4 }}"]])
@pytest.mark.parametrize("answer", ["{{ key }}", "1", "B", "b", "{{ options.index('fire') }}"])
def test_questions_with_choices(choices, answer, tmp_path):
    path = write(tmp_path / "t.jsonl", numbered(QUESTION, 3))
    task = make_task(section(path, question="{{ stem }}", choices=choices, answer=answer))
    example = task.load("train")[0]
    assert example["prompt"] == "Why?\nA. ice\nB. fire\nC. 7\nAnswer:"
    assert (example["response"], example["choices"], example["correct"]) == ("B", ["A", "B", "C"], [1])
    assert (task.kind, task.score([example], ["B"])) == ("choice", {"accuracy": 1.0})


@pytest.mark.parametrize(
    ("answer", "options", "message"),
    [
        ("3", ["a", "b", "c"], "answer '3' is outside the 3 choices .*an index from 0 to 2, a letter from A to C"),
        ("E", ["a", "b", "c"], "answer 'E' is outside the 3 choices"),
        ("1", ["1", "2", "3"], r"answer '1' matches choices \[0, 1\]"),
        ("A", ["a"], r"1 choice\(s\) \['a'\], expected 2 to 26"),
        ("A", "a", "field 'options' is 'a', expected a list of texts"),
        ("", ["a", "b"], "answer '' is outside"),
    ],
)
def test_answers_that_are_not_a_choice(answer, options, message, tmp_path):
    path = write(tmp_path / "t.jsonl", numbered({"stem": "Why?", "options": options, "key": answer}, 3))
    with pytest.raises(DataError, match=f"t.jsonl, line 1: {message}"):
        make_task(section(path, question="{{ stem }}", choices="options", answer="{{ key }}")).load("train")


def problems(tmp_path, **keys):
    path = write(tmp_path / "t.jsonl", RECORDS)
    task = {"name": "mine", "path": str(path), **keys}
    with pytest.raises(RecipeError) as caught:
        Recipe.load({"model": "nano", "tasks": [task], "trainin": {}})
    # The unknown key is reported together with the task's problems.
    task_problems = [problem for problem in caught.value.problems if not problem.startswith("trainin:")]
    assert len(task_problems) == len(caught.value.problems) - 1
    return task_problems


PROMPT = {"prompt": "{{ q }}", "response": "{{ a }}"}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (PROMPT, []),
        ({**PROMPT, "choices": ["a", "b"], "metric": "f1_macro"}, []),
        ({"messages": "m", "tools": "t"}, []),
        ({"question": "q", "choices": "c", "answer": "a"}, []),
        ({"prompt": "p"}, ["so it needs response"]),
        ({"tools": "t"}, ["so it needs messages"]),
        ({"answer": "a"}, ["so it needs question, choices"]),
        ({**PROMPT, "messages": "m"}, ["prompt, response, messages belong to different forms of data; use one of"]),
        (
            {"messages": "m", "choices": ["a", "b"], "metric": "accuracy"},
            ["choices cannot be combined with messages", "metric accuracy: chats are scored by their loss"],
        ),
        (
            {"question": "q", "choices": "c", "answer": "a", "metric": "token_f1"},
            ["metric token_f1 scores generated text"],
        ),
        ({**PROMPT, "choices": "c"}, []),
        ({**PROMPT, "choices": ["a", "a"]}, ["choices lists 'a' more than once"]),
        ({**PROMPT, "choices": ["a"]}, ["expected at least two choices, got ['a']"]),
        ({**PROMPT, "choices": [True, False]}, ["expected a list of texts (quote yes, no and numbers)"]),
        ({**PROMPT, "metric": "accuracy"}, ["metric accuracy scores choices"]),
        ({**PROMPT, "metric": "f1_macro"}, ["metric f1_macro scores choices"]),
        ({**PROMPT, "split": "train"}, ["split: path is a single file, which has no splits"]),
        ({**PROMPT, "path": "hub:a/b/c"}, ["path: 'hub:a/b/c', expected hub:owner/name or hub:owner/name:config"]),
        ({"name": "gsm8k", "messages": "m"}, ["messages is for your own data; the built-in task 'gsm8k' sets it"]),
        ({"name": "mmlu/astronomy", "prompt": "m"}, ["prompt is for your own data; the built-in task"]),
        (
            {"name": "nano/knowledge", "path": None, "on_error": "drop", "split": "train"},
            ["split: this task is generated", "on_error: this task is generated"],
        ),
    ],
)
def test_keys_that_cannot_be_combined(keys, expected, tmp_path):
    reported = problems(tmp_path, **keys)
    assert len(reported) == len(expected), reported
    for problem, part in zip(reported, expected, strict=True):
        assert part in problem
