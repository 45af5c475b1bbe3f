"""Extend a finished or stopped run by more steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_resume import CallAt, assert_same, fail, logged, weights

import multilora
from multilora.data.saved_plan import SavedPlan
from multilora.errors import RunDirectoryError, RunError
from multilora.recipe import Recipe
from multilora.runs.train import run_prepared
from multilora.training.prepare import prepare

SHORT = ["training.max_steps=6", "training.save_steps=3", "training.logging_steps=2", "adapter.lora_dropout=0.1"]
LONG = [*SHORT[1:], "training.max_steps=12"]
CONSTANT = ["training.lr_scheduler_type=constant", "training.warmup_steps=0"]


@pytest.mark.parametrize("packing", ["true", "false"])
@pytest.mark.parametrize("stop", [None, 4])
def test_an_extended_run_equals_an_uninterrupted_one_over_the_same_rows(recipe, tmp_path, packing, stop):
    options = [f"data.packing={packing}", *CONSTANT]
    if stop is None:
        multilora.train(recipe, [*SHORT, *options])
    else:
        with pytest.raises(RunError, match="power cut"):
            multilora.train(recipe, [*SHORT, *options], callbacks=[CallAt(stop, fail)])
    extended = multilora.train(recipe, [*LONG, *options], resume=True)
    assert extended.training["resumed_from_step"] == (3 if stop else 6)
    assert extended.training["steps"] == extended.training["planned_steps"] == 12
    path = tmp_path / "uninterrupted"
    loaded = Recipe.load(recipe, [*LONG, *options, f"output_dir={path}"])
    uninterrupted = run_prepared(prepare(loaded, saved=SavedPlan.load(extended.path / "plan")), path)
    for key, value in weights(uninterrupted).items():
        assert torch.equal(weights(extended)[key], value)
    without_epoch = [
        [
            {key: value for key, value in line.items() if key != "epoch"} for line in logged(run)
        ]  # a fraction of the plan
        for run in (extended, uninterrupted)
    ]
    assert without_epoch[0] == without_epoch[1]


@pytest.mark.parametrize("stop", [7, 8, 11])
def test_an_interrupted_extension_resumes(recipe, tmp_path, stop):
    multilora.train(recipe, [*SHORT, f"output_dir={tmp_path / 'other'}"])
    expected = multilora.train(recipe, [*LONG, f"output_dir={tmp_path / 'other'}"], resume=True)
    multilora.train(recipe, SHORT)
    with pytest.raises(RunError, match="power cut"):
        multilora.train(recipe, LONG, callbacks=[CallAt(stop, fail)], resume=True)
    with pytest.raises(RunDirectoryError, match="its training did not finish"):
        multilora.Run(recipe["output_dir"])
    with pytest.raises(RunDirectoryError, match="can be extended but not shortened"):
        multilora.train(recipe, SHORT, resume=True)
    assert_same(multilora.train(recipe, LONG, resume=True), expected)


def test_the_run_before_the_extension_is_kept_as_a_run(recipe):
    short = multilora.train(recipe, SHORT)
    before = weights(short)
    scores = multilora.evaluate(short).as_dict()
    extended = multilora.train(recipe, LONG, resume=True)
    assert not (extended.path / "eval.json").exists()  # of other weights
    kept = multilora.Run(extended.path / "before_extension" / "step-6")
    assert all(torch.equal(value, before[key]) for key, value in weights(kept).items())
    assert any(not torch.equal(value, before[key]) for key, value in weights(extended).items())
    assert kept.training["steps"] == 6
    assert json.loads((kept.path / "eval.json").read_text())["after"] == scores["after"]
    assert multilora.evaluate(kept).as_dict()["after"] == scores["after"]


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "constant"])
def test_the_consequence_for_the_learning_rate_is_reported_and_true(recipe, caplog, scheduler):
    options = [f"training.lr_scheduler_type={scheduler}", "training.logging_steps=1", "training.warmup_steps=0"]
    multilora.train(recipe, [*SHORT, *options])
    run = multilora.train(recipe, [*LONG, *options], resume=True)
    rates = {line["step"]: line["learning_rate"] for line in run.metrics if "learning_rate" in line}
    # A line's rate is that of its step, which is the schedule's value after the steps before it.
    full = {"linear": 0.5, "cosine": 0.5, "constant": 1.0}[scheduler] * 0.01
    assert rates[7] == pytest.approx(full)
    old = 0.01 if scheduler == "constant" else 0.0
    assert f"from 6 to 12 steps, continuing at step 6. The learning rate at that step changes from {old:.3g}" in (
        caplog.text
    )
    assert f"to {full:.3g} and follows the {scheduler} schedule of 12 steps" in caplog.text


def test_an_interruption_while_results_are_set_aside_is_repaired(recipe, tmp_path, monkeypatch):
    import multilora.runs.extend as module

    multilora.evaluate(multilora.train(recipe, SHORT))
    real, moved = module.os.replace, []

    def replace(source: Path, target: Path) -> None:
        if moved:
            raise KeyboardInterrupt
        moved.append(source)
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            module.set_results_aside(Path(recipe["output_dir"]), "multilora", 6)
    run = multilora.train(recipe, LONG, resume=True)
    assert run.training["steps"] == 12
    kept = multilora.Run(run.path / "before_extension" / "step-6")
    assert (kept.path / "eval.json").is_file()
    assert kept.training["steps"] == 6


def test_trackers_and_logging_may_change_on_resume(recipe):
    with pytest.raises(RunError, match="power cut"):
        multilora.train(recipe, SHORT, callbacks=[CallAt(4, fail)])
    run = multilora.train(recipe, [*SHORT, "training.logging_steps=1", "training.save_total_limit=5"], resume=True)
    assert run.training["resumed_from_step"] == 3
