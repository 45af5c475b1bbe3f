"""Recipes in Python accept paths, records, datasets, data frames and models; their run is that of the same in files."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path

import pytest
import torch
import yaml
from conftest import make_llama, numbered
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

import multilora
from multilora.errors import RecipeError, RunDirectoryError
from multilora.recipe.in_memory import data_folder
from multilora.recipe.loaded_model import models_folder
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


@pytest.fixture
def with_model(recipe, tokenizer):
    """The recipe of `conftest` with its model in memory."""
    return {**recipe, "model": {"name_or_path": make_llama(), "tokenizer": tokenizer}}


def test_a_model_in_memory_is_trained_as_from_its_folder(recipe, with_model):
    model = with_model["model"]["name_or_path"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = [line["loss"] for line in multilora.train(recipe).metrics if "loss" in line]
    run = multilora.train(with_model, [f"output_dir={recipe['output_dir']}-in-memory"])
    assert [line["loss"] for line in run.metrics if "loss" in line] == losses
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert run.recipe.model.dtype == "float32"  # the model's


def test_a_run_keeps_its_base(with_model, tmp_path):
    run = multilora.train(with_model)
    shutil.rmtree(models_folder())
    assert Path(run.recipe.model.name_or_path).parent == run.path / "base"
    options = {"template": "instruction", "dtype": "float32", "max_new_tokens": 4}  # its config names the base
    (answer,) = multilora.generate(run.path / "adapter", ["is 3 even?"], **options)
    assert answer.text == run.generate(["is 3 even?"], max_new_tokens=4)[0].text
    multilora.export_lora(run, tmp_path / "lora")
    assert multilora.train(with_model, resume=True).path == run.path
    with torch.no_grad():
        with_model["model"]["name_or_path"].lm_head.weight.mul_(2)
    with pytest.raises(RunDirectoryError, match=r"model\.name_or_path: was .*LlamaForCausalLM-.* is .*ForCausalLM-"):
        multilora.train(with_model, resume=True)


def test_a_model_in_memory_is_named_after_its_content(recipe, with_model):
    path = multilora.Recipe.load(with_model).model.name_or_path
    assert path == multilora.Recipe.load(with_model).model.name_or_path  # named after its content
    assert Path(path).name.startswith("LlamaForCausalLM-")
    assert [item.name for item in models_folder().iterdir() if item.name.startswith(".")] == []
    assert multilora.plan(with_model).as_dict() == multilora.plan(recipe).as_dict()


def test_models_that_no_folder_can_hold(recipe, with_model, tokenizer):
    class Own(LlamaForCausalLM):
        pass

    for model, message in (
        (get_peft_model(make_llama(), LoraConfig(r=2)), r"has an adapter.*adapter\.init_from"),
        (torch.nn.Linear(2, 2), "expected a model of transformers"),
        (make_llama().model, "a saved LlamaConfig is loaded as LlamaForCausalLM"),
        (Own(make_llama().config), "is a Own in memory, and a saved LlamaConfig is loaded as LlamaForCausalLM"),
    ):
        with_model["model"]["name_or_path"] = model
        with pytest.raises(RecipeError, match=message):
            multilora.plan(with_model)
    for section in (make_llama(), {"name_or_path": make_llama()}):
        with pytest.raises(RecipeError, match="without its tokenizer; give both"):
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
