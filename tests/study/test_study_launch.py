"""Where a study runs: several processes, submitit's jobs, other schedulers; and what it would cost."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, write_jsonl
from study_values import cells_of, results_of, study_values

from multilora.study.cluster import start_jobs
from multilora.study.estimate import estimate
from multilora.study.launch import run_in_processes
from multilora.study.load import Study
from multilora.study.search import all_cells
from multilora.study.worker import run_study


@pytest.fixture(scope="module")
def finished(model_folder, tmp_path_factory):
    """A study finished by one process, of one method and one seed."""
    values = study_values(model_folder, tmp_path_factory.mktemp("study"))
    values["seeds"] = [0]
    values["measure"] = ["spectrum"]
    run_study(Study.load(values))
    return values


def command(file: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "multilora", "study", str(file), *options]


@pytest.mark.slow
def test_two_processes_end_with_the_same_results(finished, tmp_path):
    values = {**finished, "output_dir": str(tmp_path / "shared")}
    study = Study.load(values)
    run_in_processes(study, 2)
    assert results_of(study) == results_of(Study.load(finished))


@pytest.mark.slow
def test_a_killed_study_continues_and_ends_with_the_same_results(finished, tmp_path):
    values = {**finished, "output_dir": str(tmp_path / "killed")}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(values))
    cells = cells_of(values)
    process = subprocess.Popen(command(file), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not (cells.trials["multilora"][0][0].path / "recipe.yaml").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    study = Study.load(values)
    assert run_study(study).count("finished") == len(all_cells(cells))
    assert results_of(study) == results_of(Study.load(finished))


@pytest.mark.slow
def test_jobs_of_submitit(finished, tmp_path):
    shutil.copytree(finished["output_dir"], tmp_path / "jobs")
    values = {**finished, "output_dir": str(tmp_path / "jobs"), "cluster": {"jobs": 2}}
    cell = cells_of(values).trials["lora"][0][0]
    shutil.rmtree(cell.path)
    jobs = start_jobs(Study.load(values), "local")
    assert [job.result() for job in jobs] == [{"finished": 7, "failed": 0}] * 2
    assert results_of(Study.load(values)) == results_of(Study.load(finished))


def test_executors_and_their_parameters(finished):
    study = Study.load(finished)
    with pytest.raises(ValueError, match="'lsf', expected one of slurm, local"):
        start_jobs(study, "lsf")
    wrong = Study.load({**finished, "cluster": {"parameters": {"minutes": 3}}})
    with pytest.raises(ValueError, match=r"cluster: .*minutes"):
        start_jobs(wrong, "local")


def test_the_command_line(finished, tmp_path, monkeypatch, capsys):
    def run_cli(*arguments: Any) -> tuple[int, str, str]:
        from multilora.cli import main

        monkeypatch.setattr("sys.argv", ["multilora", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        return int(str(exit_.value.code)), *capsys.readouterr()

    shutil.copytree(finished["output_dir"], tmp_path / "copy")
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({**finished, "output_dir": str(tmp_path / "copy")}))
    cell = cells_of(file).trials["lora"][1][0]
    shutil.rmtree(cell.path)
    code, out, _ = run_cli("study", file, "--list")
    assert (code, out.split()) == (0, [cell.id])
    code, out, _ = run_cli("study", file, "--status", "--json")
    status = json.loads(out)
    assert code == 0
    assert {item["id"] for item in status["cells"] if item["state"] == "waiting"} == {cell.id}
    assert status["not_chosen"] == ["lora"]
    assert status["total"] == 7
    code, out, _ = run_cli("study", file, "--dry-run")
    assert code == 0
    assert "finished cells" in out
    code, _, _ = run_cli("study", file, "--cell", cell.id)
    assert code == 0
    code, out, err = run_cli("study", file)
    assert code == 0
    assert out.startswith("mean ± standard deviation over seeds")
    code, out, _ = run_cli("study", file, "--json")
    assert code == 0
    assert json.loads(out)["cells"]["finished"] == 7
    code, _, err = run_cli("study", file, "--list", "--status")
    assert code == 2
    assert "exclude each other" in err


RECORDS: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "Add 1 and {i}.", "input": "", "output": "The sum."},
    "gsm8k": {"question": "How many are {i}?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"},
    "superglue/boolq": {"question": "is it {i}", "passage": "It is {i}.", "label": True},
    "superglue/cb": {"premise": "He left {i}.", "hypothesis": "He went.", "label": "neutral"},
    "superglue/copa": {
        "premise": "It rained {i}.",
        "choice1": "Sun.",
        "choice2": "Wet.",
        "question": "effect",
        "label": 1,
    },
    "superglue/multirc": {
        "passage": {
            "text": "He left {i}.",
            "questions": [{"idx": 0, "question": "Who?", "answers": [{"text": "He", "idx": 0, "label": 1}]}],
        },
        "idx": 0,
    },
    "superglue/rte": {"premise": "He left {i}.", "hypothesis": "He went.", "label": "entailment"},
    "superglue/wic": {"word": "bank", "sentence1": "The bank {i}.", "sentence2": "A bank.", "label": True},
    "superglue/wsc": {
        "text": "He left {i}.",
        "target": {"span1_text": "He", "span2_text": "left", "span1_index": 0, "span2_index": 1},
        "label": False,
    },
}


def stand_in(name: str, folder: Path) -> str:
    """A miniature of a task's public data."""
    if name == "mmlu":
        for split in ("dev", "val", "test"):
            (folder / name / split).mkdir(parents=True)
            rows = "".join(f'"What, then {i}?",a,b,c,d,B\n' for i in range(12))
            (folder / name / split / f"anatomy_{split}.csv").write_text(rows)
        return str(folder / name)
    text = json.dumps(RECORDS[name])
    records = [json.loads(text.replace("{i}", str(i))) | ({"idx": i} if "multirc" in name else {}) for i in range(12)]
    (folder / name).mkdir(parents=True)
    for split in ("train", "val", "test"):
        write_jsonl(folder / name / f"{split}.jsonl", records)
    return str(folder / name / "train.jsonl") if name == "alpaca" else str(folder / name)


@pytest.mark.slow
def test_the_dry_run_of_the_papers_setting_needs_no_network(model_folder, tmp_path):
    values = yaml.safe_load((REPOSITORY / "recipes" / "studies" / "paper-llama-7b.yaml").read_text())
    recipe = values["recipe"]
    recipe["model"] = {"name_or_path": str(model_folder), "dtype": "float32"}
    recipe["data"]["max_length"] = 128
    recipe["training"]["max_steps"] = 2
    for task in recipe["tasks"]:
        task["path"] = stand_in(task["name"], tmp_path)
    values["output_dir"] = str(tmp_path / "study")
    study = Study.load(values)
    estimates = estimate(study)
    trials = 3 * len(study.methods)
    assert len(estimates) == trials + 3 * len(study.methods)
    assert all(item.seconds > 0 and item.peak_bytes > 0 for item in estimates)
    assert [item.id is None for item in estimates] == [False] * trials + [True] * (len(estimates) - trials)
    assert not Path(values["output_dir"]).exists()
