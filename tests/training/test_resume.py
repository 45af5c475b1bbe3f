"""Resumed runs equal uninterrupted ones, wherever they stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import multilora
from multilora.errors import RunDirectoryError, RunError

KILLS = 20
LOGGED = ["training.logging_steps=2", "adapter.lora_dropout=0.1"]
CHECKPOINTED = ["training.max_steps=12", "training.save_steps=3", *LOGGED]


class CallAt(TrainerCallback):
    """Calls `action` at the end of a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            self.action()


def fail():
    raise RuntimeError("power cut")


def weights(run):
    return load_file(run.weights / "adapter_model.safetensors")


def logged(run):
    timing = (
        "train_runtime",
        "train_samples_per_second",
        "train_steps_per_second",
        "tokens_per_second",
        "eval_seconds",
    )
    return [{key: value for key, value in line.items() if key not in timing} for line in run.metrics]


def assert_same(resumed, uninterrupted):
    actual, expected = weights(resumed), weights(uninterrupted)
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(actual[key], value), key
    assert logged(resumed) == logged(uninterrupted)


@pytest.mark.parametrize(
    "stop", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow), 11]
)
@pytest.mark.parametrize("packing", [False, True])
def test_resumed_equals_uninterrupted(recipe, tmp_path, stop, packing):
    options = [*CHECKPOINTED, f"data.packing={str(packing).lower()}", "optimizer.scale_lr_factor=4"]
    uninterrupted = multilora.train(recipe, [*options, f"output_dir={tmp_path / 'uninterrupted'}"])
    with pytest.raises(RunError, match="power cut"):
        multilora.train(recipe, options, callbacks=[CallAt(stop, fail)])
    resumed = multilora.train(recipe, options, resume=True)
    # on_step_end comes before the checkpoint of the step.
    assert resumed.training["resumed_from_step"] == (stop - 1) // 3 * 3
    assert_same(resumed, uninterrupted)


def test_full_fine_tuning_with_accumulation_resumes(recipe, tmp_path):
    options = [
        "adapter={method: full}",
        "training.max_steps=6",
        "training.save_steps=2",
        "training.per_device_train_batch_size=2",
        "training.gradient_accumulation_steps=2",
    ]
    uninterrupted = multilora.train(recipe, [*options, f"output_dir={tmp_path / 'uninterrupted'}"])
    with pytest.raises(RunError, match="power cut"):
        multilora.train(recipe, options, callbacks=[CallAt(3, fail)])
    resumed = multilora.train(recipe, options, resume=True)
    actual, expected = (load_file(run.weights / "model.safetensors") for run in (resumed, uninterrupted))
    assert all(torch.equal(actual[key], value) for key, value in expected.items())
    assert logged(resumed) == logged(uninterrupted)


def test_an_incomplete_checkpoint_is_ignored(recipe, tmp_path):
    uninterrupted = multilora.train(recipe, [*CHECKPOINTED, f"output_dir={tmp_path / 'uninterrupted'}"])
    with pytest.raises(RunError, match="power cut"):
        multilora.train(recipe, CHECKPOINTED, callbacks=[CallAt(8, fail)])
    folder = Path(recipe["output_dir"]) / "checkpoints"
    incomplete = folder / ".writing" / "checkpoint-9"
    incomplete.mkdir(parents=True)
    (incomplete / "adapter_model.safetensors").write_bytes(b"half")
    resumed = multilora.train(recipe, CHECKPOINTED, resume=True)
    assert resumed.training["resumed_from_step"] == 6
    assert not (folder / ".writing").exists()
    assert_same(resumed, uninterrupted)


