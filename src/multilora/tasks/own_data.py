"""Your own data without code: files or hub data in one of three forms, depending on the keys in the recipe.

- prompt and response: Jinja2 templates over a record's fields; with `choices`, the response is one of them. Choices
  are the same for all records, or templates or a list field, as in `choices: ["{{ sol1 }}", "{{ sol2 }}"]` and
  `response: "{{ [sol1, sol2][label] }}"`
- messages (and tools): names of the fields that contain a chat
- question, choices and answer: a question with lettered choices
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from string import ascii_uppercase
from typing import Any

from multilora.errors import DataError, RecordError
from multilora.example import Example, chat_example, choice_example, free_example
from multilora.recipe.schema import TaskSection
from multilora.tasks.base import Kind, Task
from multilora.tasks.messages import messages_json, tools_json
from multilora.tasks.multiple_choice import lettered_example
from multilora.tasks.readers import FilledRecord, Record
from multilora.tasks.record_task import RecordTask
from multilora.tasks.source import field, is_text
from multilora.tasks.templates import FieldTemplate


def own_data_task(section: TaskSection) -> Task:
    """Make the task of a section whose name is not built in.

    Raises:
        DataError: the keys match none of the forms, or a template is not valid Jinja2.
    """
    if section.messages is not None:
        return ChatTask(section)
    if section.question is not None:
        return QuestionTask(section)
    return TextTask(section)


class OwnDataTask(RecordTask):
    """Base class of the three forms.

    Args:
        section: the task's section of the recipe
        kind: see `Task`; ignored with `metric: none`, which measures the loss only
    """

    def __init__(self, section: TaskSection, kind: Kind) -> None:
        self.kind = "loss" if section.metric == "none" else kind
        super().__init__(section)


class RecordChoices:
    """The choices of each record.

    Args:
        task: name of the task, for errors
        choices: the name of a list field (with dots for nested fields), or a template per choice

    Raises:
        DataError: a template is not valid Jinja2.
    """

    def __init__(self, task: str, choices: str | list[str]) -> None:
        self.field = choices if isinstance(choices, str) else ""
        texts = [] if isinstance(choices, str) else choices
        self.templates = [FieldTemplate(task, f"choices.{index}", text) for index, text in enumerate(texts)]

    def of(self, record: Record, where: str) -> list[str]:
        """The choices of a record; RecordError if a template fails or the field is not a list of texts."""
        if not self.field:
            return [template.render(record, where) for template in self.templates]
        value: Any = record
        for name in self.field.split("."):
            value = field(value, name, where)
        if not isinstance(value, list | tuple) or not all(is_text(item) for item in value):
            raise RecordError(
                f"{where}: field {self.field!r} is {str(value)[:80]!r}, expected a list of texts; name another "
                "field, or give choices as a list of templates",
                "choices are no list",
            )
        return [str(item).strip() for item in value]


class TextTask(OwnDataTask):
    """Prompt and response are templates; with `choices`, the rendered response must be one of the choices."""

    def __init__(self, section: TaskSection) -> None:
        if section.prompt is None or section.response is None:
            raise DataError(
                f"task {section.name!r} needs prompt and response (and choices); or messages; or question, choices and "
                "answer"
            )
        super().__init__(section, "choice" if section.choices else "generate")
        self.choices = None if section.choices is None else RecordChoices(self.name, section.choices)
        self.prompt = FieldTemplate(self.name, "prompt", section.prompt)
        self.response = FieldTemplate(self.name, "response", section.response)

    def examples(self, record: Record, where: str) -> Iterator[Example]:
        """One example; RecordError if a template fails, or the response is empty or not one of the choices."""
        prompt, response = self.prompt.render(record, where), self.response.render(record, where)
        if not response:
            raise RecordError(
                f"{where}: the response is empty, so no token would be trained on; fix or remove the record, or set "
                "on_error to drop",
                "empty response",
            )
        if self.choices is None:
            yield free_example(prompt, response, response)
            return
        choices = self.choices.of(record, where)
        if response not in choices:
            raise RecordError(
                f"{where}: response {response!r} is not one of the choices {choices}; add it to choices, or fix the "
                "record",
                "response is no choice",
            )
        yield choice_example(prompt, choices, choices.index(response))


class ChatTask(OwnDataTask):
    """`messages` and `tools` are names of fields; scored by the loss of the assistant's messages."""

    def __init__(self, section: TaskSection) -> None:
        super().__init__(section, "loss")
        self.messages, self.tools = section.messages or "", section.tools

    def examples(self, record: Record, where: str) -> Iterator[Example]:
        """One example; RecordError if the field is not a chat with an assistant turn."""
        filled = isinstance(record, FilledRecord)
        messages = messages_json(field(record, self.messages, where), where, filled=filled)
        tools = tools_json(field(record, self.tools, where), where, filled=filled) if self.tools is not None else ""
        yield chat_example(messages, tools)


class QuestionTask(OwnDataTask):
    """A question with lettered choices; the response is the letter.

    `question` and `answer` are templates; `choices` is the name of a list field (with dots for nested fields) or a list
    of templates. The answer renders to the index of the correct choice (from 0), its letter or its text.
    """

    def __init__(self, section: TaskSection) -> None:
        if section.question is None or section.choices is None or section.answer is None:
            raise DataError(f"task {section.name!r} needs question, choices and answer")
        super().__init__(section, "choice")
        self.question = FieldTemplate(self.name, "question", section.question)
        self.answer = FieldTemplate(self.name, "answer", section.answer)
        self.choices = RecordChoices(self.name, section.choices)

    def examples(self, record: Record, where: str) -> Iterator[Example]:
        """One example; RecordError if the answer matches none of the choices, or more than one."""
        question = self.question.render(record, where)
        choices = self.choices.of(record, where)
        correct = index_of(self.answer.render(record, where), choices, where)
        yield lettered_example(question, choices, correct, where)


def index_of(answer: str, choices: Sequence[str], where: str) -> int:
    """The index of the choice that an answer names by its index (from 0), letter or text.

    Raises:
        RecordError: the answer matches no choice, or different choices by index, letter and text.
    """
    matches = [index for index, choice in enumerate(choices) if choice == answer]
    letters = ascii_uppercase[: len(choices)]
    if len(answer) == 1 and answer.upper() in letters:
        matches.append(letters.index(answer.upper()))
    if answer.isdecimal() and len(answer) < 6 and int(answer) < len(choices):
        matches.append(int(answer))
    if len(set(matches)) > 1:
        raise RecordError(
            f"{where}: answer {answer!r} matches choices {sorted(set(matches))} of {list(choices)} (by index, "
            "letter or text); render a letter, as in {{ 'ABCD'[label] }}",
            "ambiguous answer",
        )
    if not matches:
        raise RecordError(
            f"{where}: answer {answer!r} is outside the {len(choices)} choices {list(choices)}; expected an index from "
            f"0 to {len(choices) - 1}, a letter from A to {letters[-1:] or 'A'}, or the text of one of them",
            "label out of range" if answer else "empty answer",
        )
    return matches[0]
