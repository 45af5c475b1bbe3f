"""Bad data files: of the wrong kind, broken, or with records that cannot become examples."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from harness import Case, Row

GOOD = b'{"question": "is 1 odd", "answer": "yes"}\n'
DEEP = b"[" * 100_000

# (suffix, content of the file, what the message says); the task renders {{ question }} and {{ answer }}
FILES: list[tuple[str, bytes, str]] = [
    ("jsonl", b"", "it has no records"),
    ("jsonl", b"\n\n  \n", "it has no records"),
    ("jsonl", b"\xef\xbb\xbf", "it has no records"),
    ("jsonl", GOOD, "a single record (or copies of one) cannot be split"),
    ("jsonl", GOOD * 3, "a single record (or copies of one) cannot be split"),
    ("jsonl", GOOD + b'{"question": "a"', "line 2: broken JSON"),
    ("jsonl", GOOD + b"{question: 1}\n", "line 2: broken JSON"),
    ("jsonl", GOOD + b"{'question': 1}\n", "line 2: broken JSON"),
    ("jsonl", GOOD + b'{"question": "a",}\n', "line 2: broken JSON"),
    ("jsonl", GOOD + GOOD.strip() + GOOD, "line 2: broken JSON (Extra data"),
    ("jsonl", GOOD + b'{"question": "a\tb"}\n', "line 2: broken JSON (Invalid control character"),
    ("jsonl", GOOD + b'{"question": "\\x41"}\n', "line 2: broken JSON (Invalid \\escape"),
    ("jsonl", GOOD + b'{"question": "\\ud83"}\n', "line 2: broken JSON (Invalid \\uXXXX escape"),
    ("jsonl", GOOD + b'{"question": ' + b"9" * 5000 + b"}\n", "line 2: broken JSON (Exceeds the limit"),
    ("jsonl", GOOD + DEEP + b"\n", "line 2: JSON nested too deeply"),
    ("jsonl", GOOD + b'{"a": ' * 100_000 + b"\n", "line 2: JSON nested too deeply"),
    ("jsonl", GOOD + b"[1, 2]\n", "line 2: is list, expected an object"),
    ("jsonl", GOOD + b"null\n", "line 2: is NoneType, expected an object"),
    ("jsonl", GOOD + b'"text"\n', "line 2: is str, expected an object"),
    ("jsonl", GOOD + b"7\n", "line 2: is int, expected an object"),
    ("jsonl", GOOD + b"{}\n", "line 2: the prompt template: 'question' is undefined"),
    ("jsonl", GOOD + b'{"answer": "yes"}\n', "line 2: the prompt template: 'question' is undefined"),
    ("jsonl", GOOD + b'{"question": "\xff"}\n', "is not UTF-8 (line 2)"),
    ("jsonl", GOOD.decode().encode("utf-16"), "byte 0 is not UTF-8 (line 1)"),
    ("jsonl", GOOD.decode().encode("utf-32-be"), "line 1: broken JSON"),
    ("jsonl", b"\x1f\x8b" + bytes(50), "is not UTF-8 (line 1)"),
    ("jsonl", bytes(1000), "line 1: broken JSON"),
    ("jsonl", GOOD + b'{"question": "\\ud800", "answer": "yes"}\n', "half of a character (a lone surrogate)"),
    ("jsonl", GOOD + b'{"question": "a", "answer": "\\udfff"}\n', "half of a character (a lone surrogate)"),
    ("jsonl", GOOD + b'{"question": NaN, "answer": "yes"}\n', "line 2: the prompt template: it prints nan"),
    ("jsonl", GOOD + b'{"question": -Infinity, "answer": "yes"}\n', "line 2: the prompt template: it prints -inf"),
    ("jsonl", GOOD + b'{"question": 1e999, "answer": "yes"}\n', "line 2: the prompt template: it prints inf"),
    ("jsonl", GOOD + b'{"question": true, "answer": "yes"}\n', "it prints True, a JSON boolean"),
    ("jsonl", GOOD + b'{"question": [1], "answer": "yes"}\n', "it prints a list ([1]...)"),
    ("jsonl", GOOD + b'{"question": {"a": 1}, "answer": "yes"}\n', "it prints an object"),
    ("jsonl", GOOD + b'{"question": null, "answer": "yes"}\n', "a field it uses is null"),
    ("jsonl", GOOD + b'{"question": "a", "answer": ""}\n', "line 2: the response is empty"),
    ("jsonl", GOOD + b'{"question": "a", "answer": "\\u2003"}\n', "line 2: the response is empty"),
    ("jsonl", GOOD + b'{"question": "a", "answer": "maybe"}\n', "response 'maybe' is not one of the choices"),
    ("jsonl", GOOD + b'{"question": "a", "answer": "Yes"}\n', "response 'Yes' is not one of the choices"),
    ("ndjson", GOOD + b"x", "line 2: broken JSON"),
    ("json", b"", "line 1: broken JSON"),
    ("json", b"[]", "it has no records"),
    ("json", GOOD, "is dict, expected a list of objects"),
    ("json", GOOD + GOOD, "name a file with one object per line .jsonl"),
    ("json", b"null", "is NoneType, expected a list of objects"),
    ("json", b"[1, 2]", "item 1: is int, expected an object"),
    ("json", b"[" + GOOD + b",]", "broken JSON"),
    ("json", b"[" + GOOD, "broken JSON"),
    ("json", DEEP, "JSON nested too deeply"),
    ("json", b"[" + b"9" * 5000 + b"]", "broken JSON (Exceeds the limit"),
    ("json", b"\xfe\xff", "byte 0 is not UTF-8"),
    ("csv", b"", "it has no records"),
    ("csv", b"question,answer\n", "it has no records"),
    ("csv", b"question,answer\na\n", "line 2: 1 columns, expected the 2"),
    ("csv", b"question,answer\na,b,c\n", "line 2: 3 columns, expected the 2"),
    ("csv", b"question;answer\na;yes\n", "'question' is undefined"),
    ("csv", b"question,question\na,yes\n", "the header has 'question' twice"),
    ("csv", b'question,answer\n"a,yes\n', "broken CSV"),
    ("csv", b'question,answer\n"a"b,yes\n', "broken CSV"),
    ("csv", b"question,answer\n\xe9,yes\n", "is not UTF-8 (line 2)"),
    ("csv", b"question,answer\na,yes\nb,\n", "line 3: the response is empty"),
    ("csv", b"question,answer\n" + b"a" * 200_000 + b",yes\n", "broken CSV (field larger than field limit"),
    ("parquet", b"", "cannot be read as parquet"),
    ("parquet", b"PAR1", "cannot be read as parquet"),
    ("parquet", b"PAR1" + bytes(100) + b"PAR1", "cannot be read as parquet"),
    ("parquet", GOOD, "cannot be read as parquet"),
    ("txt", GOOD, "unknown file type '.txt'"),
    ("", GOOD, "unknown file type ''"),
    ("gz", GOOD, "unknown file type '.gz'"),
    ("JSONL", GOOD, "unknown file type '.JSONL'"),
    ("xlsx", GOOD, "unknown file type '.xlsx'"),
]


def _file(case: Case, suffix: str, content: bytes) -> None:
    path = case.folder / f"data.{suffix}".rstrip(".")
    path.write_bytes(content)
    case.set("tasks.0.path", str(path))


def _parquet(case: Case, columns: Callable[[], Any]) -> None:
    import pyarrow.parquet as parquet

    path = case.folder / "data.parquet"
    parquet.write_table(columns(), path)
    case.set("tasks.0.path", str(path))


def _table(question: Any, kind: str | None = None) -> Any:
    import pyarrow as pa

    values = pa.array([question] * 3, getattr(pa, kind)() if kind else None)
    return pa.table({"question": values, "answer": ["yes", "no", "yes"]})


def _twice() -> Any:
    import pyarrow as pa

    return pa.table([["a", "b"], ["c", "d"]], names=["question", "question"])


def _not_utf8() -> Any:
    import pyarrow as pa

    text = pa.array([b"\xff\xfe", b"b"]).cast(pa.string(), safe=False)
    return pa.table({"question": text, "answer": ["yes", "no"]})


def _far_date() -> Any:
    import pyarrow as pa

    return pa.table({"question": pa.array([2**62, 0], pa.timestamp("us")), "answer": ["yes", "no"]})


def _truncated(case: Case) -> None:
    _parquet(case, partial(_table, "a"))
    path = case.folder / "data.parquet"
    path.write_bytes(path.read_bytes()[:-20])


def _overwritten(case: Case) -> None:
    _parquet(case, partial(_table, "a"))
    path = case.folder / "data.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes([255]) * 60 + content[64:])


PARQUET: list[tuple[str, Callable[[], Any], str]] = [
    ("nulls", partial(_table, None, "string"), "a field it uses is null"),
    ("bytes", partial(_table, b"abc"), "it prints a bytes; convert it to text"),
    ("lists", partial(_table, ["a"]), "it prints a list"),
    ("structs", partial(_table, {"a": 1}), "it prints an object"),
    ("NaN", partial(_table, float("nan")), "it prints nan"),
    ("booleans", partial(_table, True), "it prints True"),
    ("a column twice", _twice, "has 'question' twice"),
    ("text that is not UTF-8", _not_utf8, "cannot be read as parquet at row 0"),
    ("a date after year 9999", _far_date, "cannot be read as parquet at row 0"),
]

# (template of the prompt, what the message says); the records have question and answer
TEMPLATES: list[tuple[str, str]] = [
    ("{{ question ", "the prompt template is not valid Jinja2"),
    ("{% if question %}", "the prompt template is not valid Jinja2"),
    ("{% for %}", "the prompt template is not valid Jinja2"),
    ("{{ question | nothing }}", "the prompt template is not valid Jinja2: No filter named 'nothing'"),
    ("{% frobnicate %}", "the prompt template is not valid Jinja2"),
    ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "the prompt template is not valid Jinja2"),
    ("{% for a in [1] %}" * 30 + "x" + "{% endfor %}" * 30, "the prompt template is not valid Jinja2"),
    ("{{ qestion }}", "'qestion' is undefined"),
    ("{{ question.text }}", "has no attribute 'text'"),
    ("{{ question[0][5] }}", "has no element 5"),
    ("{{ question.upper }}", "it prints a function; call it with ()"),
    ("{{ question | map('upper') }}", "it prints a generator; convert it to text"),
    ("{{ question + 1 }}", "the prompt template: can only concatenate str"),
    ("{{ 1 / 0 }}", "the prompt template: division by zero"),
    ("{{ question.__class__ }}", "the prompt template: access to attribute '__class__'"),
    ("{{ question.format.__globals__ }}", "is unsafe"),
    ("{{ ''.__class__.__mro__ }}", "is unsafe"),
    ("{% include 'secret' %}", "the prompt template: "),
    ("{% import 'os' as os %}", "the prompt template: "),
    ("{{ range(999999999) | list }}", "the prompt template: Range too big"),
    ("{{ 'x' * 999999999 }}", "it repeats something to more than 10,000,000 characters"),
    ("{{ 9 ** 99999999 }}", "it raises a number to the power of 99999999"),
    ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "the prompt template: "),
    (
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "its loops take more than 1,000,000 steps for one record",
    ),
    (
        "{% for a in range(99999) %}" + "x" * 1000 + "{% endfor %}",
        "renders 99,999,000 characters, expected at most 10,000,000",
    ),
]


def _template(case: Case, text: str) -> None:
    case.set("tasks.0.prompt", text)


# (value of the field `chat`, what the message says)
CHATS: list[tuple[Any, str]] = [
    (None, "the messages are NoneType, expected a list of messages"),
    ([], "the messages are an empty list"),
    ("hello", "the messages are text and not JSON"),
    ("[" * 5000, "the messages are text and not JSON"),
    ("[" + "9" * 5000 + "]", "the messages are text and not JSON (Exceeds the limit"),
    ("{}", "the messages are dict, expected a list of messages"),
    (7, "the messages are int, expected a list of messages"),
    (["hi"], "message 1: 'hi', expected an object with role and content"),
    ([None], "message 1: 'None', expected an object with role and content"),
    ([{}], "message 1: no role among the keys"),
    ([{"role": "user"}], "message 1: a user message without content"),
    ([{"role": "user", "content": "a"}], "the messages have no assistant turn (roles: user)"),
    ([{"role": "robot", "content": "a"}], "message 1: role 'robot', expected one of"),
    ([{"role": None, "content": "a"}], "message 1: role None, expected one of"),
    ([{"role": ["user"], "content": "a"}], "message 1: role ['user'], expected one of"),
    ([{"from": "bot", "value": "a"}], "message 1: from 'bot', expected one of"),
    ([{"from": ["gpt"], "value": "a"}], "message 1: from ['gpt'], expected one of"),
    ([{"from": "human", "value": None}], "message 1: a user message without content"),
    ([{"role": "assistant", "content": ""}], "message 1: an assistant turn with neither content nor tool_calls"),
    ([{"role": "assistant", "content": 7}], "message 1: content is int, expected text"),
    ([{"role": "assistant", "content": {"a": 1}}], "message 1: content is dict, expected text"),
    ([{"role": "assistant", "content": "\ud800"}], "half of a character (a lone surrogate)"),
    ([{"role": "assistant", "content": "a", "score": float("nan")}], "the messages are not JSON"),
    ([{"role": "tool", "content": "a"}, {"role": "assistant", "content": "b"}], "needs the tokenizer's chat template"),
]


def _chat(case: Case, value: Any) -> None:
    path = case.folder / "chat.jsonl"
    path.write_text("".join(json.dumps({"chat": value, "number": number}) + "\n" for number in range(3)))
    case.recipe["tasks"][0] = {"name": "even", "path": str(path), "messages": "chat"}


# (values of choices and answer, what the message says)
QUESTIONS: list[tuple[Any, Any, str]] = [
    (None, 0, "is 'None', expected a list of texts"),
    ("a, b", 0, "is 'a, b', expected a list of texts"),
    ([], 0, "is outside the 0 choices"),
    (["a"], 0, "1 choice(s) ['a'], expected 2 to 26"),
    ([str(number) for number in range(27)], 30, "is outside the 27 choices"),
    (["a", "b"], 2, "answer '2' is outside the 2 choices"),
    (["a", "b"], -1, "answer '-1' is outside the 2 choices"),
    (["a", "b"], "c", "answer 'c' is outside the 2 choices"),
    (["a", "b"], "", "answer '' is outside the 2 choices"),
    (["a", "b"], None, "a field it uses is null"),
    (["a", "b"], True, "it prints True, a JSON boolean"),
    (["a", "b"], [0], "it prints a list"),
    (["a", "b"], "9" * 5000, "is outside the 2 choices"),
    (["1", "0"], 0, "matches choices [0, 1]"),
    (["a", True], 0, "expected a list of texts"),
    (["a", float("nan")], 0, "expected a list of texts"),
    (["a", None], 0, "expected a list of texts"),
    (["a", ["b"]], 0, "expected a list of texts"),
    (["a", "\ud800"], 0, "expected a list of texts"),
]


def _question(case: Case, choices: Any, answer: Any) -> None:
    path = case.folder / "questions.jsonl"
    record = {"text": "which", "options": choices, "label": answer}
    path.write_text("".join(json.dumps({**record, "number": number}) + "\n" for number in range(3)))
    task = {"question": "{{ text }}", "choices": "options", "answer": "{{ label }}"}
    case.recipe["tasks"][0] = {"name": "even", "path": str(path), **task}


def _pipe(case: Case, key: str = "path") -> None:
    os.mkfifo(case.folder / "data.jsonl")
    case.set(f"tasks.0.{key}", str(case.folder / "data.jsonl"))


def _folder(case: Case, *names: str, key: str = "path") -> None:
    (case.folder / "files").mkdir()
    for name in names:
        (case.folder / "files" / name).write_bytes(GOOD)
    case.set(f"tasks.0.{key}", str(case.folder / "files"))


def _folder_of_a_pipe(case: Case) -> None:
    _folder(case)
    os.mkfifo(case.folder / "files" / "train.jsonl")


def _folder_of_a_folder(case: Case) -> None:
    _folder(case)
    (case.folder / "files" / "train.jsonl").mkdir()


def _loop(case: Case) -> None:
    (case.folder / "data.jsonl").symlink_to(case.folder / "data.jsonl")
    case.set("tasks.0.path", str(case.folder / "data.jsonl"))


def _dead_link(case: Case) -> None:
    (case.folder / "data.jsonl").symlink_to(case.folder / "gone.jsonl")
    case.set("tasks.0.path", str(case.folder / "data.jsonl"))


def _below_a_file(case: Case) -> None:
    case.set("tasks.0.path", str(case.data(0) / "train.jsonl"))


def _eval_is_train(case: Case) -> None:
    case.set("tasks.0.eval_path", case.recipe["tasks"][0]["path"])


def _eval_is_a_link_to_train(case: Case) -> None:
    (case.folder / "eval.jsonl").symlink_to(case.data(0))
    case.set("tasks.0.eval_path", str(case.folder / "eval.jsonl"))


def _path(case: Case, path: str, key: str = "path") -> None:
    case.set(f"tasks.0.{key}", path)


def _unreadable(case: Case) -> None:
    case.data(0).chmod(0)


def _drop_everything(case: Case) -> None:
    case.recipe["tasks"][0].update(prompt="{{ nothing }}", on_error="drop")


def _too_long(case: Case) -> None:
    case.set("data", {"max_length": 8})


ROWS = [
    *(
        Row(f"{suffix} {number} {content[-40:]!a}", partial(_file, suffix=suffix, content=content), message)
        for number, (suffix, content, message) in enumerate(FILES)
    ),
    *(Row(f"parquet of {name}", partial(_parquet, columns=columns), text) for name, columns, text in PARQUET),
    *(Row(f"template {text[:60]}", partial(_template, text=text), message) for text, message in TEMPLATES),
    *(Row(f"chat {ascii(value)[:60]}", partial(_chat, value=value), message) for value, message in CHATS),
    *(
        Row(f"choices {ascii(c)[:30]} answer {ascii(a)[:30]}", partial(_question, choices=c, answer=a), message)
        for c, a, message in QUESTIONS
    ),
    Row("parquet truncated", _truncated, "cannot be read as parquet"),
    Row("parquet overwritten", _overwritten, "cannot be read as parquet"),
    Row("data is a pipe", _pipe, "is a pipe or a device, expected a file or a folder"),
    Row("evaluation data is a pipe", partial(_pipe, key="eval_path"), "is a pipe or a device"),
    Row("data is a device", partial(_path, path="/dev/zero"), "'/dev/zero' is a pipe or a device"),
    Row("data is nothing", partial(_path, path="/dev/null"), "'/dev/null' is a pipe or a device"),
    Row("data is an empty folder", _folder, "expected a file train.*"),
    Row("data is a folder of other files", lambda case: _folder(case, "a.jsonl", "b.txt"), "found a.jsonl, b.txt"),
    Row("data is a folder of two formats", lambda case: _folder(case, "train.jsonl", "train.csv"), "could all be the"),
    Row("data is a folder of a pipe", _folder_of_a_pipe, "train.jsonl: is a pipe or a device, expected a file"),
    Row("data is a folder of a folder", _folder_of_a_folder, "train.jsonl: is a folder, expected a file"),
    Row("evaluation data is a folder", partial(_folder, key="eval_path"), "is a folder, expected a file"),
    Row("data is a symlink loop", _loop, "Too many levels of symbolic links"),
    Row("data is a dead link", _dead_link, "no such file or folder"),
    Row("data is below a file", _below_a_file, "no such file or folder"),
    Row("evaluation data is the training data", _eval_is_train, "eval_path: is the training file too"),
    Row("evaluation data is a link to it", _eval_is_a_link_to_train, "eval_path: is the training file too"),
    Row("every record is dropped", _drop_everything, "every record was dropped: missing field ("),
    Row("nothing fits", _too_long, "are longer than max_length 8"),
    *([] if os.geteuid() == 0 else [Row("data cannot be read", _unreadable, "Permission denied")]),
]
