"""Every built-in task on hand-written records in the official format and the hub's format."""

from __future__ import annotations

import json

import pytest
from conftest import numbered, write_jsonl
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from multilora.errors import DataError
from multilora.example import free_example
from multilora.recipe import TaskSection
from multilora.recipe.built_in_tasks import BUILT_IN
from multilora.tasks import make_task
from multilora.tasks.gsm8k import strict_match
from multilora.tasks.superglue import RENDERERS

PASSAGE = "Ann met Bob in Rome.\n@highlight\nAnn likes Rome"
# task -> (official record, hub record, responses)
SUPERGLUE = {
    "boolq": (
        {"question": "is ice cold", "passage": "Ice is cold.", "label": True},
        {"question": "is ice cold", "passage": "Ice is cold.", "label": 1},
        ["yes"],
    ),
    "cb": (
        {"premise": "He left.", "hypothesis": "he stayed", "label": "contradiction"},
        {"premise": "He left.", "hypothesis": "he stayed", "label": 1},
        ["false"],
    ),
    "copa": (
        {
            "premise": "It rained.",
            "choice1": "The sun came.",
            "choice2": "I got wet.",
            "question": "effect",
            "label": 1,
        },
        {
            "premise": "It rained.",
            "choice1": "The sun came.",
            "choice2": "I got wet.",
            "question": "effect",
            "label": 1,
        },
        ["I got wet."],
    ),
    "multirc": (
        {
            "idx": 4,
            "passage": {
                "text": "Ann ate.",
                "questions": [
                    {
                        "question": "Who ate?",
                        "idx": 2,
                        "answers": [{"text": "Ann", "label": 1}, {"text": "Bob", "label": 0}],
                    }
                ],
            },
        },
        {
            "paragraph": "Ann ate.",
            "question": "Who ate?",
            "answer": "Ann",
            "label": 1,
            "idx": {"paragraph": 4, "question": 2, "answer": 0},
        },
        ["yes", "no"],
    ),
    "record": (
        {
            "passage": {
                "text": PASSAGE,
                "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 10}, {"start": 15, "end": 18}],
            },
            "qas": [{"query": "@placeholder is in Italy", "answers": [{"text": "Rome", "start": 15, "end": 18}]}],
        },
        {
            "passage": PASSAGE,
            "query": "@placeholder is in Italy",
            "entities": ["Ann", "Bob", "Rome"],
            "answers": ["Rome"],
        },
        ["Rome"],
    ),
    "rte": (
        {"premise": "He left.", "hypothesis": "He went.", "label": "not_entailment"},
        {"premise": "He left.", "hypothesis": "He went.", "label": 1},
        ["no"],
    ),
    "wic": (
        {"word": "bank", "sentence1": "The bank lends.", "sentence2": "The river bank.", "label": False},
        {"word": "bank", "sentence1": "The bank lends.", "sentence2": "The river bank.", "label": 0},
        ["no"],
    ),
    "wsc": (
        {"text": "Mark told Pete. He lied.", "target": {"span1_text": "Mark", "span2_text": "He"}, "label": True},
        {"text": "Mark told Pete. He lied.", "span1_text": "Mark", "span2_text": "He", "label": 1},
        ["yes"],
    ),
}


@pytest.mark.parametrize("name", RENDERERS)
def test_superglue_official_and_hub_records_agree(name):
    official, hub, responses = SUPERGLUE[name]
    examples = list(RENDERERS[name](official, "here"))
    assert [example["response"] for example in examples] == responses
    assert next(RENDERERS[name](hub, "here")) == examples[0]
    for example in examples:
        assert example["response"] == example["choices"][example["correct"][0]]


def test_copa_asks_for_the_cause():
    record = {**SUPERGLUE["copa"][0], "question": "cause"}
    (example,) = RENDERERS["copa"](record, "here")
    assert "cause" in example["prompt"]
    assert "result" not in example["prompt"]


