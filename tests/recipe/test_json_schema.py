"""The JSON Schema accepts what `Recipe.load` accepts, and refuses a misspelt key."""

from __future__ import annotations

import json
from importlib.metadata import version

import jsonschema
import pytest
import yaml
from conftest import REPOSITORY

from multilora.recipe import Recipe
from multilora.recipe.json_schema import recipe_json_schema

RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
SHIPPED = REPOSITORY / "recipes" / "recipe.schema.json"


@pytest.fixture(scope="module")
def validator():
    schema = recipe_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def problems(validator, values):
    return [error.message for error in validator.iter_errors(values)]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid_and_name_the_schema(path, validator):
    text = path.read_text(encoding="utf-8")
    assert problems(validator, yaml.safe_load(text)) == []
    first = text.splitlines()[0]
    assert first == f"# yaml-language-server: $schema={SHIPPED.name}"
    assert (path.parent / first.rpartition("=")[2]).is_file()


def test_the_shipped_schema_is_what_the_verb_prints(monkeypatch, capsys):
    pinned = dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().split() if "==" in line)
    for package in ("transformers", "peft", "pydantic"):
        if version(package) != pinned[package]:
            pytest.skip(f"{package} is {version(package)}, the shipped schema is of {pinned[package]}")
    from multilora.cli import main

    monkeypatch.setattr("sys.argv", ["multilora", "schema"])
    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr().out
    assert printed == SHIPPED.read_text(encoding="utf-8"), "run `multilora schema > recipes/recipe.schema.json`"


@pytest.mark.parametrize(
    ("change", "valid"),
    [
        ({}, True),
        ({"model": "nano"}, True),
        ({"adapter": {"r": 4, "num_branches": 2}}, True),
        ({"adapter": {"method": "lora", "r": 4, "use_dora": True}}, True),
        ({"adapter": {"method": "full"}}, True),
        ({"training": {"learning_rate": "1e-3", "lr_scheduler_type": "linear", "max_steps": 3}}, True),
        ({"mixtur": {}}, False),
        ({"mixture": {"strategie": "equal"}}, False),
        ({"mixture": {"strategy": "even"}}, False),
        ({"data": {"packing": "perhaps"}}, False),
        ({"adapter": {"num_branch": 2}}, False),
        ({"adapter": {"method": "multilora", "rank": 2}}, False),
        ({"adapter": {"method": "lora", "num_branches": 2}}, False),
        ({"adapter": {"method": "full", "r": 2}}, False),
        ({"adapter": {"method": "full", "init_from": "runs/first"}}, False),
        ({"adapter": {"method": "multiloar"}}, False),
        ({"adapter": {"method": "adalora"}}, False),
        ({"adapter": {"method": "prefix_tuning"}}, False),
        ({"training": {"lerning_rate": 1e-3}}, False),
        ({"training": {"output_dir": "x"}}, False),
        ({"training": {"lr_scheduler_type": "liner"}}, False),
        ({"training": {"learning_rate": "fast"}}, False),
        ({"tasks": []}, False),
    ],
)
def test_it_agrees_with_loading(change, valid, recipe, validator):
    values = {**recipe, **change}
    assert (problems(validator, json.loads(json.dumps(values))) == []) is valid
    if valid:
        Recipe.load(values)
    else:
        with pytest.raises(ValueError, match="problem"):
            Recipe.load(values)


def test_every_key_of_ours_says_what_it_is():
    schema = recipe_json_schema()
    sections = {name: item["properties"] for name, item in schema["$defs"].items() if "properties" in item}
    undescribed = [
        f"{section}.{key}"
        for section, keys in sections.items()
        for key, item in keys.items()
        if "description" not in item
    ]
    assert undescribed == []
