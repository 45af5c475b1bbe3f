"""Evaluation during training in two processes: the work is shared out, and they decide and score like one."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from processes import WORLD, run_in_two_processes, split_recipe
from test_evaluate_during_training import lines
from test_evaluation_examples import Clock

import multilora
from multilora.evaluation.scoring import likelihoods
from multilora.evaluation.share_out import Share
from multilora.runs.directory import Run

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}


def train_in_process(rank, folder, recipe, kind):
    if kind == "FSDP2":
        os.environ |= FSDP
        import accelerate_on_cpu  # noqa: F401  (lets accelerate shard on a CPU)
    shares = []

    class Counted(Share):
        def __init__(self, model: Any, requests: Any, **options: Any) -> None:
            super().__init__(model, requests, **options)
            shares.append((len(self.requests), self.total, self.lockstep))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likelihoods, "Share", Counted)
        # The second process is slower: it alone would choose fewer examples.
        Clock(patch).examples_take(patch, even=0.001, echo=0.1 * (1 + 9 * rank))
        multilora.train(recipe)
    (folder / f"{rank}.json").write_text(json.dumps(shares))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["DDP", "FSDP2"])
def test_two_processes_share_the_evaluation_and_equal_one(recipe, tmp_path, monkeypatch, kind):
    recipe["training"] |= {"max_steps": 4, "use_cpu": True}
    recipe["evaluation"] |= {"every": 2, "keep": "best", "max_seconds": 0.25}
    with monkeypatch.context() as patch:
        Clock(patch).examples_take(patch, even=0.001, echo=0.1)
        reference = multilora.train(recipe)
    split = split_recipe(recipe, **({"ddp_backend": "gloo"} if kind == "DDP" else {}))
    run_in_two_processes(train_in_process, tmp_path, split, kind)
    run = Run(split["output_dir"])
    assert run.training["weights_of_step"] == reference.training["weights_of_step"]
    for line, expected in zip(lines(run), lines(reference), strict=True):
        assert {name: score["n"] for name, score in line["tasks"].items()} == {"even": 4, "echo": 2}
        for name, score in expected["tasks"].items():
            assert line["tasks"][name]["metrics"] == score["metrics"]
            assert line["tasks"][name]["loss"] == pytest.approx(score["loss"], rel=1e-4)
    shares = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(WORLD)]
    several = [parts for parts in zip(*shares, strict=True) if parts[0][1] > 2]
    assert several
    for (mine, total, lockstep), (others, _, _) in several:
        assert mine + others == total
        assert 0 < mine < total
        assert lockstep == (kind == "FSDP2")
