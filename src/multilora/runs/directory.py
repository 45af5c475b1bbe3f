"""The run directory, in human-readable formats.

recipe.yaml         resolved recipe, absolute paths      environment.json   versions, seeds, commit
plan/               all training examples, in order      metrics.jsonl      one line per log, loss per task
adapter/ | model/   trained weights (model/ for `full`)  train.json         steps, seconds, parameters
checkpoints/        used by `--resume`                   eval.json          scores before and after, per task
evaluations.jsonl   scores during training               analysis/          spectra and figures
best-<step>/         weights of the best evaluation     before_extension/  an extended run as it was
evaluation_examples.json  what an evaluation during training scores, if evaluation.max_seconds is set
data/               data that was passed in memory
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multilora.errors import RecipeError, RunDirectoryError
from multilora.foreign_errors import own_errors
from multilora.methods import FULL
from multilora.recipe import Recipe
from multilora.runs.lock import LOCK_FILE
from multilora.saved_adapter import read_saved_adapter

if TYPE_CHECKING:
    from multilora.inference.prompts import Prompt
    from multilora.inference.text_model import Answer, TextModel

RECIPE_FILE, METRICS_FILE, FACTS_FILE, EVAL_FILE = "recipe.yaml", "metrics.jsonl", "train.json", "eval.json"
# What others read from `train.json`.
FACTS = ("steps", "weights_of_step", "seconds", "trainable_parameters", "total_parameters")


class Run:
    """A finished run on disk.

    Args:
        path: the run directory

    Raises:
        RunDirectoryError: not a run directory, damaged, or its training did not finish.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not os.path.lexists(self.path / RECIPE_FILE):
            raise RunDirectoryError(f"{self.path}: no {RECIPE_FILE} here; expected the output_dir of a training run")
        if not self.weights.is_dir():
            raise RunDirectoryError(
                f"{self.path}: no {self.weights.name}/ here, so its training did not finish; resume it with "
                "`multilora train RECIPE --resume`"
            )

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe; not checked again, since its data may be gone."""
        return saved_recipe(self.path)

    @property
    def weights(self) -> Path:
        """The folder of the trained weights: an adapter, or the full model for `full`."""
        return weights_folder(self.path, self.recipe.adapter.method)

    @property
    def training(self) -> dict[str, Any]:
        """The content of `train.json`: steps, seconds, parameters."""
        facts = _read_json(self.path / FACTS_FILE)
        if not isinstance(facts, dict):
            raise _damaged(self.path / FACTS_FILE, TypeError(f"holds {type(facts).__name__}, expected an object"))
        for key in FACTS:
            if not isinstance(facts.get(key), int | float):
                problem = f"{key} is {facts.get(key)!r}, expected a number"
                raise _damaged(self.path / FACTS_FILE, TypeError(problem))
        return facts

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The lines of `metrics.jsonl`; values that were not finite are None."""
        try:
            text = (self.path / METRICS_FILE).read_text(encoding="utf-8")
            lines = [json.loads(line) for line in text.split("\n") if line]  # JSON may contain other line separators
        except (OSError, ValueError) as error:
            raise _damaged(self.path / METRICS_FILE, error) from None
        for number, line in enumerate(lines, 1):
            if not isinstance(line, dict) or not isinstance(line.get("step"), int):
                problem = f"line {number} is {str(line)[:40]}, expected an object with a step"
                raise _damaged(self.path / METRICS_FILE, TypeError(problem))
        return lines

    @property
    def scores(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The content of `eval.json`: model (`before`, `after`) -> task -> score."""
        if not (self.path / EVAL_FILE).is_file():
            raise RunDirectoryError(f"{self.path}: this run has no {EVAL_FILE}; score it with multilora.evaluate(run)")
        scores = _read_json(self.path / EVAL_FILE)
        if not isinstance(scores, dict) or not {"before", "after"} <= set(scores):
            raise _damaged(self.path / EVAL_FILE, TypeError("has no before and after"))
        return {model: scores[model] for model in ("before", "after")}

    @own_errors
    def metrics_frame(self) -> Any:
        """`metrics` as a pandas data frame: a row per log, indexed by step."""
        from multilora.runs.frames import metrics_frame

        return metrics_frame(self.metrics)

    @own_errors
    def scores_frame(self) -> Any:
        """`scores` as a pandas data frame: a row per task and model, with metric, value, interval, n and loss."""
        from multilora.runs.frames import scores_frame

        return scores_frame(self.scores)

    def check_complete(self) -> None:
        """Check that the weights are there and that the files that describe the training can be read.

        Raises:
            RunDirectoryError: a file is missing or damaged.
        """
        if not any(path.is_file() for pattern in ("*.safetensors", "*.bin") for path in self.weights.glob(pattern)):
            raise RunDirectoryError(f"{self.weights}: no weights here; this run is damaged, train it again")
        _ = self.training, self.metrics

    def check_writable(self) -> None:
        """Find out before the work whether its result can be written.

        Raises:
            OSError: the directory cannot be written.
        """
        with tempfile.TemporaryFile(dir=self.path):
            pass

    def load_tokenizer(self) -> Any:
        """Load the tokenizer of the base."""
        from multilora.modeling import load_tokenizer

        return load_tokenizer(self.recipe.model)

    def load_base(self, *, quantized: bool = True) -> Any:
        """Load the base model as it was before training, in the precision used for training.

        Args:
            quantized: if False, load it in `model.dtype` even if it was quantized for training
        """
        from multilora.modeling import load_base

        recipe = self.recipe
        section = recipe.model if quantized else recipe.model.model_copy(update={"quantization": "none"})
        return load_base(section, trainable=recipe.adapter.method == FULL)

    def load_model(self, *, quantized: bool = True) -> Any:
        """Load the trained model: a `PeftModel`, or the full model for `full`; `quantized` as in `load_base`."""
        import torch

        from multilora.modeling import load_base

        recipe = self.recipe
        if recipe.adapter.method == FULL:
            return load_base(recipe.model, trainable=True, source=str(self.weights))
        from peft import PeftModel

        import multilora.peft_method  # noqa: F401  (registers the method)

        base = self.load_base(quantized=quantized)
        try:
            model = PeftModel.from_pretrained(base, str(self.weights))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # PEFT raises many kinds for files that are missing or damaged
            raise _damaged(self.weights, error) from error
        for name, parameter in model.named_parameters():
            is_adapter = any(f".{part}." in f".{name}." for part in model.active_adapters)
            if is_adapter and not (parameter.is_meta or torch.isfinite(parameter).all()):
                raise RunDirectoryError(f"{self.weights}: {name} is NaN or infinite; train the run again")
        return model

    def text_models(
        self, *, template: str = "auto", system: str | None = None, compare: bool = False
    ) -> list[TextModel]:
        """Load the trained model onto the best device, to generate text.

        Args:
            template: `auto` renders prompts as in training; others as in `multilora.inference.prompts`
            system: text of the system's turn of every chat
            compare: return the base too, before the trained model
        """
        from multilora.inference.prompts import Prompts
        from multilora.inference.text_model import TextModel
        from multilora.modeling import best_device, to_device
        from multilora.runs.with_base import with_base

        prompts = Prompts(self.load_tokenizer(), self.recipe.data.template if template == "auto" else template, system)
        model = to_device(self.load_model(), best_device())
        trained = TextModel(str(self.path), model, prompts, self.recipe.model.name_or_path)
        if not compare:
            return [trained]
        saved = None if self.recipe.adapter.method == FULL else read_saved_adapter(str(self.path))
        return with_base(trained, saved, self.load_base)

    @own_errors
    def generate(
        self, prompts: Sequence[Prompt], *, system: str | None = None, compare: bool = False, **options: Any
    ) -> list[Answer]:
        """Let the trained model, which is loaded for each call, answer prompts that are rendered as in training.

        Args:
            prompts: each a text, or messages that end with a turn of the user
            system: text of the system's turn of every chat
            compare: let the base answer too; its answers come first
            options: see `multilora.inference.options.GenerationOptions`

        Raises:
            InputError: an option or a prompt cannot be used.
        """
        from multilora.inference.answers import answers_of

        return answers_of(lambda: self.text_models(system=system, compare=compare), prompts, options)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"


def saved_recipe(path: Path) -> Recipe:
    """Load the recipe of a run directory.

    Raises:
        RunDirectoryError: the recipe cannot be read.
    """
    try:
        return Recipe.read_saved(path / RECIPE_FILE)
    except RecipeError as error:
        raise RunDirectoryError(
            f"{error}\nthis run is damaged; restore its {RECIPE_FILE}, or train again with a new output_dir"
        ) from None


def weights_folder(path: Path, method: str) -> Path:
    """Return the folder of a run's trained weights."""
    return path / ("model" if method == FULL else "adapter")


def check_free(path: Path) -> None:
    """Check that nothing would be overwritten at a path.

    Raises:
        RunDirectoryError: the path is a file or a non-empty folder.
    """
    if path.is_file():
        raise RunDirectoryError(f"{path}: is a file; choose a new folder")
    if path.is_dir() and not all(_left_by_a_start(item) for item in path.iterdir()):
        if (path / RECIPE_FILE).exists():
            raise RunDirectoryError(
                f"{path}: already holds a run; choose another folder, remove this one, or resume this run "
                "(`multilora train RECIPE --resume`)"
            )
        raise RunDirectoryError(f"{path}: is not empty; choose another folder")


def _left_by_a_start(item: Path) -> bool:
    """Whether a start that was killed before it wrote the recipe may have left this: nothing is lost with it."""
    return item.name in (LOCK_FILE, f".{RECIPE_FILE}.partial") or (item.is_dir() and not any(item.iterdir()))


def check_files(path: Path) -> None:
    """Check that the files a run writes are files, before training continues.

    Raises:
        RunDirectoryError: there is a folder, a pipe or the like instead of one.
    """
    for name in (
        RECIPE_FILE,
        "environment.json",
        METRICS_FILE,
        FACTS_FILE,
        "evaluations.jsonl",
        "evaluation_examples.json",
    ):
        file = path / name
        if (file.exists() or file.is_symlink()) and not file.is_file():
            raise RunDirectoryError(f"{file}: is not a file, so the run cannot write it; remove it, then resume")
    for name in ("plan", "checkpoints"):
        folder = path / name
        if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
            raise RunDirectoryError(f"{folder}: is not a folder, so the run cannot write it; remove it, then resume")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> RunDirectoryError:
    return RunDirectoryError(f"{path}: cannot be read ({error}); this run is damaged, train it again")
