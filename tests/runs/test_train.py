"""What a run does when it is resumed, started on the wrong machine, or asked for what cannot work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainingArguments

import multilora
from multilora.cli import main
from multilora.errors import InputError, RecipeError, RunDirectoryError, RunError
from multilora.modeling import load_base
from multilora.runs import train as train_module
from multilora.runs.writer import RunWriter
from multilora.training import prepare as prepare_module

EVALUATED = [
    "training.max_steps=6",
    "training.save_steps=3",
    "evaluation.every=2",
    "evaluation.keep=best",
    "evaluation.best_by=even",
    "evaluation.max_examples_during=4",
    "training.learning_rate=0.05",
]


class FailAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise RuntimeError("power cut")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], value) for key, value in second.items())


def force_scores(monkeypatch, values):
    """Let the evaluations during training score these values of `even`, one after the other."""
    values, real = iter(values), train_module.score_tasks

    def forced(*args, **kwargs):
        scores = real(*args, **kwargs)
        return {**scores, "even": dataclasses.replace(scores["even"], value=next(values))}

    monkeypatch.setattr(train_module, "score_tasks", forced)


def test_a_resumed_run_takes_up_the_best_weights_of_the_steps_it_keeps(recipe, tmp_path, monkeypatch):
    """Evaluations are not bit-exact on GPUs: the abandoned attempt's step 4 was the best, the second one's is not."""
    with monkeypatch.context() as patch:
        force_scores(patch, [0.5, 0.1, 0.2])
        uninterrupted = multilora.train(recipe, [*EVALUATED, f"output_dir={tmp_path / 'uninterrupted'}"])
    with monkeypatch.context() as patch:
        force_scores(patch, [0.5, 0.9])
        with pytest.raises(RunError, match="power cut"):
            multilora.train(recipe, EVALUATED, callbacks=[FailAfter(5)])
    assert (tmp_path / "run" / "best-4").is_dir()
    with monkeypatch.context() as patch:
        force_scores(patch, [0.1, 0.2])
        resumed = multilora.train(recipe, EVALUATED, resume=True)
    assert resumed.training["weights_of_step"] == uninterrupted.training["weights_of_step"] == 2
    assert_same_weights(resumed.weights, uninterrupted.weights)
    assert [path.name for path in resumed.path.glob("best-*")] == ["best-2"]


def test_missing_best_weights_are_reported(recipe, tmp_path, monkeypatch):
    import shutil

    force_scores(monkeypatch, [0.5, 0.4, 0.3])
    with pytest.raises(RunError, match="power cut"):
        multilora.train(recipe, EVALUATED, callbacks=[FailAfter(5)])
    shutil.rmtree(tmp_path / "run" / "best-2")
    with pytest.raises(RunDirectoryError, match=r"best-2: missing.*best evaluation up to step 3"):
        multilora.train(recipe, EVALUATED, resume=True)


def test_another_machine_may_resume_a_run(recipe, tmp_path):
    """Processes that tokenize and evaluation batches decide about no step."""
    options = ["training.max_steps=4", "training.save_steps=2"]
    with pytest.raises(RunError, match="power cut"):
        multilora.train(recipe, [*options, "data.num_proc=2"], callbacks=[FailAfter(3)])
    resumed = multilora.train(
        recipe, [*options, "data.num_proc=1", "evaluation.batch_tokens=2", "evaluation.max_examples=5"], resume=True
    )
    assert resumed.training["resumed_from_step"] == 2
    assert resumed.recipe.evaluation.batch_tokens == 2
    uninterrupted = multilora.train(recipe, [*options, f"output_dir={tmp_path / 'uninterrupted'}"])
    assert_same_weights(resumed.weights, uninterrupted.weights)


def test_another_recipe_may_not(recipe):
    with pytest.raises(RunError, match="power cut"):
        multilora.train(recipe, callbacks=[FailAfter(3)])
    with pytest.raises(RunDirectoryError) as caught:
        multilora.train(recipe, ["data.num_proc=1", "adapter.r=3", "evaluation.every=2"], resume=True)
    assert "adapter.r: was 2, is 3" in str(caught.value)
    assert "evaluation.every: was None, is 2" in str(caught.value)
    assert "num_proc" not in str(caught.value)


@pytest.mark.parametrize("damage", ["{", "- a list", "model: {name_or_path: nano}", "model: nano\ntasks: 3"])
@pytest.mark.parametrize("verb", [("eval",), ("analyze",), ("export", "--to", "lora", "--out", "new")])
def test_a_damaged_recipe_in_a_run_is_wrong_input(damage, verb, recipe, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    (run / "recipe.yaml").write_text(damage)
    name, *options = verb
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["multilora", name, str(run), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "this run is damaged; restore its recipe.yaml" in capsys.readouterr().err


def test_a_damaged_recipe_cannot_be_resumed(recipe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("{")
    with pytest.raises(RunDirectoryError, match="this run is damaged"):
        multilora.train(recipe, resume=True)


def strict(line):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(line, parse_constant=refuse)


def test_logs_are_json_whatever_was_measured(tmp_path):
    writer = RunWriter(tmp_path, active=True)
    writer.log(1, {"loss": float("nan"), "grad_norm": float("inf")})
    assert strict((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": None, "grad_norm": None}


def test_a_run_with_steps_that_are_not_finite_has_a_json_log(recipe):
    class Spoil(TrainerCallback):
        """Weights that are NaN from step 2 on; health has seen finite gradients before."""

        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            if state.global_step == 1:
                next(p for p in model.parameters() if p.grad is not None).grad.fill_(float("nan"))

    with pytest.raises(RunError, match=r"trained weights are NaN or infinite .* they are not saved"):
        multilora.train(recipe, ["loss.on_nonfinite=skip", "training.save_steps=4"], callbacks=[Spoil()])
    log = Path(recipe["output_dir"]) / "metrics.jsonl"
    lines = [strict(line) for line in log.read_text().splitlines()]
    assert any(None in line.values() for line in lines)


def test_progress_bars_of_other_libraries_are_left_alone(recipe):
    import datasets
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()
    assert before == (True, False)
    checked = multilora.Recipe.load(recipe)
    multilora.plan(checked)
    load_base(checked.model)
    assert (logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()) == before


def test_several_gpus_in_one_process_are_refused_before_anything_is_loaded(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))

    def loaded(*args, **kwargs):
        raise AssertionError("loaded")

    for name in ("load_base", "load_tokenizer", "load_model_config", "make_plan"):
        monkeypatch.setattr(prepare_module, name, loaded)
    with pytest.raises(InputError, match=r"one process would drive 2 GPUs .* torchrun or accelerate launch"):
        multilora.train(recipe)
    assert not (tmp_path / "run").exists()


def test_responses_longer_than_the_model_are_refused_before_training(recipe, tmp_path):
    options = ["evaluation.every=2", "evaluation.max_new_tokens=300"]
    with pytest.raises(RecipeError, match=r"max_new_tokens: 300 leaves no room .* 256 positions,.* answers for echo"):
        multilora.train(recipe, options)
    assert not (tmp_path / "run").exists()
    del recipe["tasks"][1]  # a task with choices generates nothing
    multilora.train(recipe, [*options, "training.max_steps=2"])


def test_loading_a_recipe_makes_no_training_arguments(recipe, monkeypatch):
    """They choose the device and start process groups."""
    made = []
    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda self: made.append(self))
    checked = multilora.Recipe.load(recipe, ["training.lr_scheduler_type=linear", "training.warmup_steps=1e-1"])
    assert made == []
    with pytest.raises(RecipeError) as caught:
        multilora.Recipe.load(
            checked,
            [
                "training.lr_scheduler_type=liner",
                "training.learning_rate=fast",
                "training.bf16=3.5",
                "training.max_steps=true",
                "training.optim=adamm",
            ],
        )
    text = str(caught.value)
    assert "training.lr_scheduler_type is 'liner', expected one of linear, cosine" in text
    assert "training.learning_rate is 'fast', expected a number" in text
    assert "training.bf16 is 3.5, expected true or false" in text
    assert "training.max_steps is True, expected a whole number" in text
    assert "training.optim is 'adamm', expected one of adamw_torch" in text
    assert made == []
