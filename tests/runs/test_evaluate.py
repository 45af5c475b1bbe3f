"""Evaluate runs, adapters and models together, and keep the scores of a base."""

from __future__ import annotations

import json

import pytest
import torch
from processes import WORLD, run_in_two_processes

import multilora
import multilora.evaluation.score as score_module
from multilora.errors import InputError, RunDirectoryError
from multilora.evaluation.samples import read_samples
from multilora.export.lora.export_lora import export_lora
from multilora.export.merged.export_merged import export_merged
from multilora.runs.evaluate import evaluate_models, sample_names


def comparable(scores):
    """Metrics and losses, rounded: adapters are merged or not."""
    return {name: (score.metrics, round(score.loss, 3)) for name, score in scores.items()}


@pytest.fixture
def run(recipe):
    return multilora.train(recipe, ["training.learning_rate=0.1"])


def test_a_run_its_adapter_and_its_exports_have_the_same_scores(run, tmp_path):
    export_lora(run, tmp_path / "lora")
    export_merged(run, tmp_path / "merged")
    base = run.recipe.model.name_or_path
    models = [run.path, run.weights, tmp_path / "lora", tmp_path / "merged", base]
    scores = evaluate_models(models, max_examples=6, samples=tmp_path / "samples", dtype="float32")
    assert list(scores) == list(map(str, models))
    trained, *others, untrained = scores.values()
    assert all(comparable(other) == comparable(trained) for other in others)
    assert comparable(untrained) != comparable(trained)
    assert comparable(multilora.evaluate(run, max_examples=6).before) == comparable(untrained)
    samples = {path.stem: read_samples(path) for path in (tmp_path / "samples").iterdir()}
    assert len(samples) == len(models)
    assert {len(rows) for rows in samples.values()} == {sum(score.n for score in trained.values())}


@pytest.mark.parametrize("name", ["eval.json", "adapter/README.md"])
def test_a_folder_in_the_place_of_a_file_is_found_before_anything_is_written(run, name):
    (run.path / name).unlink(missing_ok=True)
    (run.path / name).mkdir()
    before = sorted(run.path.rglob("*"))
    with pytest.raises(RunDirectoryError, match="is a folder, expected a file or nothing; remove it"):
        multilora.evaluate(run, max_examples=2)
    assert sorted(run.path.rglob("*")) == before


def test_other_tasks_need_no_run(run, tmp_path, recipe):
    path = tmp_path / "tasks.yaml"
    path.write_text(json.dumps({"tasks": recipe["tasks"][:1], "evaluation": {"max_examples": 3}}))
    scores = evaluate_models([run.recipe.model.name_or_path], path, dtype="float32")
    ((task, score),) = next(iter(scores.values())).items()
    assert (task, score.n) == ("even", 3)
    with pytest.raises(InputError, match="is not a run, so it has no tasks"):
        evaluate_models([run.recipe.model.name_or_path])
    with pytest.raises(InputError, match="expected at least one, and none twice"):
        evaluate_models([run.path, str(run.path)])


def test_scores_of_a_base_are_computed_once_per_content(run, monkeypatch, tmp_path):
    monkeypatch.setattr("multilora.runs.base_scores.cache_root", lambda: tmp_path / "cache")
    scored = []
    real = score_module.score_tasks

    def counting(*args, **kwargs):
        scored.append(args[4])
        return real(*args, **kwargs)

    monkeypatch.setattr(score_module, "score_tasks", counting)
    first = multilora.evaluate(run, max_examples=3)
    assert scored == ["evaluating run", "evaluating base"]
    samples = (run.path / "samples" / "base.parquet").read_bytes()
    again = multilora.evaluate(run, max_examples=3)
    assert scored[2:] == ["evaluating run"]
    assert again.as_dict() == first.as_dict()
    assert (run.path / "samples" / "base.parquet").read_bytes() == samples
    multilora.evaluate(run, max_examples=2)
    assert scored[3:] == ["evaluating run", "evaluating base"]


def test_another_base_at_the_same_path_is_scored_again(run, recipe, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "copy"
    model = AutoModelForCausalLM.from_pretrained(recipe["model"]["name_or_path"])
    for number in range(2):
        with torch.no_grad():
            model.lm_head.weight.mul_(1.0 + number)
        model.save_pretrained(folder)
        run.load_tokenizer().save_pretrained(folder)
        tasks = {"tasks": recipe["tasks"], "evaluation": {"max_examples": 4, "max_new_tokens": 8}}
        (scores,) = evaluate_models([folder], tasks, dtype="float32").values()
        if number == 0:
            before = comparable(scores)
    assert comparable(scores) != before


def test_files_of_samples_have_different_names():
    assert sample_names(["runs/a", "runs/b"]) == ["a", "b"]
    assert sample_names(["a/adapter", "b/adapter", "/"]) == ["adapter-1", "adapter-2", "model"]


def evaluate_in_process(rank, folder, path):
    evaluation = multilora.evaluate(path, max_examples=6)
    (folder / f"{rank}.json").write_text(json.dumps(evaluation.as_dict()))


@pytest.mark.parametrize("cached", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_share_the_evaluation(run, tmp_path, monkeypatch, cached):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    if cached:
        multilora.evaluate(run, max_examples=6)
    run_in_two_processes(evaluate_in_process, tmp_path, run.path)
    both = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(WORLD)]
    assert both[0] == both[1] == json.loads((run.path / "eval.json").read_text())
    alone = multilora.evaluate(run, max_examples=6).as_dict()
    for when in ("before", "after"):
        for task, score in alone[when].items():
            assert both[0][when][task]["metrics"] == score["metrics"]
            assert both[0][when][task]["loss"] == pytest.approx(score["loss"], rel=1e-4)
