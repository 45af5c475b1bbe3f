"""Export an adapter as one LoRA that every reader of LoRA understands; see `multilora.export.lora.universal`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils.other import ModulesToSaveWrapper
from safetensors.torch import save

from multilora.errors import AdapterError
from multilora.export.card import add_card
from multilora.export.edit.edited import EditedSource, measured_effect, truncated
from multilora.export.edit.truncate import Truncation, check_size
from multilora.export.factors import AdapterFactors, adapter_factors
from multilora.export.folder import new_folder
from multilora.export.lora.universal import lora_files
from multilora.export.lora.unstack import unstack
from multilora.export.proof.lora import prove_lora
from multilora.export.proof.result import Proof
from multilora.export.servers.commands import NextCommand
from multilora.export.sources.source import Source, open_source
from multilora.export.verify import check_files, check_finite
from multilora.foreign_errors import own_errors
from multilora.modeling import load_tokenizer
from multilora.peft_method import MultiLoraConfig
from multilora.recipe.schema import ModelSection

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class LoraExport:
    """What was written.

    folder: the adapter
    rank: of every update
    proof: the comparison with the original; None if the model of a `PeftModel` reads no tokens
    truncation: what a lower rank loses in the weights; None without one
    effect: what it changes in the outputs; None without truncation, or if the model reads no tokens
    notes: what users should know, such as what readers other than PEFT do not read
    commands: what to do next, per program
    """

    folder: Path
    rank: int
    proof: Proof | None
    truncation: Truncation | None
    effect: Proof | None
    notes: list[str]
    commands: list[NextCommand]


@own_errors
def export_lora(
    source: Any,
    out: str | Path,
    adapter_name: str = "default",
    *,
    base: str | None = None,
    rank: int | None = None,
    energy: float | None = None,
    ragged: bool = False,
    per_expert: bool = False,
) -> Path:
    """Write a MultiLoRA or LoRA adapter as a plain LoRA, exactly unless a lower rank is asked for.

    All modules get one rank, `lora_alpha` is that rank, and all constants and scales are in B. The files are read again
    by stock PEFT and compared with the original, see `multilora.export.proof.prove`.

    Args:
        source: a `Run`, a run directory, the folder of a PEFT adapter, or a `PeftModel`, which is not changed
        out: a new folder
        adapter_name: the adapter of a `PeftModel`
        base: see `multilora.export.sources.source.open_source`
        rank: approximate every update by one of this rank
        energy: or by the smallest rank that keeps this share of every update's squared norm, such as 0.99
        ragged: keep the rank of every module, in `rank_pattern` and `alpha_pattern`, which few readers read
        per_expert: write the updates of stacked experts per expert and projection, see `multilora.export.lora.unstack`

    Returns:
        the folder

    Raises:
        AdapterError: the method has no low-rank factors, the adapter is merged into the base, damaged or of another
            base, or a weight is NaN or infinite.
        InputError: `rank` or `energy` is out of range.
        RunDirectoryError: `out` is taken or cannot be written, or `source` is not a finished run.
        RunError: the files differ from the original; nothing is written.
    """
    opened = open_source(source, base=base, adapter_name=adapter_name)
    write_lora(opened, out, rank=rank, energy=energy, ragged=ragged, per_expert=per_expert)
    return Path(out)


def write_lora(
    source: Source,
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    ragged: bool = False,
    per_expert: bool = False,
) -> LoraExport:
    """Do the work of `export_lora`."""
    if rank is not None or energy is not None:
        check_size(rank, energy)
    with new_folder(Path(out)) as folder:
        truncation, effect = None, None
        if rank is not None or energy is not None:
            source, truncation = truncated(source, rank=rank, energy=energy)
        factors = source.factors()
        if per_expert:
            factors = unstack(factors)
        write_adapter(factors, folder, ragged=ragged)
        copy_tokenizer(source, folder)
        prompts = source.prompts()
        if isinstance(source, EditedSource) and truncation is not None:
            effect = measured_effect(source, prompts)
        proof = prove_lora(source, folder, prompts)
        notes = notes_on(factors)
        for note in notes:
            logger.warning("%s: %s", source.label, note)
        if truncation is not None:
            notes.append(f"Truncated to {truncation}.")
        commands = add_card(source, folder, Path(out), "lora", proof, notes)
    return LoraExport(Path(out), factors.largest_rank, proof, truncation, effect, notes, commands)


def write_adapter(factors: AdapterFactors, folder: Path, *, ragged: bool = False) -> None:
    """Write the config and the tensors of a LoRA into a folder, and read them again.

    Raises:
        AdapterError: a weight is NaN or infinite.
        RunError: the file on the disk is not what was written.
    """
    config, state = lora_files(factors, ragged=ragged)
    check_finite(state)
    for name in ("target_modules", "exclude_modules"):  # sets, whose order in the file would change from run to run
        setattr(config, name, sorted(getattr(config, name) or ()) or None)
    config.save_pretrained(str(folder))
    # Not `save_file`, which leaves a file that only its owner can read.
    (folder / WEIGHTS_FILE).write_bytes(save(state, metadata={"format": "pt"}))
    check_files(folder, state)


def copy_tokenizer(source: Source, folder: Path) -> None:
    """Save the tokenizer of a source beside its export, for readers that look for one there."""
    place = source.tokenizer_folder()
    if place is None:
        logger.warning("%s: no tokenizer is known, so none is written", source.label)
        return
    section = source.section or ModelSection(name_or_path=place)
    load_tokenizer(section, place).save_pretrained(str(folder))


def notes_on(factors: AdapterFactors) -> list[str]:
    """Say what of an adapter only PEFT reads."""
    notes = []
    if factors.saved or factors.tokens:
        notes.append(
            f"It also has trained weights that are no LoRA ({_some([*factors.saved, *factors.tokens])}). PEFT reads "
            "them; most servers refuse or drop them and need the model exported with --to merged."
        )
    if factors.tied:
        notes.append(
            f"It changes {_some(sorted(factors.tied))}, whose weight the base shares with another module. PEFT changes "
            "only this one until it merges, which changes both; llama.cpp and OpenVINO drop the update. They need the "
            "model exported with --to merged."
        )
    if factors.experts:
        notes.append(
            f"The updates of stacked experts ({_some(list(factors.experts))}) are in PEFT's layout. vLLM and "
            "llama.cpp's converter read one LoRA per expert: export again with --per-expert."
        )
    return notes


def convert_to_lora(model: PeftModel) -> PeftModel:
    """Convert every MultiLoRA adapter of a model into a LoRA adapter of the same name, exactly.

    The result supports PEFT's LoRA-only features, such as `add_weighted_adapter`. It reuses the base modules of
    `model`, which must not be used afterwards.

    Raises:
        AdapterError: an adapter is not MultiLoRA or is merged into the base.
    """
    for name, config in model.peft_config.items():
        if not isinstance(config, MultiLoraConfig):
            raise AdapterError(f"adapter {name!r} has a {type(config).__name__}, expected a MultiLoraConfig")
    active, training = list(model.active_adapters), model.training
    adapters = {name: lora_files(adapter_factors(model, name), ragged=True) for name in model.peft_config}
    trainable = any(parameter.requires_grad for name, parameter in model.named_parameters() if "multilora_" in name)
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.set_adapter([])  # else `unload` keeps the active adapter's copy in the base
    lora: PeftModel | None = None
    base = model.unload()
    for name, (config, state) in adapters.items():
        config.inference_mode = model.peft_config[name].inference_mode
        config.lora_dropout = model.peft_config[name].lora_dropout
        if lora is None:
            lora = get_peft_model(base, config, adapter_name=name)
        else:
            lora.add_adapter(name, config)
        set_peft_model_state_dict(lora, state, adapter_name=name)
    assert lora is not None
    lora.set_adapter(active[0], inference_mode=not trainable)
    if len(active) > 1:
        lora.base_model.set_adapter(active, inference_mode=not trainable)
    return lora.train(training)


def _some(items: list[str]) -> str:
    return ", ".join(items[:3]) + (", ..." if len(items) > 3 else "")
