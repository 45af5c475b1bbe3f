"""What GGUF and MLX have in common: files that hold low-rank updates and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from multilora.errors import AdapterError, RunError
from multilora.export.factors import TO_MERGED, AdapterFactors, Factors
from multilora.export.lora.unstack import split_projections
from multilora.export.proof.result import Proof, factor_proof


def module_updates(factors: AdapterFactors, what: str) -> dict[str, Factors]:
    """Return the updates by module name; a stack of experts has one item per projection.

    Args:
        factors: what the adapter changes
        what: the format, for error messages

    Raises:
        AdapterError: the adapter also replaces weights, changes a parameter that is no linear weight, or its base
            stores experts in another way.
    """
    replaced = sorted(factors.saved) + sorted(factors.tokens)
    if replaced:
        more = f" and {len(replaced) - 1} more" if len(replaced) > 1 else ""
        raise AdapterError(
            f"{replaced[0]}{more}: the adapter replaces these weights (modules_to_save, biases, token indices or new "
            f"tokens), and {what} can only add low-rank updates; {TO_MERGED}"
        )
    for name in factors.parameters:
        if not name.endswith(".weight") or name.endswith("embed_tokens.weight"):
            raise AdapterError(f"{name}: {what} cannot add an update to this parameter; {TO_MERGED}")
    parameters = {name.removesuffix(".weight"): update for name, update in factors.parameters.items()}
    return {**factors.modules, **parameters, **split_projections(factors)}


def vocabulary_error(module: str, what: str) -> AdapterError:
    """Return the error for an update of a weight that is shared by the embedding and the head."""
    return AdapterError(
        f"{module}: its weight is both the embedding and the head, and {what} cannot change one of them alone; "
        f"{TO_MERGED}"
    )


def file_proof(written: Mapping[str, Tensor], tensors: Mapping[str, Tensor], reader: str) -> Proof:
    """Compare the tensors of a file, as its format's own library reads them, with those that were written.

    Raises:
        RunError: they are not the same.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if {name: tensor.shape for name, tensor in written.items()} != shapes:
        raise RunError(
            f"the file holds other tensors than were written: {len(written)}, expected {len(tensors)}; check the disk "
            "and its free space, then export again; nothing was written"
        )
    difference = max(float((written[name] - tensor).abs().max()) for name, tensor in tensors.items())
    return factor_proof(len(tensors), difference, 0.0, reader)
