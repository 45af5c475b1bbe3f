"""Evaluation during training: scores, forgetting, best weights, early stopping, all of it also after a resume."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import multilora
from multilora.errors import RecipeError, RunError
from multilora.training.callbacks.evaluate import summarise

OPTIONS = [
    "training.max_steps=8",
    "training.save_steps=2",
    "training.learning_rate=0.05",
    "evaluation.every=2",
    "evaluation.max_examples_during=6",
    "adapter.lora_dropout=0.1",
]


class FailAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            raise RuntimeError("power cut")


def lines(run):
    return [json.loads(line) for line in (run.path / "evaluations.jsonl").read_text().splitlines()]


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def same(weights, expected):
    return all(torch.equal(weights[key], value) for key, value in expected.items())


def test_every_task_is_scored_and_logged(recipe):
    run = multilora.train(recipe, OPTIONS)
    evaluations = lines(run)
    assert [line["step"] for line in evaluations] == [2, 4, 6, 8]
    logged = [line for line in run.metrics if "eval/macro" in line]
    assert [line["step"] for line in logged] == [2, 4, 6, 8]
    for line, flat in zip(evaluations, logged, strict=True):
        assert set(line["tasks"]) == {"even", "echo"}
        assert flat["eval/even/loss"] == line["tasks"]["even"]["loss"]
        assert flat["eval/even/accuracy"] == line["tasks"]["even"]["value"]
        assert line["compared"] == pytest.approx(sum(line["merits"].values()) / 2)
    best = {"even": -1.0, "echo": -1.0}
    for line in evaluations:
        for name, value in line["merits"].items():
            best[name] = max(best[name], value)
            assert line["forgotten"][name] == pytest.approx(best[name] - value)


def test_evaluation_does_not_change_training(recipe, tmp_path):
    with_evaluation = multilora.train(recipe, OPTIONS)
    without = multilora.train(recipe, [*OPTIONS, "evaluation.every=null", f"output_dir={tmp_path / 'without'}"])
    assert same(weights(with_evaluation.weights), weights(without.weights))
    losses = [
        {line["step"]: line["loss"] for line in run.metrics if "loss" in line} for run in (with_evaluation, without)
    ]
    assert losses[0] == losses[1]  # the log is unchanged, too
    assert list(losses[0]) == list(range(1, 9))


def test_the_best_weights_are_kept(recipe):
    run = multilora.train(recipe, [*OPTIONS, "evaluation.keep=best", "evaluation.best_by=echo"])
    evaluations = lines(run)
    best = max(reversed(evaluations), key=lambda line: line["merits"]["echo"])
    assert json.loads((run.path / f"best-{best['step']}" / "evaluation.json").read_text())["step"] == best["step"]
    assert run.training["weights_of_step"] == best["step"]
    assert same(weights(run.weights), weights(run.path / f"best-{best['step']}"))
    run.load_model()


def test_early_stopping(recipe):
    run = multilora.train(recipe, [*OPTIONS, "training.learning_rate=1e-12", "evaluation.patience=2"])
    assert [line["step"] for line in lines(run)] == [2, 4, 6]
    assert (run.training["steps"], run.training["planned_steps"]) == (6, 8)


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_a_resumed_run_makes_the_same_evaluations_and_decisions(recipe, tmp_path, stop):
    options = [*OPTIONS, "evaluation.keep=best", "training.save_steps=3"]
    uninterrupted = multilora.train(recipe, [*options, f"output_dir={tmp_path / 'uninterrupted'}"])
    with pytest.raises(RunError, match="power cut"):
        multilora.train(recipe, options, callbacks=[FailAt(stop)])
    resumed = multilora.train(recipe, options, resume=True)
    assert lines(resumed) == lines(uninterrupted)
    assert same(weights(resumed.weights), weights(uninterrupted.weights))


def test_values_that_evaluations_are_compared_by():
    values = {"a": 0.5, "b": 0.25, "c": -3.0}
    assert summarise(values, {"a", "b"}, "macro") == 0.375
    assert summarise(values, {"a", "b"}, "worst") == 0.25
    assert summarise(values, {"a", "b"}, "c") == -3.0
    assert summarise({"c": -3.0, "d": -1.0}, set(), "macro") == -2.0


def test_the_merit_of_a_task_without_a_metric_is_its_negative_loss():
    from multilora.evaluation.task_score import TaskScore

    score = TaskScore(metric="none", value=None, stderr=None, n=3, loss=2.5, truncated=0, dropped=0, metrics={})
    assert score.merit == -2.5


def test_settings_without_effect_raise(recipe):
    with pytest.raises(RecipeError) as caught:
        multilora.plan(recipe, ["evaluation={best_by: evne, keep: best, patience: 3}"])
    assert "evaluation.best_by: 'evne' is neither macro nor worst nor a task (did you mean 'even'?)" in str(
        caught.value
    )
    assert "evaluation.keep: has no effect without evaluation during training" in str(caught.value)
