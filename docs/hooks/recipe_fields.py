"""Tables of every key of a recipe and of a study file, read from their pydantic schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from tables import table

from multilora.recipe.schema import RecipeSchema
from multilora.recipe.training_keys import FIXED
from multilora.study.schema import StudySchema

# What each section is called in the text, if its docstring is not enough -> more.
_MORE = {
    "AdapterSection": (
        "The options of `multilora` are the arguments of "
        "[`MultiLoraConfig`](python.md#multilora.MultiLoraConfig). Those of another method are the "
        "fields of its PEFT config ([which methods there are](methods.md)). `full` has none."
    ),
}
_TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "`true`, `false`",
    "object": "mapping",
}
_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def recipe_fields() -> str:
    """Every key of a recipe, as Markdown."""
    return "\n".join(_sections(RecipeSchema))


def study_fields() -> str:
    """Every key of a study file, as Markdown."""
    return "\n".join(_sections(StudySchema)).replace("(#adapter)", "(recipe.md#adapter)")


def fixed_training_keys() -> str:
    """The arguments of `TrainingArguments` that a recipe cannot set, and what to use instead."""
    return table(["key", "why"], [[f"`{name}`", why] for name, why in FIXED.items()])


def _sections(model: type[BaseModel]) -> Iterator[str]:
    schema = model.model_json_schema()
    yield table(["key", "value", "meaning"], list(_rows(schema)))
    for key, property_ in schema["properties"].items():
        name = _section(property_)
        if name is None:
            continue
        section = schema["$defs"][name]
        yield f"\n## `{key}`\n\n{_paragraph(section.get('description', ''))}\n"
        if name in _MORE:
            yield f"{_MORE[name]}\n"
        yield table(["key", "value", "meaning"], list(_rows(section)))


def _section(property_: Mapping[str, Any]) -> str | None:
    """The name of the section that a key holds: itself, each item of a list, or each value of a mapping."""
    inside = (property_.get("items"), property_.get("additionalProperties"), *property_.get("anyOf", ()))
    for inner in (property_, *inside):
        if isinstance(inner, dict) and "$ref" in inner:
            return str(inner["$ref"]).rpartition("/")[2]
    return None


def _rows(section: Mapping[str, Any]) -> Iterator[list[str]]:
    required = section.get("required", [])
    for key, property_ in section["properties"].items():
        value = _values(property_)
        if _section(property_) is not None:
            value = f"[{value}](#{key})"
        default = _default(property_, required=key in required)
        yield [f"`{key}`", value + (f"<br>{default}" if default else ""), property_.get("description", "")]


def _values(property_: Mapping[str, Any]) -> str:
    """What a key can be, in words."""
    if "enum" in property_:
        return ", ".join(f"`{value}`" for value in property_["enum"])
    if "anyOf" in property_:
        return " or ".join(_values(item) for item in property_["anyOf"] if item.get("type") != "null")
    name = _section(property_)
    if name is not None or property_.get("type") == "array":
        many = {"array": "list", "object": "mapping"}.get(property_.get("type", ""))
        return many or "section" if name else f"list of {_values(property_['items'])}s"
    words = _TYPES.get(property_.get("type", ""), "any value")
    bounds = [f"{text} {property_[key]:g}" for key, text in _BOUNDS.items() if key in property_]
    return words + (f", {' and '.join(bounds)}" if bounds else "")


def _default(property_: Mapping[str, Any], *, required: bool) -> str:
    if required:
        return "**required**"
    value = property_.get("default")
    if value is None or value == {}:
        return ""
    return f"default `{value if isinstance(value, str) else json.dumps(value)}`"


def _paragraph(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))
