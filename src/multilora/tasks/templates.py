"""Jinja2 templates over the fields of a record, in a sandbox with limits on time and size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from jinja2 import StrictUndefined, TemplateError, Undefined, nodes
from jinja2.exceptions import UndefinedError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from multilora.errors import DataError, RecordError
from multilora.tasks.readers import Record

# Limits per record, far above what any model can read.
MAX_ITERATIONS = 1_000_000
MAX_CHARACTERS = 10_000_000

# Dates and decimals come from parquet. An undefined value raises its own error when it is printed.
_PRINTABLE = (str, int, float, Decimal, date, time, timedelta, UUID, Undefined)

_iterations: ContextVar[int] = ContextVar("iterations")


def _printable(value: object) -> object:
    """Reject values that a template should not print: all but text and numbers."""
    if value is None:
        raise TemplateError("a field it uses is null")
    if isinstance(value, bool):
        raise TemplateError(
            f"it prints {value}, a JSON boolean; write {{{{ 'yes' if field else 'no' }}}}, or quote the data"
        )
    if isinstance(value, list | tuple | dict):
        kind = "an object" if isinstance(value, dict) else "a list"
        raise TemplateError(
            f"it prints {kind} ({str(value)[:40]}...); name one of its items, or use | join or | tojson"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise TemplateError(f"it prints {value}, which is not a number; fix the data")
    if not isinstance(value, _PRINTABLE):
        kind = "a function; call it with ()" if callable(value) else f"a {type(value).__name__}; convert it to text"
        raise TemplateError(f"it prints {kind}")
    return value


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    """Yield the items of a loop; fails if the loops of a record together exceed the limit."""
    for item in items:
        count = _iterations.get() + 1
        if count > MAX_ITERATIONS:
            raise TemplateError(f"its loops take more than {MAX_ITERATIONS:,} steps for one record")
        _iterations.set(count)
        yield item


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        size = max((len(side) for side in (left, right) if hasattr(side, "__len__")), default=0)
        count = max((side for side in (left, right) if isinstance(side, int)), default=0)
        if operator == "*" and size * count > MAX_CHARACTERS:
            raise TemplateError(f"it repeats something to more than {MAX_CHARACTERS:,} characters")
        if operator == "**" and isinstance(right, int) and right > 1000:
            raise TemplateError(f"it raises a number to the power of {right}")
        return super().call_binop(context, operator, left, right)


_ENVIRONMENT = _Environment(undefined=StrictUndefined, autoescape=False, finalize=_printable)
_ENVIRONMENT.filters["counted"] = _counted


class FieldTemplate:
    """One template of a task.

    Args:
        task: name of the task, for errors
        key: the template's key in the recipe, for errors
        text: the template

    Raises:
        DataError: the template is not valid Jinja2.
    """

    def __init__(self, task: str, key: str, text: str) -> None:
        self.key = key
        try:
            tree = _ENVIRONMENT.parse(text)
            for loop in tree.find_all(nodes.For):
                loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None)
            self.template = _ENVIRONMENT.from_string(tree)
        except (TemplateError, SyntaxError, MemoryError, RecursionError) as error:  # Python limits nested blocks
            raise DataError(
                f"task {task!r}: the {key} template is not valid Jinja2: {error} (in {text[:200]!r}); fix it"
            ) from None

    def render(self, record: Record, where: str) -> str:
        """Render the template for a record and strip the text.

        Raises:
            RecordError: a field is missing or null, or the template fails on this record.
        """
        try:
            _iterations.set(0)
            text = self.template.render(record).strip()
            if len(text) > MAX_CHARACTERS:
                raise TemplateError(f"it renders {len(text):,} characters, expected at most {MAX_CHARACTERS:,}")
            text.encode()
            return text
        except UndefinedError as error:
            fields = ", ".join(map(repr, record))
            raise RecordError(
                f"{where}: the {self.key} template: {error}; the record has {fields}", "missing field"
            ) from None
        except UnicodeEncodeError as error:
            raise RecordError(
                f"{where}: the {self.key} template: it prints {error.object[error.start]!r}, half of a character "
                "(a lone surrogate); fix the data",
                "not Unicode",
            ) from None
        except Exception as error:  # the methods and filters that a template calls may raise anything
            reason = "null field" if "is null" in str(error) else "template fails"
            message = str(error) or f"{type(error).__name__}; its text is too long"
            raise RecordError(f"{where}: the {self.key} template: {message}", reason) from None