def test_old_checkpoints_are_removed(recipe):
    run = multilora.train(recipe, [*CHECKPOINTED, "training.save_total_limit=2"])
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == ["checkpoint-12", "checkpoint-9"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_run_with_a_checkpoint(recipe, tmp_path, number):
    uninterrupted = multilora.train(recipe, [*CHECKPOINTED, f"output_dir={tmp_path / 'uninterrupted'}"])
    before = signal.getsignal(number)
    stop = CallAt(4, lambda: os.kill(os.getpid(), number))
    with pytest.raises(RunError, match=rf"stopped by {number.name} after step [45]\n.*checkpoint-[45]; .*--resume"):
        multilora.train(recipe, CHECKPOINTED, callbacks=[stop])
    assert signal.getsignal(number) == before
    assert_same(multilora.train(recipe, CHECKPOINTED, resume=True), uninterrupted)


def test_without_a_checkpoint_a_resumed_run_restarts(recipe, tmp_path):
    uninterrupted = multilora.train(recipe, [*CHECKPOINTED, f"output_dir={tmp_path / 'uninterrupted'}"])
    with pytest.raises(RunError, match="there is no complete checkpoint yet"):
        multilora.train(recipe, CHECKPOINTED, callbacks=[CallAt(2, fail)])
    assert_same(multilora.train(recipe, CHECKPOINTED, resume=True), uninterrupted)


def test_a_finished_run_is_returned_unchanged(recipe):
    run = multilora.train(recipe, CHECKPOINTED)
    before = (run.weights / "adapter_model.safetensors").stat().st_mtime_ns
    assert multilora.train(recipe, CHECKPOINTED, resume=True).path == run.path
    assert (run.weights / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_changes_since_the_start_are_listed(recipe):
    with pytest.raises(RunError):
        multilora.train(recipe, CHECKPOINTED, callbacks=[CallAt(4, fail)])
    with pytest.raises(
        RunDirectoryError, match=r"training.learning_rate: was 0.01, is 0.02\n  training.weight_decay: was not set"
    ):
        multilora.train(recipe, [*CHECKPOINTED, "training.learning_rate=0.02", "training.weight_decay=1"], resume=True)
    with open(recipe["tasks"][1]["path"], "a", encoding="utf-8") as file:
        file.write('{"word": "new", "twice": "new new"}\n')
    with pytest.raises(RunDirectoryError, match=r"tokens.echo: was"):
        multilora.train(recipe, CHECKPOINTED, resume=True)


def test_an_existing_run_without_resume_raises(recipe):
    with pytest.raises(RunError):
        multilora.train(recipe, CHECKPOINTED, callbacks=[CallAt(4, fail)])
    with pytest.raises(RunDirectoryError, match="already holds a run"):
        multilora.train(recipe, CHECKPOINTED)


def test_a_full_disk_raises_with_the_last_checkpoint(recipe, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", small], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    try:
        options = [*CHECKPOINTED, "training.save_total_limit=9", f"output_dir={small / 'run'}"]
        with pytest.raises(RunError, match=r"training failed at step \d+: .*\n.*checkpoint-\d+; .*--resume"):
            multilora.train(recipe, [*options, "training.max_steps=120"])
        complete = sorted((small / "run" / "checkpoints").iterdir())
        assert complete
        assert all(path.name.startswith("checkpoint-") for path in complete)
        for path in complete:
            assert load_file(path / "adapter_model.safetensors")
            torch.load(path / "optimizer.pt", weights_only=True)
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.slow
def test_a_run_killed_at_random_times_and_resumed_is_the_same(recipe, tmp_path):
    """At least 20 times `kill -9` in one run, while loading, training or writing."""
    options = [
        "training.max_steps=200",
        "training.save_steps=2",
        "training.logging_steps=3",
        "adapter.lora_dropout=0.1",
    ]
    uninterrupted = multilora.train(recipe, [*options, f"output_dir={tmp_path / 'uninterrupted'}"])
    killed = multilora.recipe.Recipe.load(recipe, options)
    (tmp_path / "recipe.json").write_text(killed.model_dump_json(exclude_none=True))
    driver = Path(__file__).with_name("kill_driver.py")
    command = [sys.executable, driver, tmp_path / "recipe.json", "0", str(KILLS)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert result.returncode == 0, result.stdout + result.stderr
    facts = json.loads(result.stdout.splitlines()[-1])
    assert facts["kills"] >= KILLS
    assert len(set(facts["resumed_from"])) > KILLS / 3, "all kills happened at the same checkpoint"
    assert_same(multilora.Run(killed.output_dir), uninterrupted)
