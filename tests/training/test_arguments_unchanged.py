"""Arguments serve more than one trainer."""

from __future__ import annotations

import copy

import multilora
from multilora.training.prepare import prepare
from multilora.training.trainer import MultiTaskTrainer


def test_a_trainer_leaves_its_arguments_as_they_were(recipe):
    options = ["training.save_total_limit=3", "training.torch_compile=true", "training.torch_compile_backend=eager"]
    prepared = prepare(multilora.Recipe.load(recipe, options))
    arguments = prepared.arguments
    before = copy.deepcopy(arguments.to_dict())
    for _ in range(2):
        trainer = MultiTaskTrainer(model=prepared.model, args=arguments, plan=prepared.plan)
        assert arguments.to_dict() == before
        assert trainer.checkpoint_limit == 3
        assert trainer.compiled
