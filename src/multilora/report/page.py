"""A page as data: sections of text, tables, charts and texts to unfold; and its rendering to one HTML file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined

from multilora.charts.chart import Chart
from multilora.files import to_json

BUNDLE = ("vega.min.js", "vega-lite.min.js", "vega-embed.min.js")


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Heading:
    """The title of a part of a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows.

    caption: what the rows are, with units
    columns: names
    rows: texts, one per column
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    kind: ClassVar[str] = "facts"
    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Figure:
    """A chart with its data."""

    kind: ClassVar[str] = "figure"
    chart: Chart


@dataclass(frozen=True)
class Unfold:
    """A long text that the reader can unfold."""

    kind: ClassVar[str] = "unfold"
    title: str
    text: str


@dataclass(frozen=True)
class Answer:
    """What a model answered, with a score if there is one, and the loss of each token of the correct answer.

    who: which model
    text: its answer
    score: in words; empty if there is none
    tokens: (text, nats) of the correct answer; empty if they were not computed
    """

    who: str
    text: str
    score: str = ""
    tokens: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True)
class Example:
    """A question with the answers of several models.

    kind_of_change: such as `now right`
    prompt: what the models read
    reference: the correct answer
    answers: side by side
    """

    kind: ClassVar[str] = "example"
    kind_of_change: str
    prompt: str
    reference: str
    answers: Sequence[Answer]


Block = Text | Heading | Table | Facts | Figure | Unfold | Example


@dataclass(frozen=True)
class Section:
    """A part of a page with a title."""

    title: str
    blocks: list[Block] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The anchor of the section."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Page:
    """A report.

    title: such as `Run r1`
    subtitle: one sentence
    sections: in order; those without blocks are left out
    """

    title: str
    subtitle: str
    sections: list[Section]

    @property
    def charts(self) -> list[Chart]:
        """All charts of the page."""
        return [block.chart for section in self.sections for block in section.blocks if isinstance(block, Figure)]

    def html(self) -> str:
        """The page as one HTML file with styles, scripts and data inside."""
        environment = Environment(
            loader=PackageLoader("multilora.report"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        specifications = {chart.name: chart.specification() for chart in self.charts}
        templates = files("multilora.report") / "templates"
        return environment.get_template("report.html.jinja").render(
            page=self,
            sections=[section for section in self.sections if section.blocks],
            style=(templates / "report.css").read_text(encoding="utf-8"),
            script=(templates / "report.js").read_text(encoding="utf-8"),
            bundle=[_vendored(name) for name in BUNDLE] if self.charts else [],
            # No sequence of characters in the data may end the script.
            data=to_json(specifications, indent=None).replace("<", "\\u003c"),
        )


def _vendored(name: str) -> str:
    text = (files("multilora.charts") / "vendor" / name).read_text(encoding="utf-8")
    return re.sub(r"\n//# sourceMappingURL=.*", "", text)  # a browser would look for it
