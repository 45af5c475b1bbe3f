"""Export the adapted model as a plain model, with the update added to the base weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from multilora.errors import AdapterError
from multilora.files import atomic_folder
from multilora.methods import FULL
from multilora.runs.directory import Run, check_free


def export_merged(source: Run | str | Path, out: str | Path) -> Path:
    """Merge the adapter of a run into the base, and write the model and its tokenizer with `save_pretrained`.

    The sum is computed in float32 and rounded once to `model.dtype`. If training quantized the base, the
    original weights are used.

    Args:
        source: a `Run` or a run directory
        out: a new folder

    Returns:
        the folder

    Raises:
        RunDirectoryError: `out` is taken, or `source` is not a finished run.
        AdapterError: the method cannot be merged.
    """
    out = Path(out)
    check_free(out)
    run = source if isinstance(source, Run) else Run(source)
    # Merging into quantized weights would round the update away.
    model: Any = run.load_model(quantized=False)
    method = run.recipe.adapter.method
    if method != FULL:
        try:
            model = model.merge_and_unload(safe_merge=True)
        except (AttributeError, NotImplementedError) as error:
            raise AdapterError(f"method {method!r} cannot be merged into the base: {error}") from error
    with atomic_folder(out) as folder:
        model.save_pretrained(str(folder))
        run.load_tokenizer().save_pretrained(str(folder))
    return out
