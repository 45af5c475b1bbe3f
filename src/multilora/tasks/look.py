"""Look at data files and guess which task they hold: chats, multiple choice, a fixed set of responses, or text.

A guess is the section of a recipe, with a reason for every key; nothing is guessed that some record contradicts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import median
from typing import Any

from multilora.errors import DataError
from multilora.recipe.schema import TaskSection
from multilora.tasks.messages import messages_json
from multilora.tasks.own_data import index_of
from multilora.tasks.readers import Record
from multilora.tasks.source import Layout, Source, is_text

MOST_RECORDS = 100_000
# A set of responses is fixed if it is small and its members recur.
MOST_CHOICES, USES_PER_CHOICE, CHOICE_CHARACTERS = 20, 5, 40
SHORT_WORDS = 6

CHATS = ("messages", "conversations", "conversation", "chat", "dialog")
QUESTIONS = ("question", "query", "problem", "prompt", "ctx", "input", "stem")
LISTS = ("choices", "options", "endings", "answers", "choices.text")
CORRECT = ("answer", "label", "answer_idx", "answerKey", "answer_key", "correct", "gold", "target", "correct_answer")
PROMPTS = (
    "prompt",
    "instruction",
    "question",
    "query",
    "problem",
    "text",
    "sentence",
    "input",
    "source",
    "document",
    "review",
    "content",
    "message",
    "title",
    "premise",
)
RESPONSES = (
    "response",
    "completion",
    "output",
    "answer",
    "target",
    "label",
    "category",
    "class",
    "intent",
    "sentiment",
    "summary",
    "reply",
    "solution",
    "translation",
)
CONTEXTS = ("context", "input", "passage", "background")


@dataclass(frozen=True)
class Guess:
    """The task of a data file.

    kind: `chats`, `multiple choice`, `fixed responses` or `text`
    keys: of the task's section in a recipe, without name and path
    reasons: key -> why it has this value
    columns: names of the fields of the first record
    records: number of records that were read, at most `MOST_RECORDS`
    """

    kind: str
    keys: dict[str, Any]
    reasons: dict[str, str]
    columns: list[str]
    records: int
    unused: list[str] = field(default_factory=list)


def guess_task(path: str, prompt: str | None = None, response: str | None = None) -> Guess:
    """Read a file, the files of a pattern, or the training file of a folder, and guess its task.

    Args:
        path: as in a recipe
        prompt, response: names of columns, or templates, if they are known

    Raises:
        DataError: the data cannot be read, or its columns do not say what is prompt and response.
    """
    source = Source(TaskSection(name="data", path=path), Layout())
    records = [record for _, record in islice(source.records("train"), MOST_RECORDS)]
    if not records:
        raise DataError(f"{path}: no records in it")
    columns = list(records[0])
    if prompt is None and response is None:
        for guess in (_chats, _multiple_choice):
            found = guess(records, columns)
            if found is not None:
                return found
    return _text(path, records, columns, prompt, response)


def _chats(records: Sequence[Record], columns: list[str]) -> Guess | None:
    for name in CHATS:
        if name in columns and all(_is_chat(record.get(name)) for record in records):
            keys, reasons = {"messages": name}, {"messages": "this column holds chats"}
            if "tools" in columns:
                keys["tools"], reasons["tools"] = "tools", "descriptions of the tools of a chat"
            return Guess("chats", keys, reasons, columns, len(records), _rest(columns, keys.values()))
    return None


def _is_chat(value: Any) -> bool:
    try:
        messages_json(value, "", filled=True)
    except DataError:
        return False
    return True


def _multiple_choice(records: Sequence[Record], columns: list[str]) -> Guess | None:
    question = next((name for name in QUESTIONS if name in columns), None)
    for choices in LISTS:
        if question is None or not all(_choices(record, choices) for record in records):
            continue
        for answer in (name for name in CORRECT if name in columns and name != choices):
            if all(_is_answer(record.get(answer), _choices(record, choices)) for record in records):
                keys = {"question": f"{{{{ {question} }}}}", "choices": choices, "answer": f"{{{{ {answer} }}}}"}
                reasons = {
                    "question": "template of the question",
                    "choices": "the list of choices; the model answers with a letter",
                    "answer": "index from 0, letter or text of the correct choice",
                }
                used = (question, choices.partition(".")[0], answer)
                return Guess("multiple choice", keys, reasons, columns, len(records), _rest(columns, used))
    return None


def _choices(record: Record, name: str) -> list[str]:
    """The choices of a record; empty if the field is not a list of at least two texts."""
    value: Any = record
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if not isinstance(value, list | tuple) or len(value) < 2 or not all(is_text(item) for item in value):
        return []
    return [str(item).strip() for item in value]


def _is_answer(value: Any, choices: list[str]) -> bool:
    if not is_text(value):
        return False
    try:
        index_of(str(value).strip(), choices, "")
    except DataError:
        return False
    return True


def _text(path: str, records: Sequence[Record], columns: list[str], prompt: str | None, response: str | None) -> Guess:
    texts = [
        name for name in columns if name.isidentifier() and all(_is_filled(record.get(name)) for record in records)
    ]
    answer = response or _response(texts)
    question = prompt or next((name for name in PROMPTS if name in texts and name != answer), None)
    if question is None and answer in texts and len(texts) == 2:
        (question,) = set(texts) - {answer}
    if question is None or answer is None:
        raise DataError(
            f"{path}: cannot tell which column is the prompt and which the response; the columns are "
            f"{', '.join(map(repr, columns))}. Name them: --prompt COLUMN --response COLUMN (or templates, such as "
            "'{{ title }}: {{ body }}')"
        )
    for name, value in (("--prompt", question), ("--response", answer)):
        if "{{" not in value and value not in columns:
            raise DataError(f"{path}: {name}: no column {value!r}; the columns are {', '.join(map(repr, columns))}")
        if "{{" not in value and not value.isidentifier():
            raise DataError(f"{path}: {name}: templates cannot name the column {value!r}; rename it, as in my_column")
    template = question if "{{" in question else f"{{{{ {question} }}}}"
    context = next((name for name in CONTEXTS if name in columns and name not in (question, answer)), None)
    reasons = {"prompt": "template of the prompt, over the columns", "response": "template of the response"}
    if context is not None and prompt is None and all(_is_optional(record.get(context)) for record in records):
        template += f"{{% if {context} is defined and {context} %}}\n\n{{{{ {context} }}}}{{% endif %}}"
        reasons["prompt"] = f"template of the prompt; {context!r} is added where it is filled"
    keys: dict[str, Any] = {
        "prompt": template,
        "response": answer if "{{" in answer else f"{{{{ {answer} }}}}",
    }
    kind = _scored(keys, reasons, records, answer)
    used = re.findall(r"\w+", f"{template} {answer}")
    return Guess(kind, keys, reasons, columns, len(records), _rest(columns, used))


def _response(texts: Sequence[str]) -> str | None:
    """The column of the response, among those that every record fills."""
    known = next((name for name in RESPONSES if name in texts), None)
    return known or (texts[1] if len(texts) == 2 else None)


def _scored(keys: dict[str, Any], reasons: dict[str, str], records: Sequence[Record], answer: str) -> str:
    """Add how answers are scored; returns the kind of task."""
    if "{{" in answer:
        return "text"
    texts = [str(record[answer]).strip() for record in records if is_text(record.get(answer))]
    counts = Counter(texts)
    fixed = 2 <= len(counts) <= MOST_CHOICES and len(texts) >= USES_PER_CHOICE * len(counts)
    if fixed and len(records) < MOST_RECORDS and max(map(len, counts)) <= CHOICE_CHARACTERS:
        keys["choices"] = sorted(counts)
        reasons["choices"] = f"the column has only these {len(counts)} values, so answers are scored by accuracy"
        return "fixed responses"
    words = median(len(text.split()) for text in texts) if texts else 0
    keys["metric"] = "exact_match" if words <= SHORT_WORDS else "token_f1"
    reasons["metric"] = f"the responses have {words:.0f} words in the median; none would score by the loss only"
    return "text"


def _is_filled(value: Any) -> bool:
    return is_text(value) and bool(str(value).strip())


def _is_optional(value: Any) -> bool:
    return value is None or is_text(value)


def _rest(columns: Sequence[str], used: Any) -> list[str]:
    return [name for name in columns if name not in set(used)]
