"""A study file is checked as a whole; what defines a cell is in its id, and nothing else."""

from __future__ import annotations

import copy
import json
import shutil
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest
import yaml
from conftest import REPOSITORY, write_jsonl
from study_values import cells_of, study_values

from multilora.errors import RecipeError
from multilora.study.json_schema import study_json_schema
from multilora.study.load import Study
from multilora.study.search import all_cells

SHIPPED = REPOSITORY / "recipes" / "study.schema.json"
STUDIES = sorted((REPOSITORY / "recipes" / "studies").glob("*.yaml"))


@pytest.fixture
def values(model_folder, tmp_path):
    return study_values(model_folder, tmp_path / "data")


def changed(values, path, value):
    values = copy.deepcopy(values)
    *parents, last = path
    node = values
    for key in parents:
        node = node[key]
    node[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("method",), {}, r"method: unknown key \(did you mean 'methods'\?\)"),
        (("methods", "lora", "grids"), {}, r"methods.lora.grids: unknown key \(did you mean 'grid'\?\)"),
        (("methods", "lora", "adapter", "rank"), 2, "methods.lora: adapter.rank: method `lora` has no such option"),
        (("methods", "lora", "grid", "training.learning_rte"), [1, 2], "combinations, expected 2"),
        (("methods", "lora", "grid"), {"training.learning_rte": [1, 2]}, "methods.lora: training.learning_rte"),
        (("methods", "lora", "grid"), {"trainin.learning_rate": [1, 2]}, "expected the key of a section"),
        (("methods", "lora", "grid"), {"training.learning_rate": []}, "is empty; list the values to try"),
        (("methods", "lora", "grid"), {"training.learning_rate": [1, 1]}, "has a value twice"),
        (("methods", "lora", "grid"), {}, r"has 1 combinations, expected 2 \(search.trials\)"),
        (("search",), None, "there is no search; set search.trials"),
        (("search", "seeds"), [1], r"search.seeds: \[1\] are also in seeds"),
        (("seeds",), [3, 3], "3 is listed 2 times"),
        (("seeds",), [-1], "-1, expected whole numbers"),
        (("reference",), "lore", r"'lore' is not one of the methods lora, multilora \(did you mean 'lora'\?\)"),
        (("single_task",), "lore", r"single_task: 'lore' is not one of the methods lora, multilora \(did you mean"),
        (("forgetting", "path"), "gone.txt", "forgetting.path: no file"),
        (("forgetting", "path"), None, "forgetting.path: missing"),
        (("recipe", "data", "packin"), True, "recipe: data.packin: unknown key"),
        (("recipe",), "gone.yaml", "recipe: cannot be read"),
        (("methods", "full"), {"adapter": {"method": "full"}, "optimizer": {"scale_lr_factor": 2}}, "has no effect"),
    ],
)
def test_problems(values, path, value, message):
    with pytest.raises(RecipeError, match=message):
        Study.load(changed(values, path, value))


def test_all_problems_at_once(values):
    values = changed(values, ("reference",), "lore")
    values["seeds"] = [9]
    values["methods"]["lora"]["adapter"]["rank"] = 2
    with pytest.raises(RecipeError) as caught:
        Study.load(values)
    assert len(caught.value.problems) == 3


def test_one_task_alone_is_the_mixture(values):
    values["single_task"] = "lora"
    del values["recipe"]["tasks"][1]
    with pytest.raises(RecipeError, match="single_task: the recipe has one task"):
        Study.load(values)


def test_best_weights_need_a_validation_split(values):
    del values["search"]
    for method in values["methods"].values():
        del method["grid"]
    values["recipe"]["evaluation"] = {"every": 1, "keep": "best"}
    with pytest.raises(RecipeError, match=r"would choose by the evaluation split; set evaluation.validation_share"):
        Study.load(values)
    values["recipe"]["evaluation"]["validation_share"] = 0.2
    assert len(all_cells(cells_of(values))) == 5


def test_a_recipe_file_and_its_content_are_the_same_study(values, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values["recipe"]))
    by_path = {**values, "recipe": str(tmp_path / "recipe.yaml")}
    (tmp_path / "study.yaml").write_text(Study.load(by_path).dump_yaml())
    ids = [[cell.id for cell in all_cells(cells_of(source))] for source in (values, by_path, tmp_path / "study.yaml")]
    assert ids[0] == ids[1] == ids[2]
    assert len(ids[0]) == len(set(ids[0])) == 5


def test_ids_do_not_depend_on_places_names_and_logs(values, tmp_path):
    ids = [cell.id for cell in all_cells(cells_of(values))]
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    moved = json.loads(json.dumps(values).replace(str(tmp_path / "data"), str(tmp_path / "moved")))
    moved["recipe"]["training"]["logging_steps"] = 7
    moved["recipe"]["data"]["num_proc"] = 2
    moved["recipe"]["loss"] = {"interference_every": 5}
    moved["methods"] = {"other name": moved["methods"]["lora"], "multilora": moved["methods"]["multilora"]}
    moved["methods"]["multilora"]["grid"] = {"training.learning_rate": [0.001, 0.01]}  # texts before
    assert [cell.id for cell in all_cells(cells_of(moved))] == ids


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("recipe", "training", "max_steps"), 3),
        (("recipe", "evaluation", "validation_share"), 0.3),
        (("recipe", "model", "dtype"), "bfloat16"),
        (("recipe", "tasks", 0, "prompt"), "{{ question }}"),
        (("search", "seeds"), [10]),
    ],
    ids=str,
)
def test_ids_depend_on_what_changes_the_training(values, path, value):
    before, after = (
        {cell.id for cell in all_cells(cells_of(item)) if cell.stage != "base"}
        for item in (values, changed(values, path, value))
    )
    assert not before & after


def test_ids_depend_on_the_content_of_files(values, tmp_path):
    before = {cell.id for cell in all_cells(cells_of(values))}
    write_jsonl(tmp_path / "data" / "echo.jsonl", [{"word": "new", "twice": f"new {i}"} for i in range(30)])
    assert not before & {cell.id for cell in all_cells(cells_of(values))}


@pytest.fixture(scope="module")
def validator():
    schema = study_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_json_schema_agrees_with_loading(values, validator):
    assert list(validator.iter_errors(json.loads(json.dumps(values)))) == []
    for path in (("methods", "lora", "grids"), ("methods", "lora", "adapter", "rank"), ("recipe", "dat")):
        assert list(validator.iter_errors(changed(values, path, {})))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_studies_are_valid_and_name_the_schema(path, validator):
    text = path.read_text(encoding="utf-8")
    assert list(validator.iter_errors(yaml.safe_load(text))) == []
    first = text.splitlines()[0]
    assert (path.parent / Path(first.rpartition("=")[2])).resolve() == SHIPPED


@pytest.mark.parametrize("name", ["nano", "nano_muon", "nano_methods"])
def test_the_nano_studies_load(name):
    cells = cells_of(REPOSITORY / "recipes" / "studies" / f"{name}.yaml")
    assert len(all_cells(cells)) == 1 + 3 * len(cells.study.methods)


def test_the_shipped_schema_is_what_the_verb_prints(monkeypatch, capsys):
    pinned = dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().split() if "==" in line)
    for package in ("transformers", "peft", "pydantic"):
        if version(package) != pinned[package]:
            pytest.skip(f"{package} is {version(package)}, the shipped schema is of {pinned[package]}")
    from multilora.cli import main

    monkeypatch.setattr("sys.argv", ["multilora", "schema", "study"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out == SHIPPED.read_text(), "run `multilora schema study > recipes/study.schema.json`"
