"""A study searches settings, runs seeds and writes tables; whatever interrupts it, it ends with the same results."""

from __future__ import annotations

import copy
import csv
import errno
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from study_values import cells_of, results_of, study_values

import multilora
from multilora.errors import RunError, StoppedError
from multilora.files import write_json
from multilora.study import execute, worker
from multilora.study.attempts import counted_attempt
from multilora.study.estimate import estimate
from multilora.study.folder import CellResult, write_failure, write_result
from multilora.study.load import Study
from multilora.study.search import all_cells, choose
from multilora.study.status import study_status
from multilora.study.worker import run_one, run_study


@pytest.fixture(scope="module")
def finished(model_folder, tmp_path_factory):
    """The values of a finished study."""
    values = study_values(model_folder, tmp_path_factory.mktemp("study"))
    run_study(Study.load(values))
    return values


@pytest.fixture
def copied(finished, tmp_path):
    """The values of a study whose folder is a copy of the finished one."""
    shutil.copytree(finished["output_dir"], tmp_path / "copy")
    return {**copy.deepcopy(finished), "output_dir": str(tmp_path / "copy")}


@pytest.fixture
def executed(monkeypatch):
    """The ids of the cells that are executed, in order."""
    ids, run_cell = [], worker.run_cell

    def spy(study, cell):
        ids.append(cell.id)
        return run_cell(study, cell)

    monkeypatch.setattr(worker, "run_cell", spy)
    return ids


def test_a_finished_study(finished):
    study = Study.load(finished)
    results = results_of(study)
    assert results["cells"] == {"finished": 9, "failed": 0, "running": 0, "broken off": 0, "waiting": 0}
    assert results["tasks"] == {"even": "accuracy", "echo": "exact_match"}
    for method, values in results["methods"].items():
        trials = [run for run in results["runs"] if run["method"] == method and run["stage"] == "trial"]
        best = min(trials, key=lambda run: run["macro_loss"])
        assert values["setting"] == best["setting"]
        assert {run["split"] for run in trials} == {"validation"}
        finals = [run for run in results["runs"] if run["method"] == method and run["stage"] == "final"]
        assert [run["seed"] for run in finals] == values["seeds"] == [0, 1]
        assert {run["setting"]["training.learning_rate"] for run in finals} == set(values["setting"].values())
        losses = [run["macro_loss"] for run in finals]
        assert values["macro_loss"]["mean"] == pytest.approx(sum(losses) / 2)
        assert values["macro_loss"]["sd"] == pytest.approx(abs(losses[0] - losses[1]) / 2**0.5)
        assert values["spectrum"]["effective_rank"]["mean"] >= 1
        assert values["forgetting"]["mean"] != results["base"]["forgetting"]
    compared = {(item["quantity"], item["task"]): item for item in results["differences"]}
    assert {item["method"] for item in results["differences"]} == {"multilora"}
    assert set(compared) == {
        *((quantity, task) for quantity in ("score", "loss") for task in ("even", "echo", "macro")),
        ("forgetting", ""),
    }
    methods = results["methods"]
    expected = methods["multilora"]["macro_loss"]["mean"] - methods["lora"]["macro_loss"]["mean"]
    assert compared["loss", "macro"]["difference"] == pytest.approx(expected)
    assert all(item["over"] == "seeds and items" for key, item in compared.items() if key[0] != "forgetting")
    assert compared["forgetting", ""]["over"] == "seeds"
    assert results["notes"] == [
        f"{method}: the chosen training.learning_rate {values['setting']['training.learning_rate']} is at the edge of "
        "its grid; a better value may lie outside"
        for method, values in methods.items()
    ]


def test_tables(finished):
    folder = Path(finished["output_dir"]) / "results"
    rows = list(csv.DictReader((folder / "runs.csv").open()))
    assert [row["stage"] for row in rows] == ["base", *["trial", "trial", "final", "final"] * 2]
    assert all(float(row["forgetting"]) > 0 and float(row["loss even"]) > 0 for row in rows)
    assert all(row["training.learning_rate"] and row["steps"] == "2" and row["tokens"] for row in rows[1:])
    summary = (folder / "summary.md").read_text()
    widths = {line.count("|") for line in summary.split("##")[0].splitlines() if line.startswith("|")}
    assert len(widths) == 1
    latex = (folder / "methods.tex").read_text()
    assert {line.count(" & ") for line in latex.splitlines() if line.endswith(r"\\")} == {next(iter(widths)) - 2}
    assert r"learning\_rate" in latex


