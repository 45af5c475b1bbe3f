"""Only complete checkpoints of finite weights are resumed from."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import multilora
from multilora.errors import InputError, RunError
from multilora.training.checkpoint import checkpoints, last_complete
from multilora.training.manifest import MANIFEST_FILE, damage
from multilora.training.prepare import prepare
from multilora.training.trainer import MultiTaskTrainer

OPTIONS = ["training.max_steps=8", "training.save_steps=2"]


class After(TrainerCallback):
    """Does something after a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, model=None, **_):
        if state.global_step == self.step:
            self.action(model)


def fail(model):
    raise RuntimeError("power cut")


def spoil(model):
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))


def weights(run):
    return load_file(run.weights / "adapter_model.safetensors")


def truncate(folder):
    file = folder / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-100])


def flip(folder):
    file = folder / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "truncated": (truncate, r"optimizer.pt has \d+ bytes, expected \d+"),
    "flipped": (flip, "the checksum of adapter_model.safetensors is wrong"),
    "state gone": (lambda folder: (folder / "trainer_state.json").unlink(), "trainer_state.json cannot be read"),
    "progress gone": (lambda folder: (folder / "progress.json").unlink(), "progress.json cannot be read"),
    "no manifest": (lambda folder: (folder / MANIFEST_FILE).unlink(), "manifest.json cannot be read"),
    "broken manifest": (lambda folder: (folder / MANIFEST_FILE).write_text("[1"), "manifest.json cannot be read"),
    "other manifest": (lambda folder: (folder / MANIFEST_FILE).write_text("[1]"), "manifest.json cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(kind, recipe, tmp_path, caplog):
    action, message = DAMAGE[kind]
    with pytest.raises(RunError, match=r"checkpoint-6; .*--resume"):
        multilora.train(recipe, OPTIONS, callbacks=[After(7, fail)])
    folder = tmp_path / "run" / "checkpoints"
    assert [damage(path) for path in checkpoints(folder)] == [None, None]
    action(folder / "checkpoint-6")
    with caplog.at_level("WARNING"):
        resumed = multilora.train(recipe, OPTIONS, resume=True)
    assert resumed.training["resumed_from_step"] == 4
    assert "checkpoint-6 is damaged" in caplog.text
    assert re.search(message, caplog.text)
    uninterrupted = multilora.train(recipe, [*OPTIONS, f"output_dir={tmp_path / 'uninterrupted'}"])
    expected = weights(uninterrupted)
    assert all(torch.equal(value, expected[key]) for key, value in weights(resumed).items())


@pytest.mark.parametrize("limit", [1, 2])
def test_a_damaged_checkpoint_never_displaces_a_good_one(limit, recipe, tmp_path):
    options = [*OPTIONS, f"training.save_total_limit={limit}"]
    with pytest.raises(RunError, match="checkpoint-6"):
        multilora.train(recipe, options, callbacks=[After(7, fail)])
    folder = tmp_path / "run" / "checkpoints"
    flip(folder / "checkpoint-6")
    first, expected = (4, ["checkpoint-4", "checkpoint-5"]) if limit == 2 else (0, ["checkpoint-1"])
    with pytest.raises(RunError, match="stopped by SIGTERM"):
        multilora.train(
            recipe,
            options,
            callbacks=[After(first + 1, lambda model: os.kill(os.getpid(), signal.SIGTERM))],
            resume=True,
        )
    assert [path.name for path in checkpoints(folder)] == expected
    assert [damage(path) for path in checkpoints(folder)] == [None] * limit


def test_the_best_weights_of_every_checkpoint_are_kept_when_a_run_resumes(recipe, tmp_path):
    """The newest checkpoint may be damaged later."""
    options = [*OPTIONS, "evaluation.every=2", "evaluation.keep=best", "training.save_total_limit=2"]
    uninterrupted = multilora.train(recipe, [*options, f"output_dir={tmp_path / 'uninterrupted'}"])
    for step in (7, 7):
        with pytest.raises(RunError, match=r"checkpoint-6; .*--resume"):
            multilora.train(recipe, options, callbacks=[After(step, fail)], resume=True)
    flip(tmp_path / "run" / "checkpoints" / "checkpoint-6")
    resumed = multilora.train(recipe, options, resume=True)
    assert resumed.training["resumed_from_step"] == 4
    assert all(torch.equal(value, weights(uninterrupted)[key]) for key, value in weights(resumed).items())


def test_weights_that_are_not_finite_are_never_saved(recipe, tmp_path):
    with pytest.raises(RunError) as caught:
        multilora.train(recipe, [*OPTIONS, "loss.on_nonfinite=skip"], callbacks=[After(4, spoil)])
    assert "step 4: 1 trained weights are NaN or infinite" in str(caught.value)
    assert "q_proj.multilora_A" in str(caught.value)
    assert "checkpoint-2; `multilora train ... --resume`" in str(caught.value)
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["checkpoint-2"]
    assert not (tmp_path / "run" / "adapter").exists()


def test_final_weights_that_are_not_finite_are_not_written(recipe, tmp_path):
    with pytest.raises(RunError, match="NaN or infinite"):
        multilora.train(recipe, ["training.max_steps=3", "training.save_strategy=no"], callbacks=[After(3, spoil)])
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_run_that_skips_most_steps_is_not_finished(recipe, tmp_path, monkeypatch):
    """Gradients overflow from the second step on."""
    real = MultiTaskTrainer._get_grad_norm

    def overflowing(self, model, grad_norm=None):
        norm = real(self, model, grad_norm)
        if self.state.global_step >= 1:
            self.health.gradient_norm = norm = torch.tensor(float("inf"))
        return norm

    monkeypatch.setattr(MultiTaskTrainer, "_get_grad_norm", overflowing)
    with pytest.raises(RunError, match=r"7 of 8 steps were not finite and were skipped, so the run is not finished"):
        multilora.train(recipe, [*OPTIONS, "loss.on_nonfinite=skip"])
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_writes_a_checkpoint_and_says_what_a_second_one_does(number, recipe, tmp_path, caplog):
    handler = signal.getsignal(number)
    with pytest.raises(RunError, match=rf"stopped by {number.name} after step 3\n.*checkpoint-3; "):
        multilora.train(recipe, OPTIONS, callbacks=[After(3, lambda model: os.kill(os.getpid(), number))])
    assert "a second signal stops immediately and loses the steps since the last checkpoint" in caplog.text
    assert signal.getsignal(number) == handler
    assert last_complete(tmp_path / "run" / "checkpoints").name == "checkpoint-3"
    assert multilora.train(recipe, OPTIONS, resume=True).training["resumed_from_step"] == 3


def test_checkpoints_without_optimizer_cannot_be_resumed(recipe):
    options = [*OPTIONS, "training.save_only_model=true"]
    with pytest.raises(RunError, match="power cut"):
        multilora.train(recipe, options, callbacks=[After(3, fail)])
    with pytest.raises(InputError, match="save_only_model: such checkpoints lack the optimizer"):
        multilora.train(recipe, options, resume=True)


def test_tensorboard_writes_into_the_run(recipe):
    pytest.importorskip("tensorboard")
    run = multilora.train(recipe, ["training.max_steps=2", "training.report_to=tensorboard"])
    assert list((run.path / "tensorboard").glob("events.out.tfevents*"))
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ


@pytest.mark.parametrize(
    ("changes", "factors", "message"),
    [
        ({"max_steps": 9}, {}, "max_steps is 9, but the plan has 4 steps"),
        ({"max_steps": -1, "num_train_epochs": 3}, {}, "num_train_epochs is 3: it would repeat the plan"),
        ({"ignore_data_skip": True}, {}, "ignore_data_skip would train on the plan's first rows again"),
        ({}, {"scale_lr_factor": 2.0}, "scale_lr_factor is 2, but the model has no parameters of that kind"),
        ({"per_device_train_batch_size": 2}, {}, r"the arguments use 2 rows per step .* but the plan has 4"),
    ],
)
def test_what_does_not_go_together_is_refused_by_the_trainer(changes, factors, message, recipe):
    recipe["adapter"] = {"method": "lora", "r": 2}
    prepared = prepare(multilora.Recipe.load(recipe))
    for name, value in changes.items():
        setattr(prepared.arguments, name, value)
    with pytest.raises(InputError, match=message):
        MultiTaskTrainer(model=prepared.model, args=prepared.arguments, plan=prepared.plan, **factors)


def test_a_plan_of_another_model_is_refused_by_the_trainer(recipe):
    from conftest import make_llama

    prepared = prepare(multilora.Recipe.load(recipe))
    small = make_llama(vocab_size=100, max_position_embeddings=64)
    with pytest.raises(InputError) as caught:
        MultiTaskTrainer(model=small, args=prepared.arguments, plan=prepared.plan)
    assert "tokens, but the model's embedding has 100 rows" in str(caught.value)
    assert "the plan's rows have up to 128 tokens, but the model has 64 positions" in str(caught.value)


def test_the_manifest_covers_every_file(recipe, tmp_path):
    run = multilora.train(recipe, OPTIONS)
    for folder in checkpoints(run.path / "checkpoints"):
        entries = json.loads((folder / MANIFEST_FILE).read_text())
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert set(entries) == files - {MANIFEST_FILE}
        assert Path(folder / "progress.json").is_file()
