"""A run is a directory that a person can read.

recipe.yaml        as resolved, absolute paths          environment.json   versions, seed, commit
plan/              the order of all training examples   metrics.jsonl      one line per log, loss per task
adapter/ | model/  what was trained (model/ for `full`) train.json         steps, seconds, parameters
checkpoints/       what `--resume` goes on from         eval.json          per task, before and after
evaluations.jsonl  scores while training, best/ weights analysis/          spectra and figures
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from multilora.errors import RunDirectoryError
from multilora.modeling import FULL, load_base, load_tokenizer
from multilora.recipe import Recipe

RECIPE_FILE = "recipe.yaml"


class Run:
    """A finished run on disk.

    Args:
        path: the run directory

    Raises:
        RunDirectoryError: it is not one, or its training did not finish.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / RECIPE_FILE).is_file():
            raise RunDirectoryError(f"{self.path}: no {RECIPE_FILE} here; give the output_dir of a training run")
        if not self.weights.is_dir():
            raise RunDirectoryError(
                f"{self.path}: no {self.weights.name}/ here, so its training did not finish; train it again"
            )

    @property
    def recipe(self) -> Recipe:
        """The run's recipe, not checked again (its data may be gone)."""
        return Recipe.model_validate(yaml.safe_load((self.path / RECIPE_FILE).read_text(encoding="utf-8")))

    @property
    def weights(self) -> Path:
        """The folder of what was trained: an adapter, or a whole model for `full`."""
        return weights_folder(self.path, self.recipe.adapter.method)

    @property
    def training(self) -> dict[str, Any]:
        """What `train.json` says: steps, seconds, parameters."""
        value: dict[str, Any] = json.loads((self.path / "train.json").read_text(encoding="utf-8"))
        return value

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The lines of `metrics.jsonl`."""
        text = (self.path / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def load_tokenizer(self) -> Any:
        """The base's tokenizer."""
        return load_tokenizer(self.recipe.model)

    def load_base(self, *, quantized: bool = True) -> Any:
        """The base model as it was before training, in the precision it was trained on.

        Args:
            quantized: False: in `model.dtype` even if it was trained on in fewer bits
        """
        recipe = self.recipe
        section = recipe.model if quantized else recipe.model.model_copy(update={"quantization": "none"})
        return load_base(section, trainable=recipe.adapter.method == FULL)

    def load_model(self, *, quantized: bool = True) -> Any:
        """The trained model: a `PeftModel`, or the whole model for `full`; `quantized` as in `load_base`."""
        recipe = self.recipe
        if recipe.adapter.method == FULL:
            return load_base(recipe.model, trainable=True, source=str(self.weights))
        from peft import PeftModel

        import multilora.peft_method  # noqa: F401  (registers the method)

        return PeftModel.from_pretrained(self.load_base(quantized=quantized), str(self.weights))

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"


def weights_folder(path: Path, method: str) -> Path:
    """Where a run keeps what it trained."""
    return path / ("model" if method == FULL else "adapter")


def check_free(path: Path) -> None:
    """Nothing may lie where a run is to be written.

    Raises:
        RunDirectoryError: the path is a file or a folder that is not empty.
    """
    if path.is_file():
        raise RunDirectoryError(f"{path}: is a file; set output_dir to a new folder")
    if path.is_dir() and any(path.iterdir()):
        what = "already holds a run" if (path / RECIPE_FILE).exists() else "is not empty"
        raise RunDirectoryError(f"{path}: {what}; set output_dir to another folder, or remove this one")
