"""What can be evaluated: a run, an adapter of any PEFT method, or a model (a base, a full fine-tune, an export)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multilora.errors import InputError
from multilora.recipe.schema import ModelSection
from multilora.runs.directory import RECIPE_FILE, Run
from multilora.saved_adapter import SavedAdapter, adapter_folder, read_saved_adapter


@dataclass(frozen=True)
class Candidate:
    """A model to evaluate.

    label: its name in tables and files
    base: the model below the adapter, or the model itself
    run: if it is a run
    adapter: if it is an adapter without a run
    """

    label: str
    base: ModelSection
    run: Run | None = None
    adapter: SavedAdapter | None = None

    @property
    def is_plain(self) -> bool:
        """Whether nothing is added to the base."""
        return self.run is None and self.adapter is None

    def load_tokenizer(self) -> Any:
        """Load the tokenizer of the base, or that of an adapter saved with its own, to which training may add tokens.

        Raises:
            InputError: it cannot be loaded.
        """
        from multilora.modeling import load_tokenizer

        return load_tokenizer(self.base, self.tokenizer_folder)

    @property
    def tokenizer_folder(self) -> str | None:
        """The adapter's folder if it has a tokenizer of its own."""
        folder = self.adapter.folder if self.adapter else None
        return str(folder) if folder and (folder / "tokenizer_config.json").is_file() else None

    def load(self) -> Any:
        """Load the model onto the best device.

        Raises:
            InputError: it cannot be loaded.
        """
        from multilora.modeling import best_device, load_adapter, load_base, to_device
        from multilora.vocabulary import check_vocabulary

        if self.run is not None:
            return to_device(self.run.load_model(), best_device())
        model = load_base(self.base)
        if self.adapter is not None:
            model = load_adapter(model, str(self.adapter.folder))
            if self.tokenizer_folder is not None:
                check_vocabulary(self.load_tokenizer(), model.config, self.label)
        return to_device(model, best_device())


def candidate(source: str | Path | Run, *, dtype: str | None = None, base: str | None = None) -> Candidate:
    """Find out what is at a path.

    Args:
        source: a run or its directory, an adapter folder, a model folder, `nano` or a name on the hub
        dtype: of a base that is not that of a run; by default bfloat16
        base: of an adapter folder, if its config names none or one that is not here

    Raises:
        InputError: the adapter does not say which base it belongs to, the path does not exist, or `base` is given for
            something else.
        RunDirectoryError: the run is damaged or not finished.
    """
    if isinstance(source, Run) or (Path(source) / RECIPE_FILE).exists():
        _check_no_base(source, base, "a run")
        run = source if isinstance(source, Run) else Run(source)
        return Candidate(str(run.path), run.recipe.model, run=run)
    name = str(source)
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    if adapter_folder(Path(source)) is not None:
        adapter = read_saved_adapter(name)
        base = base or adapter.base
        if base is None:
            raise InputError(f"{name}: adapter_config.json does not name a base; set base_model_name_or_path in it")
        return Candidate(name, ModelSection(name_or_path=base, **options), adapter=adapter)
    _check_no_base(source, base, "a model")
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(
            f"{name}: no {RECIPE_FILE} here, and no adapter_config.json or config.json; expected a run, an adapter or "
            "a model"
        )
    if not path.is_dir() and (path.exists() or name[:1] in ("", ".", "/", "~") or name.count("/") > 1):
        problem = "is not a folder, so there is" if path.exists() else "does not exist, so there is"
        raise InputError(
            f"{name}: {problem} no {RECIPE_FILE} here; expected a run, an adapter, a model, or the name of a model on "
            "the hub"
        )
    return Candidate(name, ModelSection(name_or_path=name, **options))


def _check_no_base(source: object, base: str | None, kind: str) -> None:
    if base is not None:
        raise InputError(f"{source} is {kind}, whose base is known; leave the base {base!r} out")
