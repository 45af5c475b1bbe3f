"""Your own tasks and metrics in Python, as the documentation shows them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from difflib import SequenceMatcher

import pytest
from conftest import REPOSITORY, write_jsonl

import multilora
from multilora.errors import DataError, RecipeError
from multilora.metrics import METRICS
from multilora.recipe import Recipe
from multilora.tasks import make_task

PAGES = ("add_a_task", "add_a_metric")


def lay_out(page, folder):
    """Write every titled code block of a page into a folder."""
    text = (REPOSITORY / "docs" / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r'^```\w+ title="([\w.]+)"\n(.*?)^```', text, re.DOTALL | re.MULTILINE)
    for name, content in blocks:
        (folder / name).write_text(content, encoding="utf-8")
    return [name for name, _ in blocks]


def run_multilora(folder, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "multilora", *map(str, arguments)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_the_page_trains_and_scores(page, tmp_path):
    beside, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    beside.mkdir()
    elsewhere.mkdir()
    assert "recipe.yaml" in lay_out(page, beside)
    (output,) = re.findall(r"^output_dir: (\S+)$", (beside / "recipe.yaml").read_text(), re.MULTILINE)
    run_multilora(beside, "train", "recipe.yaml", "--json")
    # The run knows where the code is; the current directory does not matter.
    scores = run_multilora(elsewhere, "eval", beside / output, "--json")["after"]
    if page == "add_a_task":
        assert list(scores["contracts"]["metrics"]) == ["exact_match", "token_f1"]
        saved = Recipe.read_saved(beside / output / "recipe.yaml")
        assert saved.tasks[0].task == f"{beside / 'my_tasks.py'}:Contracts"
        assert saved.tasks[0].options == {"since": 2020}
    else:
        assert {name: score["metric"] for name, score in scores.items()} == {
            "echo": "similarity",
            "diverse": "diversity",
            "wrong": "error_rate",
        }
        assert [score["higher_is_better"] for score in scores.values()] == [True, True, False]


def task_of(folder, **keys):
    recipe = {"model": "nano", "tasks": [{"name": "mine", **keys}]}
    (folder / "r.yaml").write_text(json.dumps(recipe))
    return make_task(Recipe.load(folder / "r.yaml").tasks[0])


def test_what_a_task_from_outside_loads_and_scores(tmp_path):
    lay_out("add_a_task", tmp_path)
    task = task_of(tmp_path, task="my_tasks:Contracts", path=str(tmp_path / "contracts.jsonl"), options={"since": 2020})
    examples = [*task.load("train"), *task.load("eval")]
    assert sorted(example["answer"] for example in examples) == ["Acme Ltd", "Bolt Inc", "Cog plc", "Dray AG"]
    assert sum("Who signed" in example["prompt"] for example in examples) == 1
    answers = [example["response"] for example in examples]
    assert task.score(examples, answers) == {"exact_match": 1.0, "token_f1": 1.0}
    assert task.score(examples, ["The contract names nobody."] * 4)["exact_match"] == 0.0
    parity = task_of(tmp_path, task="my_generated_tasks:Parity")
    assert (len(parity.load("train")), len(parity.load("eval"))) == (40, 20)


def test_a_metric_from_outside_replaces_those_of_a_task_in_python(tmp_path):
    lay_out("add_a_task", tmp_path)
    lay_out("add_a_metric", tmp_path)
    keys = {"task": "my_tasks:Contracts", "path": str(tmp_path / "contracts.jsonl")}
    task = task_of(tmp_path, **keys, metric="my_metrics:similarity")
    examples = list(task.load("train"))
    expected = [SequenceMatcher(None, example["answer"], "Acme").ratio() for example in examples]
    assert task.score(examples, ["Acme"] * len(examples)) == {
        "similarity": pytest.approx(sum(expected) / len(expected))
    }
    with pytest.raises(DataError, match="metric accuracy scores choice, but this task's kind is generate"):
        task_of(tmp_path, **keys, metric="accuracy")


def test_changed_code_is_not_answered_from_the_cache(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", [{"q": f"{i}"} for i in range(4)])
    code = (
        "from multilora.tasks import RecordTask, free_example\nfrom helper import SIGN\n"
        "class Mine(RecordTask):\n    def examples(self, record, where):\n"
        "        yield free_example(record['q'] + SIGN, 'a', 'a')\n"
    )
    prompts = []
    for name, sign in (("one", "?"), ("two", "!")):  # another folder: a module is imported once per process
        folder = tmp_path / name
        folder.mkdir()
        (folder / "mine.py").write_text(code)
        (folder / "helper.py").write_text(f"SIGN = {sign!r}\n")
        sys.modules.pop("helper", None)
        prompts.append(task_of(folder, task="mine:Mine", path=str(path)).load("train")[0]["prompt"])
    assert [prompt[-1] for prompt in prompts] == ["?", "!"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"task": "nowhere:Task"}, "cannot import 'nowhere' .* put the file beside the recipe, or install the package"),
        ({"task": "my_tasks:Contract"}, r"has no 'Contract' \(did you mean 'Contracts'\?\)"),
        ({"task": "my_tasks.Contracts"}, "expected module:name or file.py:name"),
        ({"task": "broken:Task"}, r"cannot import .*broken.py' \(ZeroDivisionError"),
        ({"task": "my_tasks:Contracts", "prompt": "p"}, "prompt cannot be combined with `task`"),
        ({"path": ".", "prompt": "p", "response": "r", "options": {"a": 1}}, "options are passed to a task in Python"),
        (
            {"path": ".", "prompt": "p", "response": "r", "metric": "blue"},
            r"unknown metric 'blue' \(did you mean 'bleu'",
        ),
        ({"path": ".", "prompt": "p", "response": "r", "metric": "my_metrics:bleu"}, "has no 'bleu'"),
        ({"path": ".", "prompt": "p", "response": "r", "metric": "my_metrics:SequenceMatcher"}, "is a type, expected"),
        (
            {"path": ".", "prompt": "p", "response": "r", "choices": ["a", "b"], "metric": "my_metrics:similarity"},
            "my_metrics.py:similarity scores generated text, and this task has choices",
        ),
    ],
)
def test_references_that_cannot_be_used(keys, message, tmp_path):
    for page in PAGES:
        lay_out(page, tmp_path)
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(RecipeError, match=message):
        task_of(tmp_path, **keys)


@pytest.mark.parametrize("name", ["NotATask", "Fails"])
def test_a_class_that_is_no_task(name, tmp_path):
    (tmp_path / "odd.py").write_text(
        "class NotATask:\n    def __init__(self, s): ...\ndef Fails(s):\n    return 1 / 0\n"
    )
    with pytest.raises(DataError, match=r"returned a NotATask, expected an instance|raised ZeroDivisionError when"):
        task_of(tmp_path, task=f"odd:{name}")


def test_a_metric_of_an_extra_that_is_missing(recipe, monkeypatch):
    from multilora.recipe import task_checks

    recipe["tasks"][1]["metric"] = "bleu"
    multilora.Recipe.load(recipe)
    monkeypatch.setattr(task_checks, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"metric bleu needs sacrebleu; pip install 'multilora\[metrics\]'"):
        multilora.Recipe.load(recipe)


def test_every_metric_of_the_table_is_documented():
    page = (REPOSITORY / "docs" / "add_a_metric.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \| (choice|text) \|", page, re.MULTILINE)
    documented = {name: answers for names, answers in rows for name in re.findall(r"`(\w+)`", names)}
    assert documented == {name: metric.answers for name, metric in METRICS.items()}
