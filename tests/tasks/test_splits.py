"""The validation split is carved out of the training data, and the evaluation split is never touched."""

from __future__ import annotations

import pytest
from conftest import write_jsonl

from multilora.errors import DataError
from multilora.evaluation.score import evaluation_sets
from multilora.nano.world import fact_base
from multilora.recipe import Recipe
from multilora.recipe.schema import TaskSection
from multilora.tasks.make import make_task
from multilora.tasks.splits import load_split


def task_of(path, **options):
    return make_task(TaskSection(name="own", path=str(path), prompt="{{ q }}", response="{{ a }}", **options))


def prompts(dataset):
    return list(dataset["prompt"])


@pytest.fixture
def records():
    return [{"q": f"question {i % 150}", "a": str(i)} for i in range(300)]


def test_the_splits_are_disjoint_and_complete(records, tmp_path):
    task = task_of(write_jsonl(tmp_path / "data.jsonl", records))
    everything, evaluation = prompts(task.load("train")), prompts(load_split(task, "eval", 0.2))
    train, validation = (load_split(task, split, 0.2) for split in ("train", "validation"))
    assert sorted([*prompts(train), *prompts(validation)]) == sorted(everything)
    assert not set(prompts(train)) & set(prompts(validation))  # each prompt is there twice
    assert evaluation == prompts(task.load("eval"))
    assert 0.1 < len(validation) / len(everything) < 0.3
    assert train._fingerprint != validation._fingerprint


def test_an_example_stays_in_its_split(records, tmp_path):
    few, many = (
        task_of(write_jsonl(tmp_path / f"{n}.jsonl", records[n:][::-1]), eval_path=str(tmp_path / "eval.jsonl"))
        for n in (100, 0)
    )
    kept = {record["q"] for record in records[100:]}
    of_few, of_many = (set(prompts(load_split(task, "validation", 0.2))) for task in (few, many))
    assert of_few == {text for text in of_many if text in kept}


def test_people_of_the_nano_facts_are_not_divided():
    task = make_task(TaskSection(name="nano/knowledge"))
    names = [person.name for person in fact_base()]

    def people(split):
        return {name for text in prompts(load_split(task, split, 0.2)) for name in names if name in text}

    train, validation, evaluation = people("train"), people("validation"), people("eval")
    assert train
    assert validation
    assert len(train | validation | evaluation) == len(train) + len(validation) + len(evaluation)


def test_one_prompt_cannot_be_divided(tmp_path):
    write_jsonl(tmp_path / "eval.jsonl", [{"q": "x", "a": "y"}])
    path = write_jsonl(tmp_path / "data.jsonl", [{"q": "same", "a": str(i)} for i in range(5)])
    task = task_of(path, eval_path=str(tmp_path / "eval.jsonl"))
    with pytest.raises(DataError, match=r"one prompt or are one cluster.*leave evaluation.validation_share out"):
        load_split(task, "train", 0.2)


def test_a_recipe_is_scored_on_its_split(recipe):
    loaded = Recipe.load(recipe, ["evaluation.validation_share=0.2", "evaluation.split=validation"])
    for section, chosen in zip(loaded.tasks, evaluation_sets(loaded, 100).values(), strict=True):
        expected = load_split(make_task(section), "validation", 0.2)
        assert [example["prompt"] for example in chosen.examples] == prompts(expected)
    with pytest.raises(ValueError, match=r"no validation split; set evaluation.validation_share"):
        Recipe.load(recipe, ["evaluation.split=validation"])
