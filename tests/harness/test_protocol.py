"""`evaluation: {protocol: harness}` and `multilora eval --harness`: lm-eval's scores of a run."""

from __future__ import annotations

import csv
import json
import sys

import pytest
from conftest import REAL_DATA, write_jsonl
from hypothesis import given
from hypothesis import strategies as st
from official_files import SUPERGLUE

from multilora import evaluate, train
from multilora.cli import main
from multilora.errors import InputError, RecipeError
from multilora.evaluation.samples import read_samples
from multilora.evaluation.statistics.paired import compare_samples
from multilora.harness.models import evaluate_models_with_harness
from multilora.harness.protocol import HarnessProtocol, documents_limit
from multilora.harness.run import evaluate_with_harness
from multilora.recipe import Recipe
from multilora.tasks.mmlu_groups import GROUP_OF, GROUPS

pytest_plugins = ["official_files"]


@pytest.fixture
def run(recipe, tmp_path):
    """A run on COPA, which lm-eval has, and own data, which it does not."""
    copa = tmp_path / "copa"
    copa.mkdir()
    for split in ("train", "val"):
        records = [{**record, "premise": f"{split}: {record['premise']}"} for record in SUPERGLUE["copa"]]
        write_jsonl(copa / f"{split}.jsonl", records)
    recipe["tasks"] = [recipe["tasks"][0], {"name": "superglue/copa", "path": str(copa)}]
    recipe["evaluation"] |= {"protocol": "harness", "shots": 2, "max_examples": 4}
    return train(recipe)


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line in this process; returns exit code, stdout and stderr."""

    def run_command(*arguments):
        monkeypatch.setattr(sys, "argv", ["multilora", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as system_exit:
            code = system_exit.code or 0
        return code, *capsys.readouterr()

    return run_command


def test_scores_of_a_run_by_lm_eval(run, manager):
    evaluation = evaluate(run)
    copa, even = evaluation.after["superglue/copa"], evaluation.after["even"]
    expected = evaluate_with_harness(run, ["superglue/copa"], shots=2, limit=4)["tasks"]["copa"]
    acc = expected["metrics"]["acc"]
    assert (copa.metric, copa.value, copa.stderr, copa.n) == ("acc", acc["value"], acc["stderr"], 4)
    assert copa.interval[0] < copa.value < copa.interval[1] or copa.value in (0, 1)
    assert copa.protocol == f"lm-eval {copa.harness['lm_eval']}: copa v{expected['version']}, 2-shot"
    assert copa.harness["metrics"] == expected["metrics"]
    assert (even.protocol, even.harness, even.shots) == ("ours, 2-shot", None, 2)
    assert copa.loss_n == 4
    assert evaluation.before["superglue/copa"].loss != copa.loss > 0
    saved = json.loads((run.path / "eval.json").read_text())
    assert saved["after"]["superglue/copa"]["protocol"] == copa.protocol
    rows = read_samples(run.path / "samples" / "run.parquet", ["superglue/copa"])
    assert sum(row.score for row in rows) / len(rows) == copa.value
    compared = compare_samples(run.path / "samples" / "base.parquet", run.path / "samples" / "run.parquet")
    assert compared.tasks["superglue/copa"].n == 4
    assert evaluate(run).as_dict() == evaluation.as_dict()  # the base from the cache


def test_what_the_commands_show(run, command):
    """The protocol of each task; lm-eval's tasks of several models beside each other."""
    code, shown, err = command("eval", run.path)
    assert code == 0, err
    assert "ours, 2-shot" in shown
    assert ": copa v" in shown
    assert "lm-eval scores the first documents" in shown
    base = run.recipe.model.name_or_path
    options = ["--harness", "copa", "--limit", 3]
    code, shown, err = command("eval", run.path, base, *options)
    assert code == 0, err
    assert "the first 3 documents of each task" in shown
    _, shown, _ = command("eval", run.path, base, *options, "--json")
    scores = json.loads(shown)
    assert list(scores) == [str(run.path), base]
    assert json.loads((run.path / "eval_harness.json").read_text()) == scores[str(run.path)]
    assert scores[base]["tasks"]["copa"]["n"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", 3], "--limit has no effect without --harness"),
        (["--harness", "copa", "--max-examples", 3], "--max-examples has no effect with --harness"),
        (["--harness", ","], "no tasks for lm-eval"),
    ],
)
def test_options_without_an_effect(arguments, message, command, manager):
    code, shown, err = command("eval", "nano", *arguments)
    assert (code, shown) == (2, "")
    assert message in err


