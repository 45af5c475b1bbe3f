"""Export the adapted model as a plain model, with the update added to the base weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from multilora.errors import AdapterError, MultiLoraError, RunError
from multilora.export.folder import new_folder
from multilora.export.prompts import run_prompts
from multilora.export.verify import (
    TOLERANCES,
    Verification,
    check_files,
    check_finite,
    compare,
    float32,
    prompt_logits,
    tolerance_of,
)
from multilora.foreign_errors import own_errors
from multilora.methods import FULL
from multilora.modeling import load_base
from multilora.peft_method.ties import untie_adapted_weights
from multilora.runs.directory import Run

EXACT = TOLERANCES[torch.float32]
USE_LORA = "Export it with --to lora, or use the run unmerged, and report this as a bug"


@own_errors
def export_merged(source: Run | str | Path, out: str | Path) -> Path:
    """Merge the adapter of a run into the base, and write the model and its tokenizer with `save_pretrained`.

    The sum is computed in float32 and rounded once to `model.dtype`. If training quantized the base, the
    original weights are used. A head that is tied to the embeddings is untied if the adapter changes one of them.
    The export is verified, see `multilora.export.verify`.

    Args:
        source: a `Run` or a run directory
        out: a new folder

    Returns:
        the folder

    Raises:
        RunDirectoryError: `out` is taken or cannot be written, or `source` is not a finished run.
        AdapterError: the method cannot be merged, or a weight is NaN or infinite.
        RunError: the export differs from the run's model; nothing is written.
    """
    write_merged(source, out)
    return Path(out)


def write_merged(source: Run | str | Path, out: str | Path) -> Verification:
    """Do the work of `export_merged`; returns the verification."""
    run = source if isinstance(source, Run) else Run(source)
    with new_folder(Path(out)) as folder:
        prompts = run_prompts(run)
        # Merging into quantized weights would round the update away.
        model: Any = run.load_model(quantized=False)
        check_finite(_trained_weights(model, run))
        tolerance = tolerance_of(model)
        if run.recipe.adapter.method != FULL:
            untie_adapted_weights(model.get_base_model())
        with float32(model):
            reference = prompt_logits(model, prompts)
            model = _merge(model, run.recipe.adapter.method)
            expected = prompt_logits(model, prompts)
        compare(expected, reference, prompts, EXACT, f"Merging changed the model. {USE_LORA}")
        if tolerance > EXACT:  # the weights were rounded at the end of the block
            with float32(model):
                expected = prompt_logits(model, prompts)
        model.save_pretrained(str(folder))
        run.load_tokenizer().save_pretrained(str(folder))
        check_files(folder, model.state_dict())
        del model
        logits = prompt_logits(_load(run, folder), prompts)
        compare(logits, expected, prompts, EXACT, f"The files load as another model. {USE_LORA}")
        problem = f"Rounding the merged weights to model.dtype {run.recipe.model.dtype} changed the model. {USE_LORA}"
        return compare(logits, reference, prompts, tolerance, problem)


def _trained_weights(model: Any, run: Run) -> dict[str, torch.Tensor]:
    if run.recipe.adapter.method == FULL:
        return dict(model.named_parameters())
    from peft import get_peft_model_state_dict

    state: dict[str, torch.Tensor] = get_peft_model_state_dict(model)
    return state


def _merge(model: Any, method: str) -> Any:
    if method == FULL:
        return model
    try:
        return model.merge_and_unload(safe_merge=True)
    except MultiLoraError:
        raise
    except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
        raise AdapterError(f"method {method!r} cannot be merged into the base: {error}") from error


def _load(run: Run, folder: Path) -> Any:
    section = run.recipe.model.model_copy(update={"quantization": "none"})
    try:
        return load_base(section, trainable=True, source=str(folder))
    except Exception as error:
        raise RunError(
            f"the merged model cannot be loaded ({' '.join(str(error).split())[:300]}). {USE_LORA}; nothing was written"
        ) from error