def test_record_counts_every_official_answer():
    record = dict(SUPERGLUE["record"][1], answers=["Rome", "Ann", "Rome"])
    (example,) = RENDERERS["record"](record, "here")
    assert example["correct"] == [2, 0]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("rte", {"label": "maybe"}, "label 'maybe', expected one of"),
        ("boolq", {"label": 7}, "label 7, expected true or false"),
        ("cb", {"label": 3}, "label 3"),
        ("copa", {"question": "why"}, "question 'why'"),
    ],
)
def test_invalid_labels_are_reported(name, change, message):
    with pytest.raises(DataError, match=message):
        list(RENDERERS[name]({**SUPERGLUE[name][0], **change}, "here"))


def test_a_missing_field_is_reported_with_the_present_fields():
    record = {"premise": "a", "label": 0}
    with pytest.raises(DataError, match=r"here: no field 'hypothesis'; the record has 'premise', 'label'"):
        list(RENDERERS["rte"](record, "here"))


def test_gsm8k(tmp_path):
    record = {"question": "How many?", "answer": "48/2 = <<48/2=24>>24.\n#### 1,024"}
    write_jsonl(tmp_path / "train.jsonl", [record])
    write_jsonl(tmp_path / "test.jsonl", [record, record])
    task = make_task(TaskSection(name="gsm8k", path=str(tmp_path)))
    (example,) = task.load("train")
    assert example["response"] == "48/2 = 24.\n#### 1,024"
    assert example["answer"] == "1024"
    assert len(task.load("eval")) == 2


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so 3.\n#### 72", "72"),
        ("#### -5", "-5"),
        ("#### 1,000.", "1000"),
        ("#### 2.50", "2.5"),
        ("#### $5", "5"),
        ("#### -$5.00", "-5"),
        ("####\n18 apples, of 20", "18"),
        ("#### none, as 3 are left", "3"),
        ("#### none", ""),
        ("so 3 and 4 make 7.", "7"),
        ("72", "72"),
        ("", ""),
    ],
)
def test_gsm8k_final_answer(text, answer):
    task = make_task(TaskSection(name="gsm8k"))
    assert task.final_answer(text) == answer


def test_gsm8k_reports_the_lenient_and_the_strict_match():
    """The strict one is lm-evaluation-harness's `strict-match`: `#### (\\-?[0-9\\.\\,]+)`."""
    task = make_task(TaskSection(name="gsm8k"))
    texts = ["1 + 1\n#### 1,024.", "#### $1024", "so it is 1024", "####1024", "#### 1,023"]
    examples = [free_example("q", "#### 1024", "1024")] * len(texts)
    assert task.score(examples, texts) == {"exact_match": 0.8, "strict_match": 0.2}


@settings(deadline=None)
@given(
    st.text(alphabet="0123456789.,-$# \n", max_size=20)
    | st.builds(
        "x {} #### {}{} y".format, st.just("a"), st.sampled_from(["", "$", "-"]), st.sampled_from(["72", "7,2."])
    )
)
def test_gsm8k_strict_match_equals_lm_evaluation_harness(text):
    filters, metrics = (pytest.importorskip(f"lm_eval.{name}") for name in ("filters.extraction", "api.metrics"))
    ((extracted,),) = filters.RegexFilter(r"#### (\-?[0-9\.\,]+)", 0, "[invalid]").apply([[text]], [{}])
    expected = metrics.exact_match_hf_evaluate(
        [extracted], ["72"], regexes_to_ignore=[",", r"\$", "(?s).*#### ", r"\.$"], ignore_case=True
    )["exact_match"]
    assert strict_match(["72"], text) == expected


def test_alpaca_and_dolly(tmp_path):
    alpaca = [{"instruction": "Add.", "input": "1 2" if i else "", "output": "3"} for i in range(4)]
    (tmp_path / "alpaca.json").write_text(json.dumps(alpaca))
    task = make_task(TaskSection(name="alpaca", path=str(tmp_path / "alpaca.json"), holdout=0.25))
    prompts = set(task.load("train")["prompt"]) | set(task.load("eval")["prompt"])
    assert prompts == {"Add.", "Add.\n\n1 2"}
    dolly = numbered({"instruction": "Add.", "context": "1 2", "response": "3", "category": "x"}, 2)
    write_jsonl(tmp_path / "dolly.jsonl", dolly)
    task = make_task(TaskSection(name="dolly", path=str(tmp_path / "dolly.jsonl")))
    assert task.load("train")[0]["prompt"] == "Add.\n\n1 2"
    assert task.kind == "loss"


