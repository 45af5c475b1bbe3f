"""`plan` and `train`: turn a recipe into a plan, and train it into a run."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PrinterCallback, TrainerCallback

from multilora.data.plan import Plan
from multilora.data.probe import check_packing
from multilora.data.saved_plan import SavedPlan
from multilora.errors import InputError, RunError, StoppedError
from multilora.evaluation.score import score_tasks
from multilora.files import atomic_folder
from multilora.foreign_errors import as_own_error, is_full_disk, own_errors
from multilora.modeling import load_model_config, parameter_counts
from multilora.processes import is_main_process
from multilora.progress import facts, no_transformers_bar, progress
from multilora.recipe import Recipe
from multilora.runs.card import write_run_card
from multilora.runs.directory import RECIPE_FILE, Run, check_files, check_free, saved_recipe, weights_folder
from multilora.runs.environment import environment
from multilora.runs.extend import describe_extension, length_of, set_results_aside
from multilora.runs.kept_data import keep_data, name_kept_base, with_kept_data
from multilora.runs.lock import RunLock
from multilora.runs.resume import check_same_recipe
from multilora.runs.writer import RunWriter
from multilora.training.callbacks.evaluate import EvaluateDuringTraining
from multilora.training.callbacks.interference import Interference
from multilora.training.callbacks.record import Recorder
from multilora.training.callbacks.stop_on_signal import StopOnSignal
from multilora.training.checkpoint import last_complete, step_of
from multilora.training.evaluation_examples import EvaluationExamples
from multilora.training.evaluation_log import EvaluationLog
from multilora.training.prepare import Prepared, plan_for, prepare, recipe_arguments, stays_in_place
from multilora.training.trainer import MultiTaskTrainer

logger = logging.getLogger(__name__)

RecipeLike = str | Path | Mapping[str, Any] | Recipe


@own_errors
def plan(recipe: RecipeLike, overrides: Sequence[str] = ()) -> Plan:
    """Make the plan of a recipe: all training rows, in order. Nothing is written, and no weights are loaded.

    Args:
        recipe: path of a YAML file, its content, or a `Recipe`; see `Recipe.load`
        overrides: `key.of.value=value` strings

    Raises:
        InputError: the recipe or the data cannot be used.
    """
    loaded = Recipe.load(recipe, overrides)
    return plan_for(loaded, load_model_config(loaded.model), recipe_arguments(loaded))


@own_errors
def train(
    recipe: RecipeLike,
    overrides: Sequence[str] = (),
    callbacks: Sequence[TrainerCallback] = (),
    *,
    resume: bool = False,
) -> Run:
    """Train a recipe and return its run.

    Args:
        recipe: path of a YAML file, its content, or a `Recipe`; see `Recipe.load`
        overrides: `key.of.value=value` strings
        callbacks: additional callbacks for the Trainer
        resume: continue the run in `output_dir` from its last checkpoint, if there is one; the resulting weights are
            those of an uninterrupted run. A finished run is returned unchanged, unless the recipe now has more steps:
            then it is extended

    Raises:
        InputError: invalid recipe or data, or they have changed since the run started; nothing is written.
        RunError: training failed or was stopped by a signal.
    """
    loaded = Recipe.load(recipe, overrides)
    path = Path(loaded.output_dir)
    with RunLock(path, active=is_main_process()):  # in the other processes, its files are already there
        if resume and os.path.lexists(path / RECIPE_FILE):
            return _resume(loaded, path, callbacks)
        if is_main_process():
            check_free(path)
        return run_prepared(prepare(loaded), path, callbacks)


def _resume(recipe: Recipe, path: Path, callbacks: Sequence[TrainerCallback]) -> Run:
    saved_as = saved_recipe(path)
    check_same_recipe(with_kept_data(recipe, path), saved_as)
    finished = weights_folder(path, recipe.adapter.method).is_dir()
    if finished and length_of(recipe) == length_of(saved_as):
        logger.warning("%s: the run is already finished; nothing to resume", path)
        run = Run(path)
        run.check_complete()
        return run
    check_files(path)
    checkpoint = last_complete(path / "checkpoints")
    saved = SavedPlan.load(path / "plan") if (path / "plan").exists() or checkpoint is not None else None
    prepared = prepare(recipe, saved=saved)
    if checkpoint is None:
        logger.warning("%s: no complete checkpoint; training restarts from the beginning", path)
    elif prepared.arguments.save_only_model:
        raise InputError(
            "training.save_only_model: such checkpoints lack the optimizer, so this run cannot be resumed; remove "
            f"{path} to train again without it"
        )
    if saved is not None and prepared.plan.steps > saved.steps:
        step = step_of(checkpoint) if checkpoint else 0
        logger.warning("%s: %s", path, describe_extension(prepared.arguments, step, saved.steps, prepared.plan.steps))
        if finished and is_main_process():
            results = set_results_aside(path, recipe.adapter.method, Run(path).training["steps"])
            logger.warning("the weights and results so far are now in %s", results)
    return run_prepared(prepared, path, callbacks, checkpoint)


def run_prepared(
    prepared: Prepared, path: Path, callbacks: Sequence[TrainerCallback] = (), checkpoint: Path | None = None
) -> Run:
    """Train a prepared recipe and write the run to `path`, optionally resuming from a checkpoint."""
    recipe, plan_ = prepared.recipe, prepared.plan
    trainable, total = parameter_counts(prepared.model)
    stop = StopOnSignal()
    trainer = _trainer(prepared, path, [*callbacks, stop])
    first_step = step_of(checkpoint) if checkpoint else 0
    writer = RunWriter(path, active=trainer.is_world_process_zero())
    kept = with_kept_data(recipe, path)
    if trainer.is_world_process_zero():
        keep_data(recipe, path)
    name_kept_base(prepared.model, kept)
    writer.begin(kept, environment(recipe.mixture.seed, prepared.arguments.seed), plan_, first_step)
    logger.info("%s", facts(_start(prepared, path, trainable, total)))
    start = time.perf_counter()
    with no_transformers_bar(), progress(f"training {recipe.adapter.method}", plan_.steps) as advance:
        advance(first_step)
        trainer.add_callback(Recorder(writer.log, advance))
        evaluations = _evaluate_during(prepared, path, first_step, trainer)
        _fit(trainer, path, checkpoint)
    if stop.received and trainer.state.global_step < plan_.steps:
        raise StoppedError(f"stopped by {stop.received} after step {trainer.state.global_step}\n{_how_to_resume(path)}")
    _check_taken_steps(trainer, path)
    keep_best = recipe.evaluation.keep == "best"
    best = evaluations if keep_best and evaluations and evaluations.best else None
    writer.finish(
        {
            "method": recipe.adapter.method,
            "steps": trainer.state.global_step,
            "planned_steps": plan_.steps,
            "weights_of_step": best.best["step"] if best and best.best else trainer.state.global_step,
            "seconds": round(time.perf_counter() - start, 3),
            "resumed_from_step": first_step,
            "trainable_parameters": trainable,
            "total_parameters": total,
            "tokens": int(sum(entry.tokens for entry in plan_.summary())),
        }
    )
    _write_weights(trainer, weights_folder(path, recipe.adapter.method), best.best_folder if best else None)
    run = Run(path)
    if trainer.is_world_process_zero():
        write_run_card(run)
    return run


def _start(prepared: Prepared, path: Path, trainable: int, total: int) -> dict[str, Any]:
    """What a training starts from."""
    section, quantization = prepared.recipe.model, prepared.recipe.model.quantization
    return {
        "base": section.name_or_path,
        "device": prepared.arguments.device,
        "dtype": section.dtype if quantization == "none" else f"{section.dtype} ({quantization})",
        "method": prepared.recipe.adapter.method,
        "trainable": f"{trainable:,} of {total:,} parameters ({100 * trainable / total:.2f} %)",
        "output": path,
    }


def _trainer(prepared: Prepared, path: Path, callbacks: Sequence[TrainerCallback]) -> MultiTaskTrainer:
    recipe, plan_ = prepared.recipe, prepared.plan
    try:
        with _tensorboard_in(path / "tensorboard"):
            trainer = MultiTaskTrainer(
                model=prepared.model,
                args=prepared.arguments,
                plan=plan_,
                callbacks=list(callbacks),
                **{**recipe.optimizer.model_dump(), "scale_lr_factor": recipe.scale_lr_factor},
                loss_weighting=recipe.loss.weighting,
                on_nonfinite=recipe.loss.on_nonfinite,
            )
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"training: {' '.join(str(error).split())}") from error
    if plan_.packed and not (trainer.is_sharded or stays_in_place(prepared.arguments)):
        check_packing(trainer.model, trainer.data_collator)  # only now, on the device that trains it
    if recipe.loss.interference_every is not None:
        trainer.add_callback(Interference(trainer, recipe.loss.interference_every))
    trainer.remove_callback(PrinterCallback)  # it prints every log to stdout
    return trainer


def _evaluate_during(
    prepared: Prepared, path: Path, first_step: int, trainer: MultiTaskTrainer
) -> EvaluationLog | None:
    """Add evaluation during training if the recipe sets `evaluation.every`."""
    section = prepared.recipe.evaluation
    if section.every is None:
        return None
    examples = EvaluationExamples(_on_validation(prepared.recipe), path)
    plan_, model = prepared.plan, prepared.model
    log = EvaluationLog(path, first_step)

    def score(sets: Any) -> Any:
        return score_tasks(model, plan_.renderer, sets, section, "evaluating")

    trainer.add_callback(EvaluateDuringTraining(section, lambda: examples.score(score), log, trainer))
    return log


def _on_validation(recipe: Recipe) -> Recipe:
    """The recipe whose evaluations use the validation split, if there is one: weights are chosen by them."""
    if recipe.evaluation.validation_share is None:
        return recipe
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"split": "validation"})})


def _fit(trainer: MultiTaskTrainer, path: Path, checkpoint: Path | None) -> None:
    """Train; turn any failure into a RunError that says how to resume."""
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except RunError as error:
        raise RunError(f"{error}\n{_how_to_resume(path)}") from error
    except InputError:
        raise
    except (RuntimeError, OSError, ValueError, MemoryError, SafetensorError) as error:
        known = is_full_disk(error) or isinstance(error, MemoryError)
        message = str(as_own_error(error)) if known else " ".join(str(error).split())
        raise RunError(
            f"training failed at step {trainer.state.global_step}: {message}\n{_how_to_resume(path)}"
        ) from error


@contextmanager
def _tensorboard_in(folder: Path) -> Iterator[None]:
    """Let TensorBoard write into the run, unless the environment names another folder."""
    variable = "TENSORBOARD_LOGGING_DIR"
    if variable in os.environ:
        yield
        return
    os.environ[variable] = str(folder)
    try:
        yield
    finally:
        del os.environ[variable]


def _check_taken_steps(trainer: MultiTaskTrainer, path: Path) -> None:
    """Refuse to finish a run that has skipped most of its steps.

    Raises:
        RunError: more steps were skipped than taken.
    """
    skipped, steps = trainer.health.skipped_steps, trainer.state.global_step
    if 2 * skipped > steps:
        raise RunError(
            f"{skipped} of {steps} steps were not finite and were skipped, so the run is not finished; its log names "
            f"their tasks and examples. Fix these, or lower training.learning_rate, then remove {path} and train again"
        )


def _write_weights(trainer: MultiTaskTrainer, folder: Path, best: Path | None) -> None:
    """Write the final or the best weights, and the tokenizer; all processes must call it."""
    tokenizer = trainer.plan.renderer.tokenizer
    if best is None:
        with no_transformers_bar():
            trainer.write_weights(folder, lambda new_folder: tokenizer.save_pretrained(str(new_folder)))
    elif trainer.is_world_process_zero():
        with atomic_folder(folder) as new_folder:
            shutil.copytree(best, new_folder, dirs_exist_ok=True)
            tokenizer.save_pretrained(str(new_folder))
    trainer.accelerator.wait_for_everyone()


def _how_to_resume(path: Path) -> str:
    checkpoint = last_complete(path / "checkpoints")
    if checkpoint is None:
        return f"there is no complete checkpoint yet; {path} contains only the logs, remove it to train again"
    return f"the last complete checkpoint is {checkpoint}; `multilora train ... --resume` continues from it"
