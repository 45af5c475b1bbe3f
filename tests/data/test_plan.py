"""The plan of a recipe."""

from __future__ import annotations

import pytest

import multilora


def test_proportional_shares_follow_sizes(recipe):
    plan = multilora.plan(recipe)
    even, echo = plan.summary()
    # 40 and 24 records, a tenth of each held out.
    assert (even.available, echo.available) == (36, 22)
    assert (even.examples, echo.examples) == (10, 6)  # of 4 steps x 4 examples
    assert plan.steps == 4
    assert even.share == 10 / 16


def test_weights_override_sizes(recipe):
    recipe["mixture"] = {"strategy": "weights"}
    recipe["tasks"][0]["weight"], recipe["tasks"][1]["weight"] = 1, 3
    plan = multilora.plan(recipe)
    assert [entry.examples for entry in plan.summary()] == [4, 12]


def test_epochs_set_the_steps(recipe):
    recipe["training"].pop("max_steps")
    recipe["training"]["num_train_epochs"] = 2
    plan = multilora.plan(recipe)
    assert plan.steps == 29  # 2 x 58 examples in steps of 4
    assert [round(entry.epochs, 1) for entry in plan.summary()] == [2.0, 2.0]


def test_max_examples_caps_a_task(recipe):
    recipe["tasks"][0]["max_examples"] = 5
    assert multilora.plan(recipe).summary()[0].available == 5


def test_training_and_held_out_examples_are_apart(recipe):
    from multilora.recipe import Recipe
    from multilora.tasks import make_task

    for section in Recipe.load(recipe).tasks:
        task = make_task(section)
        train, held_out = set(task.load("train")["prompt"]), set(task.load("eval")["prompt"])
        assert train
        assert held_out
        assert not train & held_out


def test_same_recipe_same_plan_and_another_seed_another(recipe):
    first, second = multilora.plan(recipe), multilora.plan(recipe)
    assert first.table.equals(second.table)
    other = multilora.plan(recipe, ["mixture.seed=1"])
    assert not first.table.equals(other.table)


def test_lines_are_the_examples_the_table_names(recipe):
    plan = multilora.plan(recipe)
    dataset = plan.dataset()
    assert len(dataset) == len(plan)
    for line in range(len(plan)):
        row = plan.table.slice(line, 1).to_pylist()[0]
        item = dataset[line]
        source = plan.tokenized[plan.task_names[row["task"]]].dataset[row["example"]]
        assert item["input_ids"] == source["input_ids"]
        assert len(item["input_ids"]) == row["tokens"]
        assert sum(label != -100 for label in item["labels"]) == row["trained_tokens"] > 0


def test_rendered_example_shows_the_trained_part(recipe):
    (prefix, seen), (response, trained) = multilora.plan(recipe).rendered("echo")
    assert (seen, trained) == (False, True)
    assert prefix.startswith("<s>### Instruction:\nsay item")
    assert prefix.endswith("### Response:\n")
    assert response.startswith("item")
    assert response.endswith("</s>")


def test_a_length_beyond_the_models_positions_is_refused(recipe):
    with pytest.raises(multilora.errors.RecipeError, match="more than the 256 positions"):
        multilora.plan(recipe, ["data.max_length=257"])
