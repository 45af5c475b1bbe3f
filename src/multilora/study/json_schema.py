"""The JSON Schema of study files, for editors."""

from __future__ import annotations

from typing import Any

from multilora.recipe.json_schema import recipe_json_schema
from multilora.study.schema import StudySchema


def study_json_schema() -> dict[str, Any]:
    """The schema for the installed versions of transformers and PEFT; it rejects misspelt keys."""
    recipe = recipe_json_schema()
    schema = StudySchema.model_json_schema()
    definitions = {**schema["$defs"], **recipe["$defs"]}
    inline = {key: recipe[key] for key in ("type", "properties", "required", "additionalProperties")}
    definitions["Recipe"] = {**inline, "description": "the content of a recipe"}
    schema["properties"]["recipe"] = {
        "anyOf": [{"type": "string", "description": "path of a recipe"}, {"$ref": "#/$defs/Recipe"}],
        "description": schema["properties"]["recipe"]["description"],
    }
    method = definitions["MethodSection"]["properties"]
    for name, section in (("optimizer", "OptimizerSection"), ("loss", "LossSection")):
        method[name] = {"$ref": f"#/$defs/{section}", "description": method[name]["description"]}
    method["training"] = {**recipe["properties"]["training"], "description": method["training"]["description"]}
    return {"$schema": recipe["$schema"], **schema, "$defs": definitions, "title": "multilora study"}