def test_lm_eval_is_missing(run, monkeypatch):
    """Found out before anything is loaded."""
    import importlib.metadata

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("multilora.harness.require.version", missing)
    monkeypatch.setattr("multilora.runs.candidate.Candidate.load", lambda _: pytest.fail("a model is loaded"))
    message = r"lm-eval is not installed, .*pip install 'multilora\[lm-eval\]'"
    with pytest.raises(InputError, match=message):
        evaluate(run)
    with pytest.raises(InputError, match=message):
        evaluate_models_with_harness([run], ["copa"])


def test_another_form_of_a_task(recipe, paths, manager):
    """GSM8K with a chain of thought; a task of lm-eval that reads other data is refused."""
    task = {"name": "gsm8k", "path": paths["gsm8k"], "harness_task": "gsm8k_cot"}
    recipe |= {"tasks": [task], "evaluation": {"protocol": "harness", "max_examples": 3}}
    protocol = HarnessProtocol(Recipe.load(recipe))
    assert protocol.tasks["gsm8k"].task_name == "gsm8k_cot"
    assert protocol.limits == {"gsm8k": 3}
    task["harness_task"] = "boolq"
    with pytest.raises(InputError, match="no task 'boolq' on this data; expected one of gsm8k, gsm8k_cot"):
        HarnessProtocol(Recipe.load(recipe))


def test_keys_that_do_not_go_together(recipe, paths):
    gsm8k = {"name": "gsm8k", "path": paths["gsm8k"], "harness_task": "gsm8k_cot"}
    recipe["tasks"] = [{**recipe["tasks"][0], "harness_task": "gsm8k"}, gsm8k]
    with pytest.raises(RecipeError) as error:
        Recipe.load(recipe)
    assert "harness_task: lm-eval reads the data of built-in tasks only" in str(error.value)
    assert "harness_task: 'gsm8k_cot' has no effect with evaluation.protocol `ours`" in str(error.value)
    recipe["tasks"] = [gsm8k]
    recipe["evaluation"] = {"protocol": "harness", "split": "validation", "validation_share": 0.1}
    with pytest.raises(RecipeError, match="lm-eval has no validation split"):
        Recipe.load(recipe)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 200))
def test_limit_of_documents(counts, most):
    """As many documents as allowed, equally many of every task; at least one of each."""
    limit = documents_limit(counts, most)
    if limit is None:
        assert sum(counts) <= most
        return
    assert limit == 1 or sum(min(count, limit) for count in counts) <= most
    assert sum(min(count, limit + 1) for count in counts) > most


def test_groups_of_mmlu(manager):
    for group, subjects in GROUPS.items():
        tagged = {name for name, entry in manager.task_index.items() if f"mmlu_{group}_tasks" in entry.tags}
        assert tagged & {f"mmlu_{name}" for name in GROUP_OF} == {f"mmlu_{name}" for name in subjects}
    assert len(GROUP_OF) == 57


@pytest.mark.slow
def test_mmlu_by_subject_and_group(recipe, tmp_path, manager):
    for split in ("dev", "val", "test"):
        (tmp_path / split).mkdir()
        for subject in GROUP_OF:
            with (tmp_path / split / f"{subject}_{split}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([f"{subject} {i}?", "w", "x", "y", "z", "ABCDA"[i]] for i in range(5))
    recipe |= {"tasks": [{"name": "mmlu", "path": str(tmp_path)}]}
    recipe["evaluation"] = {"protocol": "harness", "shots": 1, "max_examples": 120}
    score = evaluate(train(recipe)).after["mmlu"]
    assert score.n == 2 * 57
    assert score.protocol.endswith(": mmlu v2, 1-shot")
    assert set(score.parts["subject"]) == set(GROUP_OF)
    assert set(score.parts["group"]) == set(GROUPS)
    values = [part["value"] for part in score.parts["subject"].values()]
    assert score.metrics["acc_over_subjects"] == pytest.approx(sum(values) / 57) == pytest.approx(score.value)


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="no real data")
def test_a_subject_of_local_mmlu(run, manager):
    """The data of all subjects serves a task on one of them."""
    tasks = {"tasks": [{"name": "mmlu", "path": str(REAL_DATA / "mmlu")}]}
    (scores,) = evaluate_models_with_harness([run], ["mmlu_anatomy"], tasks, limit=2).values()
    assert scores["tasks"]["mmlu_anatomy"]["n"] == 2