def test_a_cell_is_an_ordinary_run(finished):
    cells = cells_of(finished)
    cell = cells.trials["multilora"][0][0]
    run = multilora.Run(cell.path)
    assert run.recipe.evaluation.split == "validation"
    assert run.recipe.training["seed"] == run.recipe.mixture.seed == 9
    assert not (cell.path / "checkpoints").exists()


def test_nothing_is_repeated(copied, executed):
    run_study(Study.load(copied))
    assert executed == []


@pytest.mark.slow
def test_a_study_that_is_interrupted_anywhere_ends_with_the_same_results(copied, finished, executed, monkeypatch):
    cells = cells_of(copied)
    trained, measured = cells.trials["lora"][0][0], cells.trials["multilora"][1][0]
    shutil.rmtree(trained.path)
    for name in ("cell.json", "validation_samples/run.parquet"):
        (measured.path / name).unlink()
    shutil.rmtree(measured.path / "adapter")
    final = cells.finals("lora", choose(cells_of(finished), "lora").setting)[0]
    values = json.loads((final.path / "cell.json").read_text())
    del values["measures"]["forgetting"]
    (final.path / "cell.json").write_text(json.dumps(values))

    def stop(*_, **__):
        raise StoppedError("stopped by SIGTERM")

    with monkeypatch.context() as patch:
        patch.setattr(execute, "train", stop)
        with pytest.raises(StoppedError):
            run_study(Study.load(copied))
    status = study_status(cells)
    assert status.count("failed") == 0
    assert {item.state for item in status.cells if item.cell.id == measured.id} == {"broken off"}
    executed.clear()
    run_study(Study.load(copied))
    assert sorted(executed) == sorted([trained.id, measured.id, final.id])
    assert results_of(Study.load(copied)) == results_of(Study.load(finished))


def test_a_failed_cell_is_recorded_and_does_not_stop_the_others(copied, executed, monkeypatch):
    copied["methods"]["lora"] = {**copied["methods"]["lora"], "grid": {"training.learning_rate": [1e30, 1e-2]}}
    study = Study.load(copied)
    assert run_study(study).count("failed") == 1
    results = results_of(study)
    assert results["methods"]["lora"]["setting"] == {"training.learning_rate": 1e-2}
    (failed,) = [run for run in results["runs"] if run["error"]]
    assert failed["setting"] == {"training.learning_rate": 1e30}
    assert "not finite" in failed["error"]
    assert "failed" in (study.path / "results" / "summary.md").read_text()
    executed.clear()
    run_study(study)
    assert executed == []
    run_study(study, retry_failed=True)
    assert executed == [failed["id"]]


