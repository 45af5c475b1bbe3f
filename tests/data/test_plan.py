"""The plan of a recipe."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import write_jsonl

import multilora
from multilora.data.saved_plan import SavedPlan
from multilora.evaluation.score import evaluation_sets
from multilora.modeling import load_model_config
from multilora.training.prepare import plan_for, recipe_arguments


def test_proportional_shares_follow_sizes(recipe):
    plan = multilora.plan(recipe)
    even, echo = plan.summary()
    held_out = evaluation_sets(multilora.Recipe.load(recipe), 100)
    left = (40 - len(held_out["even"].examples), 24 - len(held_out["echo"].examples))
    assert (even.available, echo.available) == left
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


def test_training_and_held_out_examples_are_disjoint(recipe):
    from multilora.recipe import Recipe
    from multilora.tasks import make_task

    for section in Recipe.load(recipe).tasks:
        task = make_task(section)
        train, held_out = set(task.load("train")["prompt"]), set(task.load("eval")["prompt"])
        assert train
        assert held_out
        assert not train & held_out


def test_the_recipe_determines_the_plan_and_the_seed_changes_it(recipe):
    first, second = multilora.plan(recipe), multilora.plan(recipe)
    assert first.table.equals(second.table)
    reseeded = multilora.plan(recipe, ["mixture.seed=1"])
    assert not first.table.equals(reseeded.table)


def test_dataset_items_are_the_examples_of_the_table(recipe):
    plan = multilora.plan(recipe)
    dataset = plan.dataset()
    assert len(dataset) == len(plan)
    for index in range(len(plan)):
        line = plan.table.slice(index, 1).to_pylist()[0]
        item = dataset[index]
        example = plan.tokenized[plan.task_names[line["task"]]].dataset[line["example"]]
        assert item["input_ids"] == example["input_ids"]
        assert len(item["input_ids"]) == line["tokens"]
        assert sum(label != -100 for label in item["labels"]) == line["trained_tokens"] > 0


def test_rendered_example_shows_the_trained_part(recipe):
    (prefix, prefix_trained), (response, response_trained) = multilora.plan(recipe).rendered("echo")
    assert (prefix_trained, response_trained) == (False, True)
    assert prefix.startswith("<s>### Instruction:\nsay item")
    assert prefix.endswith("### Response:\n")
    assert response.startswith("item")
    assert response.endswith("</s>")


def test_a_length_beyond_the_models_positions_is_rejected(recipe):
    with pytest.raises(multilora.errors.RecipeError, match=r"more than the 256 positions .* 256 or less"):
        multilora.plan(recipe, ["data.max_length=257"])


@pytest.mark.parametrize("unit", ["examples", "tokens", "trained_tokens"])
@pytest.mark.parametrize("strategy", ["proportional", "equal", "temperature", "weights"])
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("homogeneous", [False, True])
def test_actual_shares_match_the_requested_ones_within_one_row(recipe, unit, strategy, packing, homogeneous):
    recipe["mixture"] = {"strategy": strategy, "unit": unit, "homogeneous_batches": homogeneous}
    if strategy == "temperature":
        recipe["mixture"]["temperature"] = 3
    if strategy == "weights":
        recipe["tasks"][0]["weight"], recipe["tasks"][1]["weight"] = 1, 3
    recipe["data"]["packing"] = packing
    recipe["training"]["max_steps"] = 40
    plan = multilora.plan(recipe)
    assert plan.steps == 40
    assert plan.rows == 160
    columns = {name: plan.table[name].to_numpy() for name in plan.table.column_names}
    cost = np.ones(len(plan.table)) if unit == "examples" else columns[unit]
    # Largest cost of one row, or of one step if steps are homogeneous.
    block = columns["row"] // (plan.rows_per_step if homogeneous else 1)
    largest = np.bincount(block, weights=cost).max()
    for task, entry in enumerate(plan.summary()):
        task_cost = cost[columns["task"] == task].sum()
        assert entry.share == task_cost / cost.sum()
        assert abs(task_cost - entry.asked * cost.sum()) <= largest
    rows = np.bincount(columns["row"], weights=columns["tokens"])
    assert rows.max() <= plan.max_length
    if homogeneous:
        for step in range(40):
            assert len(set(columns["task"][columns["row"] // plan.rows_per_step == step])) == 1
    for task in range(2):  # every example comes n times before any comes n + 1 times
        for epoch in set(columns["epoch"][columns["task"] == task]):
            examples = columns["example"][(columns["task"] == task) & (columns["epoch"] == epoch)]
            assert len(set(examples)) == len(examples)


@pytest.mark.parametrize("packing", [False, True])
def test_an_epoch_has_every_example_and_repeats_some_only_to_fill_the_last_step(recipe, packing):
    recipe["training"].pop("max_steps")
    recipe["training"]["num_train_epochs"] = 1
    recipe["data"]["packing"] = packing
    plan = multilora.plan(recipe)
    columns = {name: plan.table[name].to_numpy() for name in plan.table.column_names}
    for task, entry in enumerate(plan.summary()):
        examples = columns["example"][(columns["task"] == task) & (columns["epoch"] == 0)]
        assert sorted(examples) == list(range(entry.available))
    repeated = (columns["epoch"] > 0).sum()
    assert repeated < plan.rows_per_step * (1 if not packing else columns["row"].size / plan.rows)


def test_totals_in_examples_and_tokens(recipe):
    recipe["training"].pop("max_steps")
    assert len(multilora.plan(recipe, ["mixture.total_examples=30"]).table) == 32  # full steps of 4
    plan = multilora.plan(recipe, ["mixture.total_tokens=3000", "mixture.unit=tokens"])
    tokens = plan.table["tokens"].to_numpy().sum()
    assert 3000 - 200 < tokens < 3000 + 4 * 128
    packed = multilora.plan(recipe, ["mixture.total_tokens=3000", "data.packing=true"])
    assert packed.table["tokens"].to_numpy().sum() >= 2900
    with pytest.raises(multilora.errors.RecipeError, match=r"mixture.total_examples and training.max_steps all set"):
        multilora.plan(recipe, ["mixture.total_examples=30", "training.max_steps=4"])


def test_shuffled_order_keeps_the_rows(recipe):
    recipe["data"]["packing"] = True
    plans = [multilora.plan(recipe, [f"mixture.order={order}"]) for order in ("balanced", "shuffled")]

    def rows(plan):
        table = plan.table.to_pandas() if hasattr(plan.table, "to_pandas") else None
        return [tuple(sorted(zip(group["task"], group["example"], strict=True))) for _, group in table.groupby("row")]

    balanced, shuffled = (rows(plan) for plan in plans)
    assert balanced != shuffled
    assert sorted(balanced) == sorted(shuffled)


def test_the_number_of_processes_does_not_change_the_plan(recipe, tmp_path, monkeypatch):
    records = [{"word": f"item{i}", "twice": f"item{i} {i}"} for i in range(5000)]
    recipe["tasks"][1]["path"] = str(write_jsonl(tmp_path / "many.jsonl", records))
    plans = []
    for processes in (1, 2):
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / f"cache{processes}"))
        plans.append(multilora.plan(recipe, [f"data.num_proc={processes}", "data.packing=true"]))
    assert plans[0].table.equals(plans[1].table)
    one, two = (plan.tokenized["echo"].dataset for plan in plans)
    assert one["input_ids"] == two["input_ids"]


def test_packed_items_contain_complete_segments_with_separate_positions(recipe):
    plan = multilora.plan(recipe, ["data.packing=true"])
    dataset = plan.dataset()
    assert len(dataset) == plan.rows
    columns = {name: plan.table[name].to_numpy() for name in plan.table.column_names}
    assert max(np.bincount(columns["row"])) > 1
    for row in range(plan.rows):
        item = dataset[row]
        lines = np.flatnonzero(columns["row"] == row)
        starts = [index for index, position in enumerate(item["position_ids"]) if position == 0]
        assert len(starts) == len(lines)
        for line, start, end in zip(lines, starts, [*starts[1:], len(item["input_ids"])], strict=True):
            example = plan.tokenized[plan.task_names[columns["task"][line]]].dataset[int(columns["example"][line])]
            assert item["input_ids"][start:end] == example["input_ids"]
            assert item["position_ids"][start:end] == list(range(end - start))
            assert set(item["task_ids"][start:end]) == {columns["task"][line]}
            assert item["labels"][start] == -100  # not predicted from the preceding segment


def test_a_changed_plan_differs_from_the_saved_one(recipe, tmp_path):
    plan = multilora.plan(recipe)
    plan.save(tmp_path / "plan")
    saved = SavedPlan.load(tmp_path / "plan")
    saved.check_same(multilora.plan(recipe).made_from)
    assert saved.table.equals(plan.table)
    with pytest.raises(multilora.errors.RunDirectoryError, match=r"mixture.seed: was 0, is 1"):
        saved.check_same(multilora.plan(recipe, ["mixture.seed=1"]).made_from)
    with open(recipe["tasks"][1]["path"], "a") as file:
        file.write('{"word": "new", "twice": "new new"}\n')
    with pytest.raises(multilora.errors.RunDirectoryError, match=r"tokens.echo: was"):
        saved.check_same(multilora.plan(recipe).made_from)


def test_a_damaged_table_is_refused(recipe, tmp_path):
    multilora.plan(recipe).save(tmp_path / "plan")
    table = tmp_path / "plan" / "plan.arrow"
    content = bytearray(table.read_bytes())
    content[len(content) // 2] ^= 1
    table.write_bytes(content)
    with pytest.raises(multilora.errors.RunDirectoryError, match=r"the checksum of plan.arrow is wrong"):
        SavedPlan.load(tmp_path / "plan")


LENGTHS = {
    "steps": ("training.max_steps=7", "training.max_steps=19", "training.max_steps=40"),
    "epochs": ("training.num_train_epochs=0.6", "training.num_train_epochs=1.5", "training.num_train_epochs=4"),
    "tokens": ("mixture.total_tokens=900", "mixture.total_tokens=1500", "mixture.total_tokens=4000"),
}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("homogeneous", ["true", "false"])
@pytest.mark.parametrize("packing", ["true", "false"])
@pytest.mark.parametrize("unit", ["examples", "tokens"])
@pytest.mark.parametrize("order", ["balanced", "shuffled"])
def test_an_extended_plan_begins_with_the_earlier_one_and_continues_its_draws(
    recipe, tmp_path, length, homogeneous, packing, unit, order
):
    del recipe["training"]["max_steps"]
    options = [
        *(f"mixture.homogeneous_batches={homogeneous}", f"data.packing={packing}", f"mixture.unit={unit}"),
        *(f"mixture.order={order}", "mixture.strategy=equal"),
    ]
    loaded = multilora.Recipe.load(recipe, [*options, LENGTHS[length][0]])
    plan = plan_for(loaded, load_model_config(loaded.model), recipe_arguments(loaded))
    ends = [plan.steps]
    for setting in LENGTHS[length][1:]:
        plan.save(tmp_path / "plan")
        saved = SavedPlan.load(tmp_path / "plan")
        loaded = multilora.Recipe.load(recipe, [*options, setting])
        config, arguments = load_model_config(loaded.model), recipe_arguments(loaded)
        extended = plan_for(loaded, config, arguments, saved)
        assert extended.table.slice(0, saved.table.num_rows).equals(plan.table)
        assert extended.rows == extended.steps * extended.rows_per_step
        assert extended.extended_at == tuple(ends)
        again = plan_for(loaded, config, arguments, saved)
        assert again.table.equals(extended.table)
        extended.save(tmp_path / "plan")
        resumed = plan_for(loaded, config, arguments, SavedPlan.load(tmp_path / "plan"))
        assert resumed.table.equals(extended.table)
        assert resumed.extended_at == extended.extended_at
        plan = extended
        ends.append(plan.steps)
    rows = np.sort(np.unique(plan.table["row"].to_numpy()))
    assert (rows == np.arange(plan.rows)).all()
    for index, name in enumerate(plan.task_names):  # every example once before any comes again
        of_task = plan.table["task"].to_numpy() == index
        counts = np.bincount(plan.table["example"].to_numpy()[of_task], minlength=len(plan.tokenized[name]))
        assert counts.max() - counts.min() <= 1
        assert plan.table["epoch"].to_numpy()[of_task].max() == counts.max() - 1
    if homogeneous == "true":
        for step in range(plan.steps):
            in_step = plan.table["row"].to_numpy() // plan.rows_per_step == step
            assert len(set(plan.table["task"].to_numpy()[in_step])) == 1


def test_a_plan_cannot_be_shortened(recipe, tmp_path):
    multilora.plan(recipe, ["training.max_steps=5"]).save(tmp_path / "plan")
    loaded = multilora.Recipe.load(recipe, ["training.max_steps=4"])
    with pytest.raises(multilora.errors.RunDirectoryError, match=r"has 5 steps, and a run can be extended but not"):
        plan_for(loaded, load_model_config(loaded.model), recipe_arguments(loaded), SavedPlan.load(tmp_path / "plan"))
