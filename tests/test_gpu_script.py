"""`benchmarks/gpu.sh` runs on a CPU with tiny sizes: every command is accepted and writes its table."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_jsonl

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.sh"


def make_data(folder):
    for split, count in (("dev", 5), ("test", 6)):
        (folder / "mmlu" / split).mkdir(parents=True)
        with (folder / "mmlu" / split / f"arithmetic_{split}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([f"What is {i} + 1?", i, i + 1, i + 2, i + 3, "B"] for i in range(count))
    (folder / "gsm8k").mkdir()
    for split in ("train", "test"):
        records = [{"question": f"What is {i} + 2?", "answer": f"It is {i + 2}.\n#### {i + 2}"} for i in range(24)]
        write_jsonl(folder / "gsm8k" / f"{split}.jsonl", records)


@pytest.mark.slow
def test_the_dry_run_writes_every_table(tmp_path, model_folder):
    pytest.importorskip("trl")
    make_data(tmp_path / "data")
    environment = {**os.environ, "DRY_RUN": "1", "PYTHON": sys.executable}
    command = [str(SCRIPT), str(model_folder), str(tmp_path / "data"), str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tables = {path.stem: path.read_text(encoding="utf-8") for path in (tmp_path / "out").glob("*.md")}
    assert set(tables) == {"adapter_tiny", "loss", "evaluation", "end_to_end_packing"}
    assert all("|---" in table for table in tables.values())


def test_it_refuses_to_run_without_arguments_or_a_gpu(tmp_path):
    assert subprocess.run([str(SCRIPT)], capture_output=True, check=False).returncode != 0
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "DRY_RUN": ""}
    done = subprocess.run(
        [str(SCRIPT), "model", "data", str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no GPU is visible" in done.stderr
