"""Every task file on its real data, where that lies beside the checkout."""

from __future__ import annotations

import pytest
from conftest import REAL_DATA

from multilora.recipe import TaskSection
from multilora.tasks import make_task

pytestmark = pytest.mark.skipif(not REAL_DATA.is_dir(), reason="no real data beside the checkout")

# name -> (path, eval_path, training examples, evaluation examples), counted from the files' own documentation
REAL = {
    "gsm8k": ("gsm8k", None, 7473, 1319),
    "dolly": ("dolly15k/dolly.jsonl", None, 13342, 1482),
    "alpaca": ("alpaca_subsets/torchtune_alpaca_tiny.json", None, 90, 10),
    "superglue/boolq": ("superglue/BoolQ/fewglue_train32.jsonl", "superglue/BoolQ/val.jsonl", 32, 3270),
    "superglue/cb": ("superglue/CB", None, 250, 56),
    "superglue/copa": ("superglue/COPA", None, 400, 100),
    "superglue/multirc": ("superglue/MultiRC", None, 27243, 4848),
    "superglue/record": ("superglue/ReCoRD/fewglue_train32.jsonl", "superglue/ReCoRD/dev32.jsonl", None, None),
    "superglue/rte": ("superglue/RTE", None, 2490, 277),
    "superglue/wic": ("superglue/WiC", None, 5428, 638),
    "superglue/wsc": ("superglue/WSC", None, 554, 104),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_load_whole(name):
    path, eval_path, train, evaluation = REAL[name]
    section = TaskSection(
        name=name, path=str(REAL_DATA / path), eval_path=str(REAL_DATA / eval_path) if eval_path else None
    )
    task = make_task(section)
    for split, expected in (("train", train), ("eval", evaluation)):
        examples = task.load(split)
        assert len(examples) == expected if expected else len(examples) >= 32
        for example in examples:
            assert example["prompt"].strip()
            assert example["response"].strip()
            for label in example["labels"]:
                assert 0 <= label < len(example["choices"])
