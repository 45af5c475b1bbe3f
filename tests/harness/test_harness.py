"""lm-eval's tasks on local data, the model's arguments, and what is refused."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import REAL_DATA, make_llama, randomise, write_jsonl
from peft import get_peft_model

from multilora.errors import DataError, InputError, RunDirectoryError
from multilora.harness.hub_format import CONVERT, mmlu
from multilora.harness.load import ModelArguments
from multilora.harness.run import evaluate_with_harness, harness_scores
from multilora.harness.tasks import harness_name, local_task
from multilora.peft_method import MultiLoraConfig
from multilora.recipe.built_in_tasks import BUILT_IN
from multilora.recipe.schema import TaskSection

pytest_plugins = ["official_files"]

HUB_ROWS = {
    "superglue/boolq": {"question": "is it", "passage": "It is.", "label": 1},
    "superglue/multirc": {
        "paragraph": "p",
        "question": "q",
        "answer": "a",
        "idx": {"paragraph": 0, "question": 1, "answer": 2},
        "label": 0,
    },
    "superglue/record": {"passage": "p\n@highlight\nq", "query": "@placeholder", "entities": ["a"], "answers": ["a"]},
    "superglue/wsc": {
        "text": "a dog saw it .",
        "span1_index": 0,
        "span1_text": "a dog",
        "span2_index": 3,
        "span2_text": "it",
        "label": 0,
    },
    "gsm8k": {"question": "1 + 1?", "answer": "#### 2"},
    "arc/easy": {"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
    "openbookqa": {"question_stem": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A"},
}


def test_lm_eval_is_not_imported_by_the_package():
    code = "import sys, multilora, multilora.cli.app, multilora.harness.run, multilora.harness.load\n"
    code += "print([name for name in sys.modules if name.split('.')[0] == 'lm_eval'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(("installed", "message"), [(None, "not installed"), ("0.4.9", "is 0.4.9, expected 0.4.12")])
def test_lm_eval_is_missing_or_too_old(monkeypatch, installed, message):
    def version(name):
        if installed is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr("multilora.harness.require.version", version)
    with pytest.raises(InputError, match=rf"{message}.*pip install 'multilora\[lm-eval\]'"):
        harness_scores(None, ["mmlu"])


@pytest.mark.parametrize("name", HUB_ROWS)
def test_rows_of_the_hub_are_passed_on(name):
    assert list(CONVERT[name](HUB_ROWS[name], "here")) == [HUB_ROWS[name]]


def test_mmlu_rows_have_the_index_of_the_answer():
    record = {"question": "q", "subject": "anatomy", "choices": ["1", "2", "3", "4"], "answer": "C"}
    (row,) = mmlu(record, "here")
    assert row == {**record, "answer": 2}
    assert list(mmlu(row, "here")) == [row]


def test_wsc_spans_are_fixed_as_on_the_hub():
    target = {"span1_index": 0, "span1_text": "The dog.", "span2_index": 3, "span2_text": "it"}
    (row,) = CONVERT["superglue/wsc"]({"text": "the dog saw it", "target": target, "label": True}, "here")
    assert (row["span1_text"], row["span2_text"], row["label"]) == ("the dog", "it", 1)


def test_record_has_a_row_per_query_with_sorted_sets():
    spans = [{"start": 8, "end": 10}, {"start": 0, "end": 2}, {"start": 0, "end": 2}]
    queries = [{"query": q, "answers": [{"text": "Bob"}, {"text": "Ann"}, {"text": "Bob"}]} for q in ("one", "two")]
    record = {"idx": 0, "passage": {"text": "Ann met Bob.", "entities": spans}, "qas": queries}
    rows = list(CONVERT["superglue/record"](record, "here"))
    assert [row["query"] for row in rows] == ["one", "two"]
    assert all(row["entities"] == row["answers"] == ["Ann", "Bob"] for row in rows)


def test_every_built_in_task_of_lm_eval_has_its_name(manager):
    names = {name: harness_name(name) for name in BUILT_IN}
    assert {name for name, translated in names.items() if translated is None} == {
        *("alpaca", "dolly"),
        *(name for name in BUILT_IN if name.startswith("nano/")),
    }
    known = {*manager.all_tasks, "mmlu_<subject>"}
    assert {translated for translated in names.values() if translated} <= known


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="no real data")
def test_mmlu_as_a_group_with_its_subgroups(manager):
    group = local_task(TaskSection(name="mmlu", path=str(REAL_DATA / "mmlu")), manager)
    assert len(group.get_all_tasks()) == 57
    assert {item.name for item in group} == {"mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities"}
    (astronomy,) = (task for task in group.get_all_tasks() if task.task_name == "mmlu_astronomy")
    with (REAL_DATA / "mmlu/data/test/astronomy_test.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    docs = list(astronomy.test_docs())
    assert [(doc["question"], doc["choices"], "ABCD"[doc["answer"]]) for doc in docs] == [
        (row[0], row[1:5], row[5]) for row in rows
    ]
    assert len(list(astronomy.fewshot_docs())) == 5


def test_local_data_that_cannot_be_used(data, manager, tmp_path):
    with pytest.raises(DataError, match=r"mmlu.*evaluate single subjects of MMLU as mmlu/<subject>"):
        local_task(TaskSection(name="mmlu", path=str(data / "mmlu")), manager)
    with pytest.raises(DataError, match="expected a built-in task with a local path"):
        local_task(TaskSection(name="dolly", path=str(data)), manager)
    with pytest.raises(DataError, match="name it with eval_path"):
        local_task(TaskSection(name="gsm8k", path=str(data / "gsm8k/train.jsonl")), manager)
    bad = [{"question": "q", "answer": "#### 1"}, {"question": "q"}]
    paths = {"path": str(write_jsonl(tmp_path / "t.jsonl", bad)), "eval_path": str(data / "gsm8k/test.jsonl")}
    with pytest.raises(DataError, match=r"line 2: no field 'answer'"):
        local_task(TaskSection(name="gsm8k", **paths), manager)
    assert not list(tmp_path.glob("lm-eval*"))
    task = local_task(TaskSection(name="gsm8k", on_error="drop", **paths), manager)
    assert len(list(task.training_docs())) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither of `run` and `pretrained`"),
        ({"run": "a", "pretrained": "b"}, "both of `run` and `pretrained`"),
        ({"pretrained": "nano", "dtype": "int8"}, "dtype is 'int8', expected auto, float32"),
        ({"pretrained": "nano", "device": "gpu7"}, "device is 'gpu7'"),
        ({"pretrained": "nano", "device": "cuda:99"}, "device is 'cuda:99', expected one of this machine"),
        ({"run": "a", "dtype": "float32", "device": "cpu"}, "dtype set beside `run`"),
        ({"pretrained": "nano", "peft": "/nowhere"}, "cannot load the adapter '/nowhere'"),
    ],
)
def test_model_arguments_that_cannot_be_used(arguments, message):
    with pytest.raises(InputError, match=message):
        ModelArguments(**arguments).load()


def test_a_directory_that_is_no_run():
    with pytest.raises(RunDirectoryError, match=r"no recipe\.yaml"):
        ModelArguments(run="/nowhere").load()


def test_arguments_of_the_model_in_lm_eval(tiny):
    pytest.importorskip("lm_eval")
    from lm_eval.api.registry import get_model

    from multilora.harness.engine_model import MultiLoraLM

    assert get_model("multilora") is MultiLoraLM
    with pytest.raises(InputError, match=r"unknown 'pretraned' \(did you mean 'pretrained'\?\)"):
        MultiLoraLM(pretraned="nano")
    with pytest.raises(InputError, match="max_length is 0, expected a positive integer"):
        MultiLoraLM(pretrained="nano", max_length=0)
    with pytest.raises(InputError, match="tokenizer is missing"):
        MultiLoraLM(model=tiny[0])
    lm = MultiLoraLM(model=tiny[0], tokenizer=tiny[1])
    assert (lm.rank, lm.world_size) == (0, 1)


def test_options_of_generation(tiny):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from multilora.harness.engine_model import MultiLoraLM

    lm = MultiLoraLM(model=tiny[0], tokenizer=tiny[1])

    def answers(seed, count=1, **options):
        torch.manual_seed(seed)
        instance = Instance("generate_until", {}, ("say one", {"until": [], "max_gen_toks": 8, **options}), 0)
        return lm.generate_until([instance] * count, disable_tqdm=True)

    sampled = answers(1, 3, do_sample=True, temperature=1.0)
    assert len(set(sampled)) == 3
    assert sampled == answers(1, 3, do_sample=True, temperature=1.0) != answers(2, 3, do_sample=True, temperature=1.0)
    assert answers(1) == answers(2) == answers(1, do_sample=True, temperature=1.0, top_k=1)
    with pytest.raises(InputError, match=r"num_beams=4, expected only until"):
        answers(1, num_beams=4)
    with pytest.raises(InputError, match="max_gen_toks is 512, which leaves no room"):
        answers(1, max_gen_toks=512)


def test_an_adapter_on_its_base(tmp_path, model_folder):
    model = get_peft_model(make_llama(), MultiLoraConfig(r=2, num_branches=3, target_modules="all-linear"))
    randomise(model)
    model.save_pretrained(tmp_path / "adapter")
    arguments = ModelArguments(pretrained=str(model_folder), peft=str(tmp_path / "adapter"), device="cpu")
    loaded, tokenizer = arguments.load()
    ids = torch.tensor([tokenizer.encode("the answer is")])
    assert loaded.dtype == torch.float32
    assert not loaded.training
    torch.testing.assert_close(loaded(ids).logits, model.eval()(ids).logits)


def test_unknown_tasks_and_numbers(manager, tiny):
    from multilora.harness.engine_model import MultiLoraLM

    lm = MultiLoraLM(model=tiny[0], tokenizer=tiny[1])
    with pytest.raises(InputError, match=r"no task 'arc_esay' \(did you mean 'arc_easy'\?\)"):
        harness_scores(lm, ["arc_esay"], manager=manager)
    with pytest.raises(InputError, match="limit is 0, expected at least 1"):
        harness_scores(lm, ["arc_easy"], limit=0, manager=manager)
    with pytest.raises(InputError, match="no tasks"):
        harness_scores(lm, [], manager=manager)
    with pytest.raises(InputError, match="expected a folder"):
        evaluate_with_harness(lm, ["arc_easy"], include_path="/nowhere")


def test_a_task_named_twice_and_data_that_cannot_be_reached(manager, tiny, paths, monkeypatch):
    from lm_eval.api.group import Group

    from multilora.harness.engine_model import MultiLoraLM

    lm = MultiLoraLM(model=tiny[0], tokenizer=tiny[1])

    def offline(**_):
        raise ConnectionError("Couldn't reach the Hub")

    copa = local_task(TaskSection(name="superglue/copa", path=paths["superglue/copa"]), manager)
    group = Group("pair")
    group.add(copa)
    with pytest.raises(InputError, match=r"Duplicate task 'copa'.*name either the group or its tasks"):
        harness_scores(lm, [copa, group], manager=manager)
    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(DataError, match=r"Couldn't reach the Hub.*check the network, or give local data"):
        harness_scores(lm, ["arc_easy"], manager=manager)


def test_more_shots_than_examples(manager, tiny, paths):
    from multilora.harness.engine_model import MultiLoraLM

    task = local_task(TaskSection(name="superglue/copa", path=paths["superglue/copa"]), manager)
    with pytest.raises(InputError, match="lower `shots`"):
        harness_scores(MultiLoraLM(model=tiny[0], tokenizer=tiny[1]), [task], shots=50, manager=manager)


def test_a_run_on_its_tasks(recipe, paths):
    """A trained run, on lm-eval's definition of a task of its recipe with that task's data."""
    pytest.importorskip("lm_eval")
    from multilora import train

    recipe["tasks"].append({"name": "superglue/copa", "path": paths["superglue/copa"]})
    run = train(recipe)
    scores = evaluate_with_harness(str(run.path), ["superglue/copa"], limit=4)
    assert scores is not None
    assert scores["tasks"]["copa"]["n"] == 4
    json.dumps(scores)
    arguments = {"pretrained": recipe["model"]["name_or_path"], "peft": str(run.weights), "dtype": "float32"}
    from multilora.harness.engine_model import MultiLoraLM

    loaded = MultiLoraLM(**arguments).loglikelihood
    from lm_eval.api.instance import Instance

    request = [Instance("loglikelihood", {}, ("the answer is", " yes"), 0)]
    assert loaded(request, disable_tqdm=True)[0][0] == pytest.approx(
        MultiLoraLM(run=str(run.path)).loglikelihood(request, disable_tqdm=True)[0][0], abs=1e-4
    )


@pytest.mark.slow
def test_lm_evals_command_line_with_the_model(tmp_path, model_folder):
    pytest.importorskip("lm_eval")
    file = str(write_jsonl(tmp_path / "rows.jsonl", [{"q": f"Is {n} one?", "a": n % 2} for n in range(6)]))
    task = {
        "task": "toy",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": file}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_target": "a",
        "doc_to_choice": ["yes", "no"],
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    command = [sys.executable, "-m", "multilora.harness", "run", "--model", "multilora"]
    command += ["--tasks", str(tmp_path / "toy.yaml"), "--output_path", str(tmp_path / "out"), "--model_args"]
    good = subprocess.run([*command, f"pretrained={model_folder},dtype=float32"], capture_output=True, text=True)
    assert good.returncode == 0, good.stderr
    (results,) = (tmp_path / "out").rglob("results*.json")
    saved = json.loads(results.read_text(encoding="utf-8"))
    assert saved["config"]["model"] == "multilora"
    assert 0 <= saved["results"]["toy"]["acc,none"] <= 1
    bad = subprocess.run([*command, "pretrained=/nowhere"], capture_output=True, text=True)
    assert bad.returncode == 2
    assert "error: model.name_or_path: cannot load '/nowhere'" in bad.stderr
    assert "Traceback" not in bad.stderr
