"""Our scores of choices are lm-eval's acc, acc_norm, acc_bytes and acc_mutual_info, with their standard errors."""

from __future__ import annotations

import random
import shutil

import pytest
import yaml
from conftest import make_llama, make_tokenizer, write_jsonl

pytest.importorskip("lm_eval")

from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from multilora.data.render import Renderer
from multilora.evaluation.choices import choice_scores, most_likely
from multilora.evaluation.score import evaluation_sets, score_tasks
from multilora.evaluation.statistics.intervals import mean_stderr
from multilora.harness.engine_model import MultiLoraLM
from multilora.harness.run import harness_scores
from multilora.recipe import Recipe

METRICS = {
    "sum": "acc",
    "per_character": "acc_norm",
    "per_byte": "acc_bytes",
    "mutual_information": "acc_mutual_info",
}
WORDS = ["yes", "no", "one two", "the answer", "five", "éé", "日本"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The records of a task, the model, and lm-eval's results with its own model on the same requests as ours."""
    folder = tmp_path_factory.mktemp("choices")
    rng = random.Random(0)
    rows = []
    for number in range(60):
        options = ["".join(f"{rng.choice(WORDS)} " for _ in range(rng.randint(1, 4))) + f"{k}" for k in range(3)]
        rows.append({"q": f"Which is {number}?", "options": options, "a": number % 3})
    file = str(write_jsonl(folder / "rows.jsonl", rows))
    task = {
        "task": "toy",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": file}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "<s>Question: {{q}}\nAnswer:",  # the tokenizer itself adds no BOS
        "doc_to_target": "a",
        "doc_to_choice": "options",
        "metric_list": [{"metric": metric} for metric in METRICS.values()],
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    model, tokenizer = make_llama(), make_tokenizer()
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    expected = harness_scores(theirs, ["toy"], manager=manager)
    ours = MultiLoraLM(model=model, tokenizer=tokenizer)
    asked = harness_scores(ours, ["toy"], manager=manager, samples=True)
    metrics = expected["tasks"]["toy"]["metrics"]
    assert len({round(metrics[metric]["value"], 6) for metric in METRICS.values()}) > 1
    return file, model, tokenizer, metrics, asked["samples"]["toy"]


def copy_of(file: str) -> str:
    """The same records as the evaluation file: nothing is trained."""
    return shutil.copy(file, file.replace("rows.jsonl", "eval.jsonl"))


@pytest.mark.parametrize("kind", ["sum", "per_character", "per_byte"])
def test_a_task_of_a_recipe(results, kind):
    """The whole way: own data in the template `question` makes the requests of lm-eval's task."""
    file, model, tokenizer, metrics, samples = results
    section = {"name": "toy", "path": file, "eval_path": copy_of(file), "prompt": "{{ q }}", "choices": "options"}
    section |= {"response": "{{ options[a] }}", "choice_score": kind}
    recipe = Recipe.load({"model": "nano", "tasks": [section], "data": {"template": "question"}})
    renderer = Renderer(tokenizer, "question")
    sets = evaluation_sets(recipe, 1000)
    answers = []

    def keep(_, found):
        answers.append(found)

    score = score_tasks(model, renderer, sets, recipe.evaluation, "scoring", keep=keep)["toy"]
    assert score.value == metrics[METRICS[kind]]["value"]
    assert score.stderr == pytest.approx(metrics[METRICS[kind]]["stderr"], rel=1e-9)
    for sums, sample in zip(answers[0].choice_sums, samples, strict=True):
        assert sums == pytest.approx([answer[0] for answer in sample["filtered_resps"][:3]], abs=1e-4)


@pytest.mark.parametrize("kind", METRICS)
def test_the_same_requests(results, kind):
    """The formulas, on the log-likelihoods of lm-eval's requests; mutual information has those without a question."""
    *_, metrics, samples = results
    correct = []
    for sample in samples:
        sums = [answer[0] for answer in sample["filtered_resps"]]
        texts = sample["doc"]["options"]
        scores = choice_scores(kind, sums[:3], texts, [1] * 3, sums[3:])
        correct.append(float(most_likely(scores) == sample["target"]))
    assert sum(correct) / len(correct) == metrics[METRICS[kind]]["value"]
    assert mean_stderr(correct) == pytest.approx(metrics[METRICS[kind]]["stderr"], rel=1e-9)
