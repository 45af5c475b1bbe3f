"""A chart: its data and how they are drawn, as a Vega-Lite specification for a page or for a file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Selector:
    """A choice of the reader: only the rows with the chosen value of a field are drawn.

    field: of the rows
    label: on the page
    options: values of the field
    every: name of an additional first option, which selects all rows; None if one value must be chosen
    default: the value at first; by default `every`, or the first option
    """

    field: str
    label: str
    options: list[Any]
    every: str | None = None
    default: Any = None

    @property
    def values(self) -> list[Any]:
        """What can be chosen, in order."""
        return ([] if self.every is None else [self.every]) + self.options

    @property
    def first(self) -> Any:
        """What is chosen at first."""
        return self.values[0] if self.default is None else self.default


@dataclass(frozen=True)
class Chart:
    """A chart with its data.

    name: of its files, and its id on a page
    title: a short sentence fragment
    description: what is drawn, for readers who cannot see it, with the units
    rows: the data, also offered as CSV
    view: `mark` and `encoding`, or `layer`, of Vega-Lite
    transform: of Vega-Lite, after the selectors
    selectors: choices of the reader on a page
    facet: field by whose values a file has one panel each, instead of a selector
    height: in pixels, of a page
    """

    name: str
    title: str
    description: str
    rows: Sequence[Row]
    view: Mapping[str, Any]
    transform: list[dict[str, Any]] = field(default_factory=list)
    selectors: list[Selector] = field(default_factory=list)
    facet: str | None = None
    height: int = 300

    def specification(self) -> dict[str, Any]:
        """The specification for a page: as wide as its container, with selectors."""
        return {
            "$schema": SCHEMA,
            "description": self.description,
            "width": "container",
            "height": self.height,
            "autosize": {"type": "fit", "contains": "padding"},
            "data": {"name": "table", "values": list(self.rows)},
            "params": [_parameter(item) for item in self.selectors],
            "transform": [*(_filter(item) for item in self.selectors), *self.transform],
            **self.view,
        }

    def figure(self) -> dict[str, Any]:
        """The specification for a file: fixed size, one panel per value of `facet`, selectors at their first values."""
        filters = [
            {"filter": {"field": item.field, "equal": item.first}}
            for item in self.selectors
            if item.field != self.facet and item.first != item.every
        ]
        values = [row[self.facet] for row in self.rows if row.get(self.facet) is not None] if self.facet else []
        shared = {
            "$schema": SCHEMA,
            "title": self.title,
            "description": self.description,
            "background": "white",
            "data": {"values": list(self.rows)},
            "transform": [*filters, *self.transform],
        }
        if len(set(values)) < 2:
            return {**shared, "width": 420, "height": self.height, **self.view}
        order = list(dict.fromkeys(values))
        facet = {"field": self.facet, "type": "nominal", "title": None, "sort": order}
        spec = {"width": 210, "height": 160, **self.view}
        return {**shared, "facet": facet, "columns": min(4, len(order)), "spec": spec}

    def csv(self) -> str:
        """The rows as CSV."""
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        file = io.StringIO()
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(dict(row) for row in self.rows)
        return file.getvalue()


def _parameter(selector: Selector) -> dict[str, Any]:
    binding = {"input": "select", "options": selector.values, "name": selector.label}
    return {"name": f"chosen_{selector.field}", "value": selector.first, "bind": binding}


def _filter(selector: Selector) -> dict[str, Any]:
    chosen = f"chosen_{selector.field}"
    same = f"datum[{selector.field!r}] === {chosen}"
    return {"filter": same if selector.every is None else f"{chosen} === {selector.every!r} || {same}"}