def test_records_without_a_response_are_dropped_and_logged(tmp_path, caplog):
    records = [{"instruction": f"Add {i}.", "input": "", "output": "" if i == 1 else "3"} for i in range(6)]
    (tmp_path / "alpaca.json").write_text(json.dumps(records))
    section = TaskSection(name="alpaca", path=str(tmp_path / "alpaca.json"))
    dropped = {}
    sizes = 0
    for split in ("train", "eval"):
        task = make_task(section)
        sizes += len(task.load(split))
        dropped.update(task.dropped)
    assert sizes == 5
    assert dropped == {"empty response": 1}
    assert "dropped 1 (empty response)" in caplog.text


@pytest.mark.parametrize("family", [name for name in BUILT_IN if name.startswith("nano/")])
def test_generated_families(family):
    task = make_task(TaskSection(name=family))
    train, evaluation = task.load("train"), task.load("eval")
    assert not set(train["prompt"]) & set(evaluation["prompt"])
    row = evaluation[0]
    if task.kind == "choice":
        assert row["choices"][row["correct"][0]] == row["response"]
    else:
        assert task.final_answer(row["response"]) == row["answer"]


def test_every_built_in_task_can_be_made():
    for name in BUILT_IN:
        assert make_task(TaskSection(name=name)).name == name


SUBJECTS = {"astronomy": 3, "world_religions": 2}


def write_mmlu(folder, auxiliary=False):
    for part in ("dev", "val", "test"):
        (folder / part).mkdir(parents=True)
        for subject, count in SUBJECTS.items():
            rows = [f'"{part} {subject}, {i}?",one,"two, 2",3,"four",{"ABCD"[i]}' for i in range(count)]
            (folder / part / f"{subject}_{part}.csv").write_text("\n".join(rows) + "\n")
    if auxiliary:
        (folder / "auxiliary_train").mkdir()
        (folder / "auxiliary_train" / "race.csv").write_text("Who?,a,b,c,d,D\n")


@pytest.mark.parametrize("subfolder", ["", "data"])
def test_mmlu(subfolder, tmp_path):
    write_mmlu(tmp_path / subfolder)
    task = make_task(TaskSection(name="mmlu", path=str(tmp_path)))
    train, test = task.load("train"), task.load("eval")
    assert (len(train), len(test)) == (10, 5)
    assert test[4]["prompt"] == (
        "The following are multiple choice questions (with answers) about world religions.\n\n"
        "test world_religions, 1?\nA. one\nB. two, 2\nC. 3\nD. four\nAnswer:"
    )
    assert (test[4]["response"], test[4]["choices"], test[4]["group"]) == ("B", ["A", "B", "C", "D"], "world_religions")
    predictions = ["A", "B", "A", "A", "A"]
    score = task.score(test.to_list(), predictions)
    assert score == {"accuracy": 0.6, "accuracy_over_subjects": pytest.approx((2 / 3 + 1 / 2) / 2)}


def test_mmlu_with_its_auxiliary_training_data_and_by_subject(tmp_path):
    write_mmlu(tmp_path, auxiliary=True)
    train = make_task(TaskSection(name="mmlu", path=str(tmp_path))).load("train")
    assert len(train) == 11
    assert train[0]["prompt"].startswith("The following are multiple choice questions (with answers).\n\nWho?\nA. a")
    task = make_task(TaskSection(name="mmlu/astronomy", path=str(tmp_path)))
    assert (len(task.load("train")), len(task.load("eval"))) == (6, 3)
    assert list(task.score(task.load("eval").to_list(), ["A"] * 3)) == ["accuracy"]
    with pytest.raises(DataError, match=r"no subject 'astronmy' \(did you mean 'astronomy'\?\)"):
        make_task(TaskSection(name="mmlu/astronmy", path=str(tmp_path))).load("eval")


