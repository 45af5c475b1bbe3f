"""Compare an exported LoRA with its source."""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path

from multilora.export.proof.compare import compare, tolerance_of
from multilora.export.proof.prompts import Prompt
from multilora.export.proof.prove import prove, reference_outputs
from multilora.export.proof.result import Proof
from multilora.export.sources.in_memory import NOT_EQUAL, load_lora, unchanged_gradients
from multilora.export.sources.source import Source

logger = logging.getLogger(__name__)


def prove_lora(source: Source, folder: Path, prompts: list[Prompt], *, stock: bool = True) -> Proof | None:
    """Compare the adapter in a folder with a source, in another process if the base can be loaded there.

    Args:
        source: what the adapter should equal
        folder: of the adapter
        prompts: of the source
        stock: whether PEFT reads the adapter without multilora

    Returns:
        the proof, or None if the model reads no tokens

    Raises:
        RunError: they differ, or PEFT cannot load the files.
    """
    if not prompts:
        logger.warning("%s does not read tokens, so only the files of the export are checked", source.label)
        return None
    if stock and source.section is not None and source.stock_base:
        model = source.load_model()
        reference = reference_outputs(model, prompts)
        del model
        return prove(folder, "lora", source.section, prompts, reference, auto_class=source.auto_class)
    # Both before the first call of either, because PEFT reads the state of the base when it loads an adapter, and
    # bitsandbytes then undoes its repacking for the CPU, with a loss of precision.
    original = source.load_model()
    with unchanged_gradients(original):
        lora = load_lora(source.load_base(), folder)
    tolerance = tolerance_of(original)
    expected = reference_outputs(original, prompts).outputs
    outputs = reference_outputs(lora, prompts).outputs
    return compare(outputs, expected, prompts, tolerance, NOT_EQUAL, f"PEFT {version('peft')}, on the base in memory")
