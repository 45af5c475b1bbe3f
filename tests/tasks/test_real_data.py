"""Every task on its real data, if the data is beside the checkout."""

from __future__ import annotations

from collections import Counter

import pytest
from conftest import REAL_DATA

from multilora.recipe import TaskSection
from multilora.tasks import make_task

pytestmark = pytest.mark.skipif(not REAL_DATA.is_dir(), reason="no real data beside the checkout")

# name -> (path, eval_path, training examples, evaluation examples), counted from the files' own documentation
REAL = {
    "gsm8k": ("gsm8k", None, 7473, 1319),
    "dolly": ("dolly15k/dolly.jsonl", None, None, None),
    "alpaca": ("alpaca_subsets/torchtune_alpaca_tiny.json", None, None, None),
    "mmlu": ("mmlu", None, 285 + 1531, 14042),
    "superglue/boolq": ("superglue/BoolQ/fewglue_train32.jsonl", "superglue/BoolQ/val.jsonl", 32, 3270),
    "superglue/cb": ("superglue/CB", None, 250, 56),
    "superglue/copa": ("superglue/COPA", None, 400, 100),
    "superglue/multirc": ("superglue/MultiRC", None, 27243, 4848),
    "superglue/record": ("superglue/ReCoRD/fewglue_train32.jsonl", "superglue/ReCoRD/dev32.jsonl", None, None),
    "superglue/rte": ("superglue/RTE", None, 2490, 277),
    "superglue/wic": ("superglue/WiC", None, 5428, 638),
    "superglue/wsc": ("superglue/WSC", None, 554, 104),
}
# Tasks without an evaluation split -> all examples.
HELD_OUT = {"dolly": 14_824, "alpaca": 100}
ALPACA = {"llamafactory_alpaca_en_demo": 999, "superlog_alpaca_1k_longest": 1013, "torchtune_alpaca_tiny": 100}


def real_task(name):
    path, eval_path, *_ = REAL[name]
    if not (REAL_DATA / path).exists():
        pytest.skip(f"no {path}")
    return make_task(
        TaskSection(name=name, path=str(REAL_DATA / path), eval_path=str(REAL_DATA / eval_path) if eval_path else None)
    )


@pytest.mark.parametrize("name", REAL)
def test_real_files_load_completely(name):
    task = real_task(name)
    for split, expected in zip(("train", "eval"), REAL[name][2:], strict=True):
        dataset = task.load(split)
        if name in HELD_OUT:
            fraction = len(dataset) / HELD_OUT[name]
            assert fraction == pytest.approx(0.9 if split == "train" else 0.1, abs=1.5 / HELD_OUT[name] ** 0.5)
        else:
            assert len(dataset) == expected if expected else len(dataset) >= 32
        examples = dataset.to_list()
        for example in examples:
            assert example["prompt"].strip()
            assert example["response"].strip()
            assert [example["choices"][index] for index in example["correct"][:1]] == [example["response"]][
                : len(example["choices"])
            ]
    if name in HELD_OUT:
        assert len(task.load("train")) + len(task.load("eval")) == HELD_OUT[name]
    # The reference responses are correct by every metric.
    if task.kind != "loss":
        scores = task.score(examples, [example["response"] for example in examples])
        assert set(scores.values()) == {1.0}


def test_no_real_record_is_dropped_except_empty_responses():
    for name in REAL:
        task = real_task(name)
        for split in ("train", "eval"):
            task.load(split)
            assert set(task.dropped) <= ({"empty response"} if name in ("dolly", "alpaca") else set())


def test_mmlu_has_57_subjects():
    task = real_task("mmlu")
    groups = Counter(task.load("eval")["group"])
    assert len(groups) == 57
    assert min(groups.values()) == 100
    assert groups["professional_law"] == 1534
    responses = Counter(task.load("eval")["response"])
    assert responses == {"A": 3222, "B": 3462, "C": 3582, "D": 3776}
    section = TaskSection(name="mmlu/astronomy", path=str(REAL_DATA / "mmlu" / "data"))
    assert len(make_task(section).load("eval")) == groups["astronomy"]


def test_multirc_has_953_questions_and_its_majority_score():
    """Always answering no finds no correct answer: F1a is 0, and EM the fraction of questions without one."""
    task = real_task("superglue/multirc")
    examples = task.load("eval").to_list()
    assert len({example["group"] for example in examples}) == 953
    scores = task.score(examples, ["no"] * len(examples))
    assert scores["f1a"] == 0
    assert 0 < scores["exact_match"] < 0.1


def test_majority_scores_of_cb():
    """SuperGLUE's most-frequent-class row is 21.7 F1 and 48.4 accuracy on the test set; this is validation."""
    task = real_task("superglue/cb")
    examples = task.load("eval").to_list()
    scores = task.score(examples, ["false"] * len(examples))
    assert scores["accuracy"] == 0.5
    assert scores["f1_macro"] == pytest.approx((2 * 28 / (2 * 28 + 28)) / 3)


@pytest.mark.parametrize("name", ALPACA)
def test_alpaca_variants(name):
    path = REAL_DATA / "alpaca_subsets" / f"{name}.json"
    task = make_task(TaskSection(name="alpaca", path=str(path)))
    total = 0
    for split in ("train", "eval"):
        total += len(task.load(split)) + sum(task.dropped.values())
    assert total == ALPACA[name]


def test_seed_tasks_as_own_data():
    """Instructions with a list of instances, rendered by templates."""
    path = REAL_DATA / "alpaca_subsets" / "seed_tasks.jsonl"
    section = TaskSection(
        name="seeds",
        path=str(path),
        prompt="{{ instruction }}\n\n{{ instances[0].input }}",
        response="{{ instances[0].output }}",
    )
    task = make_task(section)
    assert len(task.load("train")) + len(task.load("eval")) == 175
