"""The JSON Schema of recipes, for editors, including the keys of `TrainingArguments` and the adapter methods."""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import TypeAdapter

from multilora.methods import FULL, INTERNAL_OPTIONS, config_classes, option_names, unsupported_methods
from multilora.recipe.schema import AdapterSection, RecipeSchema
from multilora.recipe.training_keys import FIXED, field_types

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def recipe_json_schema() -> dict[str, Any]:
    """The schema for the installed versions of transformers and PEFT; it rejects misspelt keys."""
    schema = RecipeSchema.model_json_schema()
    properties, definitions = schema["properties"], schema["$defs"]
    properties["model"] = {
        "anyOf": [{"$ref": "#/$defs/ModelSection"}, {"type": "string", "description": "name_or_path"}],
        "description": properties["model"]["description"],
    }
    properties["training"] |= {"additionalProperties": False, "properties": _training_properties()}
    definitions["AdapterSection"] = _adapter_schema(definitions["AdapterSection"])
    return {"$schema": DIALECT, **schema, "title": "multilora recipe"}


def _training_properties() -> dict[str, Any]:
    properties = {}
    for name, annotation in field_types().items():
        if name in FIXED:
            continue
        value_schema = TypeAdapter(annotation).json_schema()
        # Inline the values of an enum instead of referring to its definition.
        definitions = value_schema.pop("$defs", {})
        if "$ref" in value_schema:
            value_schema = definitions[value_schema["$ref"].rpartition("/")[2]]
        properties[name] = value_schema
        if value_schema.get("type") == "number":
            # YAML 1.1 reads 1e-3 as text, which recipes accept as a number.
            properties[name] = {
                "anyOf": [value_schema, {"type": "string", "pattern": r"^[+-]?\d*\.?\d*([eE][+-]?\d+)?$"}]
            }
    return properties


def _adapter_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The adapter section, whose options depend on the method."""
    methods = sorted(name for name in [*config_classes(), FULL] if name not in unsupported_methods())
    method = {**schema["properties"]["method"], "enum": methods}
    cases = []
    for name in methods:
        options = {key: _option(name, key) for key in option_names(name) if key not in INTERNAL_OPTIONS}
        common = {"method": True} if name == FULL else {"method": True, "init_from": True}
        cases.append(
            {
                "if": _is_method(name),
                "then": {"properties": {**common, **options}, "additionalProperties": False},
            }
        )
    return {**schema, "properties": {**schema["properties"], "method": method}, "allOf": cases}


def _is_method(name: str) -> dict[str, Any]:
    condition: dict[str, Any] = {"properties": {"method": {"const": name}}}
    if name != AdapterSection.model_fields["method"].default:
        condition["required"] = ["method"]
    return condition


def _option(method: str, key: str) -> Any:
    """The schema of an option: PEFT's description, if any. Types are checked when the recipe is loaded."""
    if method == FULL:
        return True
    fields = {item.name: item for item in dataclasses.fields(config_classes()[method])}
    text = fields[key].metadata.get("help")
    # Some of PEFT's help texts are tuples because of a stray comma.
    return {"description": text if isinstance(text, str) else "".join(text)} if text else True
