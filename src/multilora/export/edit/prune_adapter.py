"""`prune_adapter`: write a pruned adapter, as MultiLoRA or as LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from multilora.errors import InputError
from multilora.export.edit.edited import EditedSource, measured_effect
from multilora.export.edit.prune import Pruning, prune
from multilora.export.factors import PREFIX
from multilora.export.folder import new_folder
from multilora.export.lora.export_lora import WEIGHTS_FILE, copy_tokenizer, write_adapter
from multilora.export.lora.universal import wrapper_names
from multilora.export.proof.lora import prove_lora
from multilora.export.proof.result import Proof
from multilora.export.sources.source import FolderSource, RunSource, Source, open_source
from multilora.export.verify import check_files
from multilora.files import write_json
from multilora.foreign_errors import own_errors
from multilora.initialise import read_weights
from multilora.saved_adapter import CONFIG_FILE, SavedAdapter, read_saved_adapter

KINDS = ("multilora", "lora")


@dataclass(frozen=True)
class PrunedAdapter:
    """What was written.

    folder: the adapter
    kind: its method
    pruning: what was dropped
    effect: what this changes in the outputs
    proof: the comparison of the files with the pruned model
    """

    folder: Path
    kind: str
    pruning: Pruning
    effect: Proof | None
    proof: Proof | None


@own_errors
def prune_adapter(
    source: Any,
    out: str | Path,
    *,
    below: float = 0.05,
    ranks: bool = False,
    to: str | None = None,
    base: str | None = None,
) -> PrunedAdapter:
    """Drop the branches of an adapter whose share of their matrix's update is below a threshold.

    A MultiLoRA folder has the same number of branches everywhere: that of the matrix that keeps the most. In the
    others, dropped branches fill the places that are left, with a scale of zero, so that they can be trained again.

    Args:
        source: a `Run`, a run directory, or the folder of a PEFT adapter
        out: a new folder
        below: the threshold, see `multilora.export.edit.prune`
        ranks: drop single ranks instead of branches; always so for a LoRA
        to: `multilora` (the default for a MultiLoRA adapter that is pruned by branches) or `lora`
        base: see `multilora.export.sources.source.open_source`

    Raises:
        InputError: `below` is out of range, or MultiLoRA cannot express the result.
        AdapterError, RunDirectoryError, RunError: as for `export_lora`.
    """
    if to is not None and to not in KINDS:
        raise InputError(f"to is {to!r}, expected one of {', '.join(KINDS)}")
    opened = open_source(source, base=base)
    with new_folder(Path(out)) as folder:
        factors = opened.factors()
        by_branch = factors.branches > 1 and not ranks
        if to == "multilora" and not by_branch:
            raise InputError(
                "to: the ranks of branches of one matrix cannot differ in MultiLoRA; prune by branches, or write a lora"
            )
        kind = str(to) if to is not None else ("multilora" if by_branch else "lora")
        pruned, pruning = prune(factors, below, ranks=ranks)
        edited = EditedSource(opened, pruned, factors)
        if kind == "lora":
            write_adapter(pruned, folder)
        else:
            _write_multilora(_saved(opened), folder, pruning, wrapper_names(factors))
        copy_tokenizer(edited, folder)
        prompts = edited.prompts()
        effect = measured_effect(edited, prompts)
        proof = prove_lora(edited, folder, prompts, stock=kind == "lora")
    return PrunedAdapter(Path(out), kind, pruning, effect, proof)


def _saved(source: Source) -> SavedAdapter:
    if isinstance(source, RunSource):
        return read_saved_adapter(source.label)
    if isinstance(source, FolderSource):
        return source.saved
    raise InputError("only an adapter on disk can be pruned as MultiLoRA; save the model, or set to='lora'")


def _write_multilora(saved: SavedAdapter, folder: Path, pruning: Pruning, wrappers: dict[str, str]) -> None:
    before = next(iter(map(len, pruning.shares.values())))
    after = max(map(len, pruning.kept.values()))
    state = read_weights(saved)
    for name, kept in pruning.kept.items():
        order = [*kept, *(branch for branch in range(before) if branch not in kept)][:after]
        prefix = f"{PREFIX}{wrappers.get(name, name)}.multilora_"
        A, B, scale = (state[prefix + part] for part in ("A", "B", "scale"))
        state[prefix + "A"] = _select(A, order, before, -2)
        state[prefix + "B"] = _select(B, order, before, -1)
        scale = _select(scale, order, before, -1)
        scale[..., len(kept) :] = 0
        state[prefix + "scale"] = scale
    (folder / WEIGHTS_FILE).write_bytes(save(state, metadata={"format": "pt"}))
    check_files(folder, state)
    write_json(folder / CONFIG_FILE, {**saved.config, "num_branches": after})


def _select(tensor: Tensor, branches: list[int], count: int, axis: int) -> Tensor:
    """The given ones of `count` branches, which lie next to each other along an axis."""
    size = tensor.shape[axis] // count
    places = [branch * size + offset for branch in branches for offset in range(size)]
    return tensor.index_select(axis, torch.tensor(places)).contiguous()
