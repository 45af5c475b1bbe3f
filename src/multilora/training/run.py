"""`plan` and `train`: from a recipe to a readable plan, and on to a run."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from multilora.data.plan import SUMMARY_FILE, Plan, make_plan
from multilora.data.probe import check_packing
from multilora.errors import InputError, RecipeError, RunError
from multilora.files import whole_folder, write_json, write_text
from multilora.modeling import FULL, attach, load_base, load_tokenizer, parameter_counts
from multilora.processes import is_main_process
from multilora.progress import progress
from multilora.recipe import Recipe
from multilora.rundir import RECIPE_FILE, Run, check_free, weights_folder
from multilora.training.arguments import training_arguments
from multilora.training.checkpoint import StopOnSignal, check_same_recipe, checkpoints, forget_after, step_of
from multilora.training.during import BEST_FOLDER, EvaluateDuring
from multilora.training.environment import environment
from multilora.training.trainer import MultiTaskTrainer

logger = logging.getLogger(__name__)

RecipeLike = str | Path | Mapping[str, Any] | Recipe
DEFAULT_MAX_LENGTH = 1024


@dataclass(frozen=True)
class Prepared:
    """A recipe with everything that can be known before the first step."""

    recipe: Recipe
    model: Any
    plan: Plan
    arguments: TrainingArguments


def prepare(recipe: Recipe, plan: Plan | None = None) -> Prepared:
    """Load the base, adapt it and make the plan; nothing is written.

    Args:
        recipe: a checked recipe
        plan: one made before for the same base, tasks, mixture and batch size, to train another method on

    Raises:
        InputError: whatever in the recipe, the data or the model cannot be used.
    """
    method = recipe.adapter.method
    checkpoints = str(Path(recipe.output_dir) / "checkpoints")
    arguments = training_arguments(recipe.training, output_dir=checkpoints, method=method, dtype=recipe.model.dtype)
    model = load_base(recipe.model, trainable=method == FULL)
    if plan is None:
        # One process of a machine tokenises, the others read what it has cached.
        with arguments.main_process_first(desc="tokenising"):
            plan = make_plan(
                recipe,
                load_tokenizer(recipe.model),
                max_length=max_length(recipe, model),
                rows_per_step=arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size,
                max_steps=arguments.max_steps,
                epochs=arguments.num_train_epochs,
            )
    if plan.packed and _stays_here(arguments):
        check_packing(model)
    model = attach(model, recipe.adapter, seed=arguments.seed)
    arguments.max_steps = plan.steps
    for name in ("save_steps", "logging_steps"):  # fractions as steps, so that a checkpoint and a resumed run agree
        if 0 < getattr(arguments, name) < 1:
            setattr(arguments, name, math.ceil(plan.steps * getattr(arguments, name)))
    return Prepared(recipe, model, plan, arguments)


def _stays_here(arguments: TrainingArguments) -> bool:
    """Whether the model is trained where it was loaded, by this process alone."""
    return bool(arguments.device.type == "cpu" and arguments.world_size == 1)


def max_length(recipe: Recipe, model: Any) -> int:
    """The recipe's `max_length`, else the model's positions but at most 1024.

    Raises:
        RecipeError: it asks for more positions than the model has.
    """
    positions = getattr(model.config, "max_position_embeddings", None) or DEFAULT_MAX_LENGTH
    asked = recipe.data.max_length
    if asked is not None and asked > positions:
        raise RecipeError(
            [f"data.max_length: {asked} is more than the {positions} positions of the model; use at most these"]
        )
    return asked or min(positions, DEFAULT_MAX_LENGTH)


def plan(recipe: RecipeLike, overrides: Sequence[str] = ()) -> Plan:
    """The plan of a recipe: what would be trained on, in order; nothing is trained or written.

    Raises:
        InputError: whatever in the recipe, the data or the model cannot be used.
    """
    return prepare(Recipe.load(recipe, overrides)).plan


def train(
    recipe: RecipeLike,
    overrides: Sequence[str] = (),
    callbacks: Sequence[TrainerCallback] = (),
    *,
    resume: bool = False,
) -> Run:
    """Train a recipe and return its run.

    Args:
        recipe: path of a YAML file, its content, or a `Recipe`
        overrides: `key.of.value=value` strings
        callbacks: further callbacks for the Trainer
        resume: go on with the run in `output_dir` from its last whole checkpoint, if there is one, and end with the
            weights of a run that was never interrupted; a finished run is returned as it is

    Raises:
        InputError: before anything is written; also if recipe or data have changed since the run began.
        RunError: training failed, or was stopped by a signal.
    """
    checked = Recipe.load(recipe, overrides)
    path = Path(checked.output_dir)
    if resume and (path / RECIPE_FILE).is_file():
        saved = Recipe.model_validate(yaml.safe_load((path / RECIPE_FILE).read_text(encoding="utf-8")))
        check_same_recipe(checked, saved)
        if weights_folder(path, checked.adapter.method).is_dir():
            logger.warning("%s: the run is finished; nothing to resume", path)
            return Run(path)
        prepared = prepare(checked)
        if (path / "plan" / SUMMARY_FILE).is_file():
            prepared.plan.check_same(path / "plan")
        found = checkpoints(path / "checkpoints")
        if not found:
            logger.warning("%s: no whole checkpoint; training starts from its beginning", path)
        return run_prepared(prepared, path, callbacks, found[-1] if found else None)
    if is_main_process():  # of several, one checks and writes
        check_free(path)
    return run_prepared(prepare(checked), path, callbacks)


def run_prepared(
    prepared: Prepared, path: Path, callbacks: Sequence[TrainerCallback] = (), checkpoint: Path | None = None
) -> Run:
    """Train what `prepare` made and write the run to `path`, from a checkpoint if one is given."""
    recipe, model, plan_, arguments = prepared.recipe, prepared.model, prepared.plan, prepared.arguments
    trainable, total = parameter_counts(model)
    stop = StopOnSignal()
    try:
        trainer = MultiTaskTrainer(
            model=model,
            args=arguments,
            plan=plan_,
            callbacks=[*callbacks, stop],
            scale_lr_factor=recipe.optimizer.scale_lr_factor,
            up_lr_factor=recipe.optimizer.up_lr_factor,
            loss_weighting=recipe.loss.weighting,
            on_nonfinite=recipe.loss.on_nonfinite,
        )
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"training: {' '.join(str(error).split())}") from error
    if plan_.packed and not (trainer.is_spread or _stays_here(arguments)):
        check_packing(trainer.model)  # now that it is where it will be trained
    trainer.remove_callback(PrinterCallback)  # it prints every log to stdout
    writes = trainer.is_world_process_zero()
    begun = step_of(checkpoint) if checkpoint else 0
    if writes:
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / RECIPE_FILE, recipe.dump_yaml())
        write_json(path / "environment.json", environment(recipe.mixture.seed, arguments.seed))
        plan_.save(path / "plan")
        forget_after(path / "metrics.jsonl", begun)
    start = time.perf_counter()
    with progress(f"training {recipe.adapter.method}", plan_.steps) as advance:
        advance(begun)
        recorder = _Recorder(path / "metrics.jsonl", advance, trainer, checkpoint)
        trainer.add_callback(recorder)
        during = _evaluation(prepared, path, begun, trainer)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except RunError as error:
            raise RunError(f"{error}\n{_last_good(path)}") from error
        except InputError:
            raise
        except (RuntimeError, OSError, ValueError) as error:
            raise RunError(
                f"training failed at step {trainer.state.global_step}: {' '.join(str(error).split())}\n"
                f"{_last_good(path)}"
            ) from error
    if stop.received and trainer.state.global_step < plan_.steps:
        raise RunError(f"stopped by {stop.received} after step {trainer.state.global_step}\n{_last_good(path)}")
    seconds = time.perf_counter() - start
    kept = during.best["step"] if during and during.best and recipe.evaluation.keep == "best" else None
    if writes:
        write_json(
            path / "train.json",
            {
                "method": recipe.adapter.method,
                "steps": trainer.state.global_step,
                "planned_steps": plan_.steps,
                "weights_of_step": kept or trainer.state.global_step,
                "seconds": round(seconds, 3),
                "resumed_from_step": begun,
                "trainable_parameters": trainable,
                "total_parameters": total,
                "tokens": int(sum(entry.tokens for entry in plan_.summary())),
            },
        )
    # The weights come last: where they lie, the run is finished.
    weights, tokenizer = weights_folder(path, recipe.adapter.method), plan_.renderer.tokenizer
    if kept is None:
        trainer.write_weights(weights, lambda folder: tokenizer.save_pretrained(str(folder)))
    elif writes:
        with whole_folder(weights) as folder:
            shutil.copytree(path / BEST_FOLDER, folder, dirs_exist_ok=True)
            tokenizer.save_pretrained(str(folder))
    trainer.accelerator.wait_for_everyone()
    return Run(path)


def _evaluation(prepared: Prepared, path: Path, begun: int, trainer: MultiTaskTrainer) -> EvaluateDuring | None:
    """The callback that evaluates while training, if the recipe asks for it."""
    section = prepared.recipe.evaluation
    if section.every is None:
        return None
    from multilora.evaluation.run import evaluation_sets, score_tasks

    sets = evaluation_sets(prepared.recipe, section.max_examples_during)
    plan_, model = prepared.plan, prepared.model
    callback = EvaluateDuring(
        section,
        lambda: score_tasks(model, plan_.renderer, sets, section, plan_.max_length, "evaluating"),
        path,
        begun,
    )
    callback.trainer = trainer
    trainer.add_callback(callback)
    return callback


def _last_good(path: Path) -> str:
    found = checkpoints(path / "checkpoints")
    if not found:
        return f"there is no whole checkpoint yet; {path} holds what was logged, remove it to train again"
    return f"the last whole checkpoint is {found[-1]}; `multilora train ... --resume` goes on from there"


class _Recorder(TrainerCallback):
    """Moves the progress bar, appends every log to `metrics.jsonl`, and takes up the sums of a checkpoint."""

    def __init__(
        self, path: Path, advance: Callable[..., None], trainer: MultiTaskTrainer, checkpoint: Path | None
    ) -> None:
        self.path, self.advance = path, advance
        self.trainer, self.checkpoint = trainer, checkpoint

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.trainer.plan.packed and self.trainer.is_spread:
            check_packing(self.trainer.model)  # no process could do so alone
        if self.checkpoint is not None:
            self.trainer.restore_progress(self.checkpoint)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.advance()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            self.advance(0, note=f"loss {logs['loss']:.3f}")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
