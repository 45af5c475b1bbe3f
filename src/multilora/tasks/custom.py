"""A user's own data: JSON or JSONL records rendered by the recipe's Jinja2 templates, in a sandbox."""

from __future__ import annotations

from collections.abc import Iterator

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.exceptions import UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from multilora.errors import DataError
from multilora.recipe import TaskSection
from multilora.tasks.base import Example, choice_example, free_example
from multilora.tasks.from_records import RecordTask
from multilora.tasks.source import Record, Source


def _no_null(value: object) -> object:
    if value is None:
        raise TemplateError("a field it uses is null")
    return value


_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False, finalize=_no_null)


class CustomTask(RecordTask):
    """Prompt and response are templates over a record's fields.

    With `choices`, the rendered response must be one of them. `metric` defaults to accuracy with choices and to
    exact_match without; `none` leaves the loss alone as score.

    Raises:
        DataError: a template is not valid Jinja2.
    """

    def __init__(self, section: TaskSection) -> None:
        if section.path is None or section.prompt is None or section.response is None:
            raise DataError(f"task {section.name!r} needs path, prompt and response")
        metric = section.metric or ("accuracy" if section.choices else "exact_match")
        super().__init__(section.name, metric, Source(section.path, section.eval_path), section.holdout)
        self.choices = section.choices
        self.prompt = self._compile("prompt", section.prompt)
        self.response = self._compile("response", section.response)

    def _compile(self, which: str, text: str) -> Template:
        try:
            return _ENVIRONMENT.from_string(text)
        except TemplateError as error:
            raise DataError(f"task {self.name!r}: the {which} template is not valid Jinja2: {error}") from None

    def examples(self, record: Record, where: str) -> Iterator[Example]:
        """One example; DataError if a template names a missing field or the response is not a choice."""
        texts = []
        for which, template in (("prompt", self.prompt), ("response", self.response)):
            try:
                texts.append(template.render(record).strip())
            except UndefinedError as error:
                fields = ", ".join(map(repr, record))
                raise DataError(f"{where}: the {which} template: {error}; the record has {fields}") from None
            except TemplateError as error:
                raise DataError(f"{where}: the {which} template: {error}") from None
        prompt, response = texts
        if self.choices is None:
            yield free_example(prompt, response, response)
            return
        if response not in self.choices:
            raise DataError(f"{where}: response {response!r} is none of the choices {self.choices}")
        yield choice_example(prompt, list(self.choices), self.choices.index(response))
