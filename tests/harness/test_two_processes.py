"""lm-eval's command line started by torchrun: two processes have the values of one, and write one file of results."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml
from conftest import make_llama, make_tokenizer, write_jsonl

TASKS = {
    "choose": {
        "output_type": "multiple_choice",
        "doc_to_text": "Is {{n}} one?",
        "doc_to_target": "odd",
        "doc_to_choice": ["yes", "no"],
        "metric_list": [{"metric": "acc"}, {"metric": "brier_score"}],
    },
    "write": {
        "output_type": "generate_until",
        "doc_to_text": "Is {{n}} one?",
        "doc_to_target": "text",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    },
    "read": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [{"metric": "word_perplexity"}],
    },
}


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    pytest.importorskip("lm_eval")
    make_llama(max_position_embeddings=512).save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    rows = [{"n": n, "odd": n % 2, "text": f"the answer is {n}"} for n in range(9)]
    data = {"test": str(write_jsonl(tmp_path / "rows.jsonl", rows))}
    for name, task in TASKS.items():
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": data},
            "test_split": "test",
        } | task
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    command = ["-m", "multilora.harness", "run", "--model", "multilora", "--include_path", str(tmp_path)]
    command += ["--tasks", ",".join(TASKS), "--model_args", f"pretrained={tmp_path / 'base'},dtype=float32"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    def results(name, *launcher, **environment):
        arguments = [sys.executable, *launcher, *command, "--output_path", str(tmp_path / name), "--log_samples"]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
        done = subprocess.run(arguments, capture_output=True, text=True, env=variables)
        assert done.returncode == 0, done.stderr
        (file,) = (tmp_path / name).rglob("results*.json")
        (lines,) = (tmp_path / name).rglob("samples_write_*.jsonl")
        written = [json.loads(line)["filtered_resps"] for line in lines.read_text(encoding="utf-8").splitlines()]
        assert done.stdout.count("|choose|") == 1  # one process prints
        return json.loads(file.read_text(encoding="utf-8"))["results"], written

    (two, two_written), (one, one_written) = results("two", *launch), results("one")
    assert one.keys() == set(TASKS)
    for name, expected in one.items():
        for key, value in expected.items():
            assert two[name][key] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), key
    assert two_written == one_written
    assert len(one_written) == len(rows)