@pytest.mark.slow
def test_a_full_disk_stops_the_study_and_fails_no_cell(copied, monkeypatch):
    cells = cells_of(copied)
    cell = cells.trials["lora"][0][0]
    shutil.rmtree(cell.path)

    def write(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("multilora.runs.writer.append_json_line", write)
        with pytest.raises(RunError, match="No space left on device"):
            run_study(Study.load(copied))
    assert study_status(cells).count("failed") == 0
    assert run_study(Study.load(copied)).count("finished") == 9


def test_a_changed_study_file_keeps_old_cells_and_does_not_use_them(copied, executed):
    before = {item.id for item in all_cells(cells_of(copied))}
    copied["methods"]["lora"] = {**copied["methods"]["lora"], "grid": {"training.learning_rate": [2e-3, 1e-2]}}
    study = Study.load(copied)
    status = run_study(study)
    after = {item.cell.id for item in status.cells}
    assert sorted(status.other_cells) == sorted(before - after)
    assert before - after
    results = results_of(study)
    assert {run["id"] for run in results["runs"]} == after - {cells_of(copied).base.id}
    assert "not part of this study file" in (study.path / "results" / "summary.md").read_text()


def test_a_measure_that_is_added_needs_no_training(copied, executed, monkeypatch):
    monkeypatch.setattr(execute, "train", None)
    del copied["methods"]["lora"]
    run_study(Study.load({**copied, "forgetting": {**copied["forgetting"], "max_tokens": 150}}))
    assert len(executed) == 5


def test_workers_share_the_cells(finished, tmp_path, monkeypatch):
    values = {**finished, "output_dir": str(tmp_path / "shared")}
    source = cells_of(finished)
    results = {cell.id: execute.result_of(cell) for cell in all_cells(source)}
    executed, at_once, most = [], set(), []

    def run_cell(study, cell):
        assert cell.id not in at_once
        at_once.add(cell.id)
        most.append(len(at_once))
        time.sleep(0.05)
        executed.append(cell.id)
        write_result(cell, CellResult(**vars(results[cell.id])))
        at_once.discard(cell.id)

    monkeypatch.setattr(worker, "run_cell", run_cell)
    monkeypatch.setattr(worker, "write_tables", lambda cells: None)
    monkeypatch.setattr(worker, "WAIT", 0.01)
    threads = [threading.Thread(target=run_study, args=(Study.load(values),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(executed) == sorted(results)
    assert max(most) > 1


@pytest.mark.slow
def test_single_cells_for_other_schedulers(copied):
    study = Study.load(copied)
    cells = cells_of(copied)
    cell = cells.trials["lora"][1][0]
    shutil.rmtree(cell.path)
    final = next(item for item in all_cells(cells_of(copied)) if item.stage == "final")
    with pytest.raises(ValueError, match="Final runs are known when"):
        run_one(study, "0" * 12)
    assert run_one(study, cell.id) is None
    assert [item.id for item in worker.open_cells(cells)] == []
    assert run_one(study, final.id) is None


@pytest.fixture(scope="module")
def with_single_tasks(finished, tmp_path_factory):
    """The values of the finished study, after LoRA was also trained on every task alone."""
    folder = tmp_path_factory.mktemp("single") / "study"
    shutil.copytree(finished["output_dir"], folder)
    values = {**copy.deepcopy(finished), "output_dir": str(folder), "single_task": "lora"}
    assert run_study(Study.load(values)).count("finished") == 13
    return values


def test_single_task_runs_are_trained_on_one_task_and_scored_on_all(with_single_tasks, finished):
    cells = cells_of(with_single_tasks)
    singles = [cell for cell in all_cells(cells) if cell.stage == "single"]
    assert [(cell.trained_on, cell.seed) for cell in singles] == [("even", 0), ("echo", 0), ("even", 1), ("echo", 1)]
    setting = choose(cells, "lora").setting
    for cell in singles:
        (final,) = [cell_ for cell_ in cells.finals("lora", setting) if cell_.seed == cell.seed]
        run = multilora.Run(cell.path)
        assert [task.name for task in run.recipe.tasks] == [cell.trained_on]
        assert run.recipe.training["learning_rate"] == setting["training.learning_rate"]
        assert run.recipe.training["seed"] == run.recipe.mixture.seed == cell.seed
        (alone,) = json.loads((cell.path / "plan" / "plan.json").read_text())["tasks"]
        mixed = {task["name"]: task for task in json.loads((final.path / "plan" / "plan.json").read_text())["tasks"]}
        missing = alone["examples"] - mixed[cell.trained_on]["examples"]
        assert 0 <= missing < 4  # rounded up to full steps of four
    results, before = results_of(Study.load(with_single_tasks)), results_of(Study.load(finished))
    assert all(results[key] == before[key] for key in ("base", "methods", "differences", "notes", "tasks"))
    runs = [run for run in results["runs"] if run["stage"] == "single"]
    assert all(set(run["scores"]) == {"even", "echo"} and run["forgetting"] > 0 for run in runs)


def test_the_transfer_matrix_and_the_mixture_against_one_adapter_per_task(with_single_tasks):
    results = results_of(Study.load(with_single_tasks))
    single = results["single_task"]
    losses = {
        (run["trained_on"], run["seed"], task): run["scores"][task]["loss"]
        for run in results["runs"]
        if run["stage"] in ("single", "final") and run["method"] == "lora"
        for task in results["tasks"]
    }
    assert len(losses) == 3 * 2 * 2
    for item in single["transfer"]:
        values = [losses[item["trained_on"], seed, item["scored_on"]] for seed in (0, 1)]
        assert item["loss"]["mean"] == pytest.approx(sum(values) / 2)
        assert item["loss"]["sd"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
        assert item["base"]["loss"] == results["base"]["scores"][item["scored_on"]]["loss"]
        assert item["mixture"]["loss"] == results["methods"]["lora"]["losses"][item["scored_on"]]
    pairs = [(item["trained_on"], item["scored_on"]) for item in single["transfer"]]
    assert pairs == [("even", "even"), ("even", "echo"), ("echo", "even"), ("echo", "echo")]
    for task in results["tasks"]:
        own = [losses[task, seed, task] for seed in (0, 1)]
        assert single["summary"]["losses"][task]["mean"] == pytest.approx(sum(own) / 2)
        (item,) = [
            item
            for item in single["differences"]
            if (item["method"], item["quantity"], item["task"]) == ("lora", "loss", task)
        ]
        expected = sum(losses[None, seed, task] - losses[task, seed, task] for seed in (0, 1)) / 2
        assert item["difference"] == pytest.approx(expected)
        assert item["over"] == "seeds and items"
        assert item["low"] <= item["difference"] <= item["high"]
    assert {item["method"] for item in single["differences"]} == {"lora", "multilora"}
    assert not any(item["quantity"] == "forgetting" for item in single["differences"])
    each = results["methods"]["lora"]["trainable_parameters"]["mean"]
    assert single["summary"]["trainable_parameters"]["mean"] == 2 * each


def test_tables_of_single_task_runs(with_single_tasks, finished):
    folder = Path(with_single_tasks["output_dir"]) / "results"
    rows = list(csv.DictReader((folder / "transfer.csv").open()))
    assert [(row["trained_on"], row["scored_on"], row["seeds"]) for row in rows][1] == ("even", "echo", "2")
    assert all(float(row[key]) > 0 for row in rows for key in ("loss", "base_loss", "mixture_loss"))
    # A run on `echo` alone is one step, at the start of the warm-up, where the learning rate is 0.
    assert [float(row["loss_sd"]) > 0 for row in rows] == [True, True, False, False]
    rows = list(csv.DictReader((folder / "runs.csv").open()))
    assert [row["trained_on"] for row in rows if row["stage"] == "single"] == ["even", "echo", "even", "echo"]
    references = [row["reference"] for row in csv.DictReader((folder / "differences.csv").open())]
    assert set(references) == {"lora", "lora, one per task"}
    methods = {row["method"] for row in csv.DictReader((folder / "methods.csv").open())}
    assert methods == {"lora", "multilora", "lora, one per task"}
    summary = (folder / "summary.md").read_text()
    for part in summary.split("##"):
        assert len({line.count("|") for line in part.splitlines() if line.startswith("|")}) <= 1
    assert "## The mixture against one adapter per task" in summary
    assert "| nothing (base) |" in summary
    assert not (Path(finished["output_dir"]) / "results" / "transfer.csv").exists()


def test_single_task_runs_are_skipped_resumed_listed_and_estimated(with_single_tasks, tmp_path, executed):
    values = {**with_single_tasks, "output_dir": str(tmp_path / "copy")}
    shutil.copytree(with_single_tasks["output_dir"], values["output_dir"])
    study = Study.load(values)
    run_study(study)
    assert executed == []
    cells = cells_of(values)
    singles = [cell for cell in all_cells(cells) if cell.stage == "single"]
    shutil.rmtree(singles[1].path)
    assert [cell.id for cell in worker.open_cells(cells)] == [singles[1].id]
    assert run_one(study, singles[1].id) is None
    finals = cells.finals("lora", choose(cells, "lora").setting)
    for final in finals:
        (final.path / "cell.json").rename(final.path / "kept.json")
    status = study_status(cells)
    assert (len(status.cells), status.unknown_single_task, status.total) == (9, 4, 13)
    seconds = [item.seconds for item in status.cells if item.cell.stage == "trial" and item.cell.method == "lora"]
    # Two final runs, and four runs on one of two tasks, which take half as long.
    assert status.remaining_seconds == pytest.approx(4 * sum(seconds) / len(seconds))
    *_, single = estimate(study)
    assert (single.label, single.id) == ("lora on every task alone (4 runs)", None)
    assert single.seconds == pytest.approx(2 * sum(seconds) / len(seconds))
    (finals[0].path / "kept.json").rename(finals[0].path / "cell.json")
    write_failure(finals[1], RunError("diverged"))
    status = study_status(cells)
    assert (len(status.cells), status.unknown_single_task, status.total) == (11, 0, 11)


def test_a_cell_that_kills_its_process_fails_after_three_attempts(copied, monkeypatch):
    study, cell = Study.load(copied), cells_of(copied).trials["lora"][0][0]
    shutil.rmtree(cell.path)
    attempts = study.path / "claims" / cell.id / "attempts.json"

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(execute, "train", die)
        for count in (1, 2, 3):
            process = multiprocessing.get_context("fork").Process(target=execute.run_cell, args=(study, cell))
            process.start()
            process.join(60)
            assert process.exitcode == -signal.SIGKILL
            assert json.loads(attempts.read_text())["attempts"] == count
    reached = json.loads(attempts.read_text())["reached"]
    assert "died 3 times without an error and without progress" in execute.run_cell(study, cell)
    assert study_status(cells_of(copied)).count("failed") == 1
    assert run_study(study, retry_failed=True).count("finished") == 9
    assert not attempts.exists()
    write_json(attempts, {"attempts": 3, "reached": reached})  # the cell is further by now
    with counted_attempt(study.path, cell):
        assert json.loads(attempts.read_text())["attempts"] == 1
