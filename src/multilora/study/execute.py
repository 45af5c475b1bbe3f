"""Run one cell: train it as an ordinary run, then measure what is missing."""

from __future__ import annotations

import gc
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from multilora.analysis.analyze import spectrum_of
from multilora.analysis.compare import Options
from multilora.analysis.spectrum import Spectrum
from multilora.errors import AdapterError, RunError, StoppedError
from multilora.files import checksum, write_json
from multilora.foreign_errors import as_own_error, is_full_disk
from multilora.modeling import best_device
from multilora.runs.candidate import Candidate
from multilora.runs.directory import RECIPE_FILE, Run, weights_folder
from multilora.runs.evaluate import BASE_LABEL, RUN_LABEL, score_candidates
from multilora.runs.train import train
from multilora.study.attempts import counted_attempt
from multilora.study.cells import Cell
from multilora.study.folder import CellResult, result_of, write_failure, write_result
from multilora.study.load import Study
from multilora.study.measures import FORGETTING, INTRUDERS, SPECTRUM, missing_measures, wanted_measures
from multilora.study.memory import peak_memory, reset_peak_memory
from multilora.study.text_loss import text_loss


def run_cell(study: Study, cell: Cell) -> str | None:
    """Bring a claimed cell to its end, from wherever it is; returns the error if it failed, which is recorded.

    Raises:
        StoppedError: a signal stopped the training; the cell can be continued.
        RunError: the disk is full, which is not the cell's fault; it can be continued.
    """
    try:
        with counted_attempt(study.path, cell):
            _run(study, cell)
    except StoppedError:
        raise
    except Exception as error:
        if _is_full_disk(error):
            raise
        own = as_own_error(error)
        write_failure(cell, own)
        return str(own)
    finally:
        gc.collect()  # frees the model before the next cell loads its own
    return None


def _run(study: Study, cell: Cell) -> None:
    result = result_of(cell) or CellResult(cell.label)
    result.label = cell.label
    clock = _Clock(result)
    run = None
    if cell.stage != "base":
        if result.training and _has_weights(cell):
            run = Run(cell.path)
        else:
            run, result.training = _train(cell)
            clock.stop()
            write_result(cell, result)
    keys = wanted_measures(study, cell)
    for name in missing_measures(study, cell, result):
        measure = _MEASURES.get(name, _scores)
        result.measures[name] = {"key": keys[name], **measure(study, cell, run)}
        clock.stop()
        write_result(cell, result)
        gc.collect()
    if run is not None:  # a finished cell is not resumed, and checkpoints are many times as large as an adapter
        shutil.rmtree(cell.path / "checkpoints", ignore_errors=True)


class _Clock:
    """Adds the time since it was made, or last stopped, to a result."""

    def __init__(self, result: CellResult) -> None:
        self.result, self.start = result, time.perf_counter()

    def stop(self) -> None:
        now = time.perf_counter()
        self.result.seconds = round(self.result.seconds + now - self.start, 3)
        self.start = now


def _has_weights(cell: Cell) -> bool:
    folder = weights_folder(cell.path, cell.recipe.adapter.method)
    return (cell.path / RECIPE_FILE).is_file() and folder.is_dir()


def _train(cell: Cell) -> tuple[Run, dict[str, Any]]:
    """Train or resume the run of a cell; returns it and the facts of its training."""
    measured = not _has_weights(cell) and reset_peak_memory()  # else it is trained already
    run = train(cell.recipe, resume=True)
    facts = run.training
    taken = facts["steps"] - facts["resumed_from_step"]
    return run, {
        "method": cell.recipe.adapter.method,
        "steps": facts["steps"],
        # A resumed run has only timed its last part.
        "seconds": round(facts["seconds"] * facts["steps"] / taken, 3) if taken else facts["seconds"],
        "tokens": facts["tokens"],
        "trainable_parameters": facts["trainable_parameters"],
        "total_parameters": facts["total_parameters"],
        "peak_memory": peak_memory() if measured else None,
        "plan": checksum(run.path / "plan" / "plan.arrow"),
        "device": str(best_device()),
    }


def samples_folder(cell: Cell) -> Path:
    """The folder of the questions and answers on the split of a cell."""
    return cell.path / ("samples" if cell.recipe.evaluation.split == "eval" else "validation_samples")


def _scores(study: Study, cell: Cell, run: Run | None) -> dict[str, Any]:
    label = BASE_LABEL if run is None else RUN_LABEL
    cell.path.mkdir(parents=True, exist_ok=True)
    candidate = Candidate(label, cell.recipe.model, run=run)
    scores = score_candidates([candidate], cell.scored_by, samples_folder(cell))[label]
    for task, score in scores.items():
        _check_finite(f"the loss on {task}", score.loss)
    return {"value": {task: asdict(score) for task, score in scores.items()}}


def _forgetting(study: Study, cell: Cell, run: Run | None) -> dict[str, Any]:
    model = Candidate("", cell.recipe.model, run=run)
    value = text_loss(model.load(), model.load_tokenizer(), study.forgetting)
    _check_finite("the loss on the text of `forgetting`", value["loss"])
    return {"value": value}


def _check_finite(what: str, loss: float) -> None:
    """Check a loss, which is not finite if training has diverged in its last steps.

    Raises:
        RunError: it is not finite.
    """
    if not math.isfinite(loss):
        raise RunError(f"{what} is not finite ({loss}): training has diverged; lower training.learning_rate")


def _spectrum(study: Study, cell: Cell, run: Run | None) -> dict[str, Any]:
    """The means over matrices, of all and per module type; or why there are none.

    The singular values are written as by `multilora analyze`, but without the figure, which takes seconds.
    """
    assert run is not None
    try:
        spectrum = spectrum_of(run)
    except AdapterError as error:
        return {"missing": str(error)}
    _write_spectrum(cell, spectrum)
    kinds = {kind: spectrum.mean(matrices) for kind, matrices in spectrum.by_kind().items()}
    return {"value": {"mean": spectrum.mean(), "kinds": kinds}}


def _intruders(study: Study, cell: Cell, run: Run | None) -> dict[str, Any]:
    """The number of intruder dimensions, their share, and their mean per matrix; or why there are none."""
    assert run is not None
    try:
        spectrum = spectrum_of(run, options=Options(intruders=True))
    except AdapterError as error:
        return {"missing": str(error)}
    _write_spectrum(cell, spectrum)
    found = spectrum.intruders()
    if found is None:
        return {"missing": "the weights of the base are not known"}
    return {"value": {**found, "per_matrix": found["count"] / len(spectrum.matrices)}}


def _write_spectrum(cell: Cell, spectrum: Spectrum) -> None:
    folder = cell.path / "analysis"
    folder.mkdir(exist_ok=True)
    write_json(folder / "spectrum.json", spectrum.as_dict())


_MEASURES: dict[str, Callable[[Study, Cell, Run | None], dict[str, Any]]] = {
    FORGETTING: _forgetting,
    SPECTRUM: _spectrum,
    INTRUDERS: _intruders,
}


def _is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, is a full disk."""
    while error is not None:
        if is_full_disk(error):
            return True
        error = error.__cause__
    return False
