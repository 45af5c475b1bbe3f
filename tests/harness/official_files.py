"""Fixtures: models, and small data in the official formats."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from conftest import make_llama, make_tokenizer, write_jsonl

MMLU_ROWS = [
    ["Which is largest?", "ant", "whale", "dog", "cat", "B"],
    ['Which "is" first?\n(of four)', "one", "two", "three", "four", "A"],
    ["Which is last? ", "one", "two", "three", "four", "D"],
    ["Which is even?", "1", "3", "4", "5", "C"],
    ["Which is odd?", "2", "4", "6", "7", "D"],
    ["Which is red?", "grass", "sky", "blood", "snow", "C"],
    ["Which is cold?", "fire", "ice", "sun", "tea", "B"],
]
RECORD_TEXT = "Ann met Bob in Rome.\n@highlight\nAnn lives in Rome"
SUPERGLUE: dict[str, list[dict[str, Any]]] = {
    "boolq": [
        {"question": f"is {n} an even number", "passage": f"The number is {n}.", "label": n % 2 == 0} for n in range(7)
    ],
    "cb": [
        {"premise": f"He said {n}.", "hypothesis": f"it was {n}", "label": label}
        for n, label in enumerate(["entailment", "contradiction", "neutral"] * 3)
    ],
    "copa": [
        {
            "premise": f"Man {n} opened the tap.",
            "choice1": "The glass was filled.",
            "choice2": "He was thirsty.",
            "question": ["effect", "cause"][n % 2],
            "label": n % 2,
        }
        for n in range(6)
    ],
    "multirc": [
        {
            "idx": n,
            "passage": {
                "text": f"Passage {n}: one two three.",
                "questions": [
                    {
                        "idx": n,
                        "question": "What is first?",
                        "answers": [
                            {"text": t, "label": int(t == "one"), "idx": 2 * n + i} for i, t in enumerate(pair)
                        ],
                    }
                ],
            },
        }
        for n, pair in enumerate([("one", "two"), ("three", "one"), ("two", "one")])
    ],
    "record": [
        {
            "idx": n,
            "passage": {
                "text": f"{RECORD_TEXT} {n}",
                "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 10}, {"start": 15, "end": 18}],
            },
            "qas": [{"idx": n, "query": "@placeholder met a man", "answers": [{"text": "Ann", "start": 0, "end": 2}]}],
        }
        for n in range(7)
    ],
    "rte": [
        {"premise": f"It is {n}.", "hypothesis": f"It is not {n}.", "label": ["not_entailment", "entailment"][n % 2]}
        for n in range(7)
    ],
    "wic": [
        {
            "word": "bank",
            "sentence1": f"The bank is open {n}.",
            "sentence2": "A river bank.",
            "label": bool(n % 2),
            "start1": 4,
            "end1": 8,
            "start2": 8,
            "end2": 12,
        }
        for n in range(7)
    ],
    "wsc": [
        {
            "text": f"the dog chased a cat because it ran {n} .",
            "target": {"span1_index": 0, "span1_text": "The dog.", "span2_index": 6, "span2_text": "it"},
            "label": bool(n % 2),
        }
        for n in range(7)
    ],
}


def science(n: int) -> dict[str, Any]:
    """An official record of ARC or OpenBookQA."""
    labels = ["A", "B", "C", "D"] if n % 2 else ["1", "2", "3"]
    choices = [{"text": f"the answer is {label} and {n}", "label": label} for label in labels]
    return {"id": str(n), "question": {"stem": f"Which one is {n}?", "choices": choices}, "answerKey": labels[n % 3]}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per built-in task, in the official layout."""
    root = tmp_path_factory.mktemp("data")
    for split in ("dev", "val", "test"):
        (root / "mmlu" / split).mkdir(parents=True)
        for subject in ("anatomy", "high_school_physics"):
            with (root / "mmlu" / split / f"{subject}_{split}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(MMLU_ROWS[:5] if split == "dev" else MMLU_ROWS)
    for name, records in SUPERGLUE.items():
        (root / "superglue" / name).mkdir(parents=True)
        for split in ("train", "val"):
            write_jsonl(root / "superglue" / name / f"{split}.jsonl", records)
    for folder, names in {
        "arc": ("ARC-Easy-Train", "ARC-Easy-Test", "ARC-Challenge-Train", "ARC-Challenge-Test"),
        "openbookqa": ("train", "test"),
    }.items():
        (root / folder).mkdir()
        for name in names:
            write_jsonl(root / folder / f"{name}.jsonl", [science(n) for n in range(6)])
    (root / "gsm8k").mkdir()
    for split in ("train", "test"):
        sums = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"} for n in range(8)]
        write_jsonl(root / "gsm8k" / f"{split}.jsonl", sums)
    return root


@pytest.fixture(scope="session")
def paths(data: Path) -> dict[str, str]:
    """Built-in task -> its folder in `data`."""
    superglue = {f"superglue/{name}": str(data / "superglue" / name) for name in SUPERGLUE}
    arc = {name: str(data / "arc") for name in ("arc/easy", "arc/challenge")}
    mmlu = {"mmlu/anatomy": str(data / "mmlu")}
    return {**superglue, **arc, **mmlu, "openbookqa": str(data / "openbookqa"), "gsm8k": str(data / "gsm8k")}


@pytest.fixture(scope="session")
def manager() -> Any:
    """lm-eval's index of its tasks, which takes seconds to make; the package makes it once too."""
    pytest.importorskip("lm_eval")
    from multilora.harness.run import task_manager

    return task_manager()


@pytest.fixture(scope="session")
def tiny() -> tuple[Any, Any]:
    return make_llama(max_position_embeddings=512), make_tokenizer()
