"""Export the adapted model as a plain model, with the update added to the base weights."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from multilora.export.card import add_card
from multilora.export.folder import new_folder
from multilora.export.merged.base_files import base_files, copy_files, write_config
from multilora.export.merged.in_memory import save_merged
from multilora.export.merged.layers import LayerMerger
from multilora.export.merged.names import Names, NotByShardsError
from multilora.export.merged.quantized import DequantizedBase, DequantizedChanges
from multilora.export.merged.shards import BaseWeights, Changes, ShardMerger
from multilora.export.merged.tensor_files import DTYPES
from multilora.export.merged.trained import copy_trained
from multilora.export.proof.compare import TOLERANCES
from multilora.export.proof.prove import prove, reference_outputs
from multilora.export.proof.result import Proof
from multilora.export.sources.base import empty_base
from multilora.export.sources.source import FolderSource, MemorySource, RunSource, open_source
from multilora.foreign_errors import own_errors
from multilora.methods import FULL
from multilora.modeling import load_adapter, load_tokenizer, model_source
from multilora.recipe.schema import ModelSection
from multilora.runs.directory import Run
from multilora.saved_adapter import read_saved_adapter

logger = logging.getLogger(__name__)


@own_errors
def export_merged(
    source: Run | str | Path | PeftModel, out: str | Path, adapter_name: str = "default", *, base: str | None = None
) -> Path:
    """Merge an adapter into its base, and write a plain model that transformers loads.

    The files are those of the base: the same shards with the same tensors in the same dtypes, and its tokenizer and
    other files. Each changed weight is W + Delta W in float32, rounded once. One layer is in memory at a time. A model
    whose checkpoint does not allow this, such as one with quantized files, is merged in memory instead, with a warning.

    If training quantized the base (`model.quantization`), the adapter is merged into the dequantized weights, which it
    was trained on, and not into the original ones. A head that is tied to the embeddings is untied if the adapter
    changes only one of them. The export is verified, see `multilora.export.proof.prove`.

    Args:
        source: a `Run`, a run directory, a folder with a PEFT adapter of any method that can be merged, or a
            `PeftModel`, which is not changed
        out: a new folder
        adapter_name: the adapter of a `PeftModel`
        base: of an adapter folder, see `multilora.export.sources.source.open_source`

    Returns:
        the folder

    Raises:
        RunDirectoryError: `out` is taken or cannot be written, or `source` is not a finished run.
        AdapterError: the method cannot be merged, or a weight is NaN or infinite.
        InputError: a file of the base is missing or damaged.
        RunError: the disk is full, or the export differs from the original; nothing is written.
    """
    write_merged(source, out, base=base, adapter_name=adapter_name)
    return Path(out)


def write_merged(
    source: Run | str | Path | PeftModel, out: str | Path, *, base: str | None = None, adapter_name: str = "default"
) -> Proof | None:
    """Do the work of `export_merged`; returns the proof, or None if the model reads no tokens.

    Args:
        source, out, adapter_name: as for `export_merged`
        base: of an adapter folder, see `multilora.export.sources.source.open_source`
    """
    opened: Any = open_source(source, base=base, adapter_name=adapter_name)
    with new_folder(Path(out)) as folder:
        if isinstance(opened, MemorySource):
            save_merged(opened.load_model(), folder)
        elif getattr(opened, "method", None) == FULL:
            copy_trained(opened.run.weights, folder)
        else:
            try:
                merge_by_shards(opened, folder)
            except NotByShardsError as reason:
                logger.warning("%s: the model is merged in memory, because %s", opened.label, reason)
                _empty(folder)
                _merge_in_memory(opened, folder)
        _copy_tokenizer(opened, folder)
        proof = _prove(opened, folder)
        add_card(opened, folder, Path(out), "merged", proof)
    return proof


def merge_by_shards(source: RunSource | FolderSource, folder: Path) -> None:
    """Write the merged model of an adapter into a folder, with one layer in memory at a time.

    Raises:
        NotByShardsError: the model has to be merged in memory.
    """
    section = source.section
    files = base_files(model_source(section), section.revision)

    def empty() -> Any:
        return empty_base(section, getattr(source, "task_type", "CAUSAL_LM"), getattr(source, "config", None))

    names = Names(empty(), files.slots)
    weights = BaseWeights(names)
    changes: Changes
    saved = read_saved_adapter(source.label)
    if section.quantization == "none":
        changes = LayerMerger(empty(), saved, weights.read)
    else:
        logger.warning(
            "%s: trained on a base quantized to %s, so the adapter is merged into the dequantized weights, and not "
            "into the original ones",
            source.label,
            section.quantization,
        )
        assert isinstance(source, RunSource)  # a section with quantization comes from a recipe
        dequantized = DequantizedBase(source.run.load_base(), weights.read)
        changes = DequantizedChanges(dequantized, LayerMerger(empty(), saved, dequantized.read))
    plan = ShardMerger(files, weights, changes)
    plan.write(folder)
    copy_files(files.folder, folder)
    write_config(folder, files.config(), _config_changes(names, plan), untied=plan.untied)


def _config_changes(names: Names, plan: ShardMerger) -> dict[str, Any]:
    """What the adapter changes in the config: the size of the vocabulary, and the class of a model with a new head."""
    config, base = names.model.config, plan.files.config()
    changes: dict[str, Any] = {}
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if rows is not None and rows != base.get("vocab_size", base.get("text_config", {}).get("vocab_size", rows)):
        changes["vocab_size"] = rows
    if any(plan.weights.stored(name) is None for name in plan.added.values()):
        changes["architectures"] = [type(names.model).__name__]
        changes["id2label"], changes["label2id"] = config.id2label, config.label2id
    return changes


def _merge_in_memory(source: Any, folder: Path) -> None:
    base = source.load_base()
    if getattr(base, "is_quantized", False):
        logger.warning("%s: the adapter is merged into the dequantized weights of the base", source.label)
        base = base.dequantize()
        base._weight_conversions = None  # those of the quantization cannot be undone when the model is saved
    model = load_adapter(base, str(read_saved_adapter(source.label).folder))
    save_merged(model, folder)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _copy_tokenizer(source: Any, folder: Path) -> None:
    """Write the tokenizer, which may be the adapter's own."""
    place = source.tokenizer_folder()
    if place is None:
        return
    if Path(place).is_dir():
        copy_files(Path(place), folder, tokenizer=True)
    elif not (folder / "tokenizer_config.json").is_file():
        load_tokenizer(source.section).save_pretrained(str(folder))


def _prove(source: Any, folder: Path) -> Proof | None:
    """Compare the export with the unmerged model."""
    prompts = source.prompts()
    if not prompts:
        logger.warning("%s: its model does not read tokens, so only the files are checked", source.label)
        return None
    quantized = isinstance(source, RunSource) and source.section.quantization != "none"
    model = source.run.load_model() if quantized else source.load_model()
    precisions = {parameter.dtype for parameter in model.parameters()}
    reference = reference_outputs(model, prompts)
    del model
    tolerance = None if reference.quantized else max(TOLERANCES.get(item, 0.0) for item in precisions | _stored(folder))
    section = source.section or ModelSection(name_or_path=str(folder), dtype="float32")
    return prove(folder, "merged", section, prompts, reference, tolerance=tolerance, auto_class=source.auto_class)


def _stored(folder: Path) -> set[torch.dtype]:
    """The dtypes of the weights in the files."""
    return {DTYPES[slot.dtype] for slot in base_files(str(folder)).slots.values() if slot.dtype in DTYPES}