def test_invalid_mmlu_folders(tmp_path):
    with pytest.raises(DataError, match="expected folders dev, val and test"):
        make_task(TaskSection(name="mmlu", path=str(tmp_path))).load("train")
    write_mmlu(tmp_path)
    path = tmp_path / "test" / "astronomy_test.csv"
    path.write_text("Who?,a,b,c,d,A\nWho?,a,b,c,d,E\n")
    with pytest.raises(DataError, match=r"astronomy_test.csv, line 2: answer 'E', expected a letter A to D or 0 to 3"):
        make_task(TaskSection(name="mmlu", path=str(tmp_path))).load("eval")
    path.write_text("Who?,a,b,c,A\n")
    with pytest.raises(DataError, match="line 1: 5 columns, expected question, four choices and the letter"):
        make_task(TaskSection(name="mmlu", path=str(tmp_path))).load("eval")


STEM, TEXTS = "Why is ice cold?", ["because", "it is not", "no"]
SCIENCE = "Why is ice cold?\nA. because\nB. it is not\nC. no\nAnswer:"


def science_record(names, key):
    choices = [{"text": text, "label": name} for text, name in zip(TEXTS, names, strict=True)]
    return {"id": "x", "question": {"stem": STEM, "choices": choices}, "answerKey": key}


@pytest.mark.parametrize(
    ("name", "files", "hub"),
    [
        ("arc/easy", ("ARC-Easy-Train.jsonl", "ARC-Easy-Test.jsonl"), {"question": STEM}),
        ("arc/challenge", ("ARC-Challenge-Train.jsonl", "ARC-Challenge-Test.jsonl"), {"question": STEM}),
        ("openbookqa", ("train.jsonl", "test.jsonl"), {"question_stem": STEM}),
    ],
)
def test_science_questions(name, files, hub, tmp_path, monkeypatch):
    records = [science_record("ABC", "B"), science_record("123", "2")]
    write_jsonl(tmp_path / files[0], records)
    task = make_task(TaskSection(name=name, path=str(tmp_path)))
    with pytest.raises(DataError, match=f"expected a file '{files[1]}', found {files[0]}"):
        task.load("eval")
    write_jsonl(tmp_path / files[1], records[:1])
    (first, second), (test,) = task.load("train"), task.load("eval")
    assert first == second == test
    assert (first["prompt"], first["response"], first["choices"]) == (SCIENCE, "B", ["A", "B", "C"])

    row = {**hub, "choices": {"text": TEXTS, "label": ["A", "B", "C"]}, "answerKey": "B"}
    calls = []

    def load_dataset(*arguments, **options):
        calls.append((*arguments, options["split"]))
        return Dataset.from_list([row])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert make_task(TaskSection(name=name)).load("eval")[0] == first
    config = {"arc/easy": "ARC-Easy", "arc/challenge": "ARC-Challenge", "openbookqa": "main"}[name]
    assert calls[0][1:] == (config, "test")


def test_an_answer_key_outside_the_labels(tmp_path):
    write_jsonl(tmp_path / "ARC-Easy-Train.jsonl", [science_record("ABC", "D")])
    with pytest.raises(DataError, match=r"answerKey 'D' is not one of the labels \['A', 'B', 'C'\]"):
        make_task(TaskSection(name="arc/easy", path=str(tmp_path))).load("train")


def test_mmlu_from_the_hub(monkeypatch):
    row = {"question": "Why?", "subject": "world_religions", "choices": ["a", "b", "c", "d"], "answer": 2}
    calls = []

    def load_dataset(*arguments, **options):
        calls.append((*arguments, options["split"]))
        return Dataset.from_list([row])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    (example,) = make_task(TaskSection(name="mmlu")).load("train")
    make_task(TaskSection(name="mmlu/world_religions")).load("eval")
    assert (example["response"], example["group"]) == ("C", "world_religions")
    assert calls == [("cais/mmlu", "all", "dev+validation"), ("cais/mmlu", "world_religions", "test")]
