"""Jinja2 templates over the fields of a record, in a sandbox."""

from __future__ import annotations

from jinja2 import StrictUndefined, TemplateError
from jinja2.exceptions import UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from multilora.errors import DataError, RecordError
from multilora.tasks.readers import Record


def _no_null(value: object) -> object:
    if value is None:
        raise TemplateError("a field it uses is null")
    return value


_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False, finalize=_no_null)


class FieldTemplate:
    """One template of a task.

    Args:
        task: name of the task, for messages
        which: the recipe's key, for messages
        text: the template

    Raises:
        DataError: not valid Jinja2.
    """

    def __init__(self, task: str, which: str, text: str) -> None:
        self.which = which
        try:
            self.template = _ENVIRONMENT.from_string(text)
        except TemplateError as error:
            raise DataError(
                f"task {task!r}: the {which} template is not valid Jinja2: {error} (in {text!r}); mend it"
            ) from None

    def render(self, record: Record, where: str) -> str:
        """The text for a record, white space at both ends left out.

        Raises:
            RecordError: it names a missing field, uses one that is null, or fails on this record.
        """
        try:
            return self.template.render(record).strip()
        except UndefinedError as error:
            fields = ", ".join(map(repr, record))
            raise RecordError(
                f"{where}: the {self.which} template: {error}; the record has {fields}", "missing field"
            ) from None
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            reason = "null field" if "is null" in str(error) else "template fails"
            raise RecordError(f"{where}: the {self.which} template: {error}", reason) from None
