"""Recipes in Python accept paths, records, datasets and data frames; their run is that of the same data in files."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path

import pytest
import yaml
from conftest import make_llama, numbered
from datasets import Dataset

import multilora
from multilora.errors import RecipeError, RunDirectoryError
from multilora.recipe.in_memory import data_folder
from multilora.tasks.readers import read_records


def records_of(path):
    return [record for _, record in read_records(Path(path))]


@pytest.fixture
def with_records(recipe):
    """The recipe of `conftest` with the records of its first task instead of their file."""
    tasks = [{**recipe["tasks"][0], "path": records_of(recipe["tasks"][0]["path"])}, *recipe["tasks"][1:]]
    return {**recipe, "tasks": tasks}


def form_of(kind, records):
    return {
        "list": lambda: records,
        "dataset": lambda: Dataset.from_list(records),
        "frame": lambda: Dataset.from_list(records).to_pandas(),
    }[kind]()


@pytest.mark.parametrize("kind", ["list", "dataset", "frame"])
def test_the_plan_is_that_of_the_file(kind, recipe, with_records):
    with_records["tasks"][0]["path"] = form_of(kind, with_records["tasks"][0]["path"])
    plan, of_file = multilora.plan(with_records), multilora.plan(recipe)
    assert plan.as_dict() == of_file.as_dict()
    assert plan.rendered("even") == of_file.rendered("even")
    path = multilora.Recipe.load(with_records).tasks[0].path
    assert path == multilora.Recipe.load(with_records).tasks[0].path  # named after its content
    assert Path(path).name.startswith({"list": "list-of-40-records-", "dataset": "dataset-of-40-rows-"}.get(kind, kind))


def test_a_run_keeps_its_data(with_records):
    run = multilora.train(with_records)
    saved = yaml.safe_load((run.path / "recipe.yaml").read_text())
    path = Path(saved["tasks"][0]["path"])
    assert path.parent == run.path / "data"
    assert records_of(path) == with_records["tasks"][0]["path"]
    shutil.rmtree(data_folder())
    first = multilora.evaluate(run)
    assert multilora.train(with_records, resume=True).path == run.path
    assert multilora.evaluate(run) == first
    with_records["tasks"][0]["path"] = with_records["tasks"][0]["path"][:-1]
    with pytest.raises(RunDirectoryError, match=r"tasks\.0\.path: was .*-40-records-.* is .*-39-records-"):
        multilora.train(with_records, resume=True)


def test_paths(recipe, tmp_path):
    recipe["output_dir"] = Path(recipe["output_dir"])
    recipe["model"]["name_or_path"] = Path(recipe["model"]["name_or_path"])
    recipe["tasks"][1]["path"] = Path(recipe["tasks"][1]["path"])
    assert multilora.Recipe.load(recipe).output_dir == str(recipe["output_dir"])


def test_records_that_no_file_can_hold(with_records):
    with_records["tasks"][0]["path"] = [{"question": "a", "answer": "yes"}, {"question": date(2020, 1, 1)}]
    with pytest.raises(RecipeError, match=r"tasks\.0\.path: record 1 is not JSON .*date"):
        multilora.plan(with_records)
    with_records["tasks"][0]["path"] = numbered({"question": "a", "answer": "maybe"}, 3)
    with pytest.raises(multilora.InputError, match="'maybe' is not one of the choices"):
        multilora.plan(with_records)


def test_a_model_in_memory_is_refused(recipe):
    for section in (make_llama(), {"name_or_path": make_llama()}):
        with pytest.raises(RecipeError, match=r"is a LlamaForCausalLM in memory.*MultiTaskTrainer"):
            multilora.plan({**recipe, "model": section})


def test_frames(recipe):
    recipe["evaluation"]["max_examples"] = 3
    run = multilora.train(recipe)
    assert run.metrics_frame().loc[2, "loss"] == next(line["loss"] for line in run.metrics if line["step"] == 2)
    with pytest.raises(RunDirectoryError, match=r"has no eval\.json"):
        _ = run.scores
    evaluation = multilora.evaluate(run)
    assert run.scores["after"]["even"]["value"] == evaluation.after["even"].value
    frame = run.scores_frame()
    assert set(frame.index) == {(task, when) for task in ("echo", "even") for when in ("after", "before")}
    row = frame.loc[("even", "after")]
    assert (row["low"], row["high"]) == tuple(evaluation.after["even"].interval)
