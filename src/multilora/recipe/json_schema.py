"""The JSON Schema of a recipe, for editors: our keys, and those of `TrainingArguments` and the adapter methods."""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import TypeAdapter

from multilora.methods import FULL, config_classes, option_names, unsupported_methods
from multilora.recipe.schema import AdapterSection, RecipeSchema
from multilora.recipe.training_keys import FIXED, field_types

DIALECT = "https://json-schema.org/draft/2020-12/schema"
# Set by PEFT or by us; not for a recipe.
_INTERNAL = {"peft_type", "task_type", "auto_mapping", "peft_version", "inference_mode", "base_model_name_or_path"}


def recipe_json_schema() -> dict[str, Any]:
    """The schema with what the installed transformers and PEFT accept; a misspelt key is invalid against it."""
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
        described = TypeAdapter(annotation).json_schema()
        # The values of an enum stand in place of a reference to its definition.
        definitions = described.pop("$defs", {})
        if "$ref" in described:
            described = definitions[described["$ref"].rpartition("/")[2]]
        properties[name] = described
        if described.get("type") == "number":
            # YAML 1.1 reads 1e-3 as text; it is accepted.
            properties[name] = {"anyOf": [described, {"type": "string", "pattern": r"^[+-]?\d*\.?\d*([eE][+-]?\d+)?$"}]}
    return properties


def _adapter_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The adapter section: which options there are depends on the method."""
    methods = sorted(name for name in [*config_classes(), FULL] if name not in unsupported_methods())
    method = {**schema["properties"]["method"], "enum": methods}
    cases = []
    for name in methods:
        options = {key: _option(name, key) for key in option_names(name) if key not in _INTERNAL}
        cases.append(
            {
                "if": _is_method(name),
                "then": {"properties": {"method": True, **options}, "additionalProperties": False},
            }
        )
    return {**schema, "properties": {"method": method}, "allOf": cases}


def _is_method(name: str) -> dict[str, Any]:
    condition: dict[str, Any] = {"properties": {"method": {"const": name}}}
    if name != AdapterSection.model_fields["method"].default:
        condition["required"] = ["method"]
    return condition


def _option(method: str, key: str) -> Any:
    """What PEFT says of an option, if anything; its types are checked when the recipe is loaded."""
    if method == FULL:
        return True
    fields = {item.name: item for item in dataclasses.fields(config_classes()[method])}
    text = fields[key].metadata.get("help")
    # PEFT has help texts that are tuples, by a stray comma.
    return {"description": text if isinstance(text, str) else "".join(text)} if text else True
