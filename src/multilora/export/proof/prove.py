"""The proof of an export: what stock libraries read from its files, compared with the original.

An export calls, with the `ModelSection` of its base and prompts from `multilora.export.proof.prompts`:

    reference = reference_outputs(model, prompts)              # the original, in float32; then `del model`
    proof = prove(folder, "lora", base, prompts, reference)    # a `Proof`; RunError if they differ

`prove` starts a process that loads the files with transformers and PEFT, without multilora, and compares logits, greedy
text and loss. A part of the work can be compared in this process, with `multilora.export.proof.compare.compare`. Files
that are read back factor by factor (GGUF, MLX) give a `multilora.export.proof.result.factor_proof`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from multilora.errors import RunError
from multilora.export.proof import outputs as proof_outputs
from multilora.export.proof.compare import LOOSEST, TOLERANCES, compare
from multilora.export.proof.outputs import Output, float32, is_quantized, outputs_of
from multilora.export.proof.prompts import Prompt
from multilora.export.proof.result import Proof
from multilora.modeling import best_device, model_source, uses_flash_attention
from multilora.recipe.schema import ModelSection

Kind = Literal["lora", "merged"]
# What failed, and what to use instead.
EXPORTS = {"lora": ("adapter", "merged"), "merged": ("model", "lora")}


@dataclass(frozen=True)
class Reference:
    """What the original says to prompts, and how it computed: its attention, and whether it is quantized."""

    outputs: list[Output]
    attention: str
    quantized: bool


def reference_outputs(model: Any, prompts: Sequence[Prompt]) -> Reference:
    """Run the original on prompts, in float32; a quantized model computes in its own precision.

    Args:
        model: a transformers model or a `PeftModel`; unchanged afterwards, except that flash attention becomes eager
        prompts: from `multilora.export.proof.prompts`
    """
    if uses_flash_attention(model):
        model.set_attn_implementation("eager")  # flash attention supports neither float32 nor the CPU
    quantized = is_quantized(model)
    with nullcontext() if quantized else float32(model):
        outputs = outputs_of(model, prompts)
    return Reference(outputs, model.config._attn_implementation, quantized)


def prove(
    folder: Path,
    kind: Kind,
    base: ModelSection,
    prompts: Sequence[Prompt],
    reference: Reference,
    *,
    tolerance: float | None = None,
    auto_class: str = "AutoModelForCausalLM",
) -> Proof:
    """Load an export with transformers and PEFT in a process of its own, and compare it with the original.

    Args:
        folder: the export
        kind: an adapter for the base, or a model
        base: the base of the adapter; of a merged model, `dtype` is that of the export
        prompts: of the reference
        reference: from `reference_outputs`
        tolerance: in standard deviations of the logits; by default what rounding can explain: that of `dtype` for a
            merged model, that of float32 for an adapter, and the loosest if the original is quantized
        auto_class: the class of transformers that loads the model

    Raises:
        RunError: the export cannot be loaded, or differs from the original.
    """
    if tolerance is None:
        rounded = TOLERANCES[getattr(torch, base.dtype) if kind == "merged" else torch.float32]
        tolerance = LOOSEST if reference.quantized else rounded
    what, other = EXPORTS[kind]
    reader = f"transformers {version('transformers')}" + (f", PEFT {version('peft')}" if kind == "lora" else "")
    with tempfile.TemporaryDirectory() as exchange:
        request = {
            "kind": kind,
            "folder": str(folder.resolve()),
            "auto_class": auto_class,
            "base": model_source(base),
            **base.model_dump(include={"revision", "dtype", "trust_remote_code"}),
            "quantization": base.quantization if reference.quantized else "none",
            "attention": reference.attention,
            "device": str(best_device()),
            "threads": torch.get_num_threads(),
            "prompts": [asdict(prompt) for prompt in prompts],
        }
        (Path(exchange) / proof_outputs.REQUEST_FILE).write_text(json.dumps(request), encoding="utf-8")
        problem = _run_script(Path(exchange))
        if problem is not None:
            raise RunError(
                f"{reader}: cannot load the exported {what} ({problem}). Export it with --to {other}, and report this "
                "as a bug; nothing was written"
            )
        outputs = proof_outputs.read_outputs(Path(exchange))
    problem = f"The files load as another {what}. Export it with --to {other}, and report this as a bug"
    return compare(outputs, reference.outputs, prompts, tolerance, problem, reader)


def _run_script(exchange: Path) -> str | None:
    """Answer the request in a folder in a new process; returns what went wrong."""
    # -P: else the folder of the script is on the path, and its files have the names of other modules.
    command = [sys.executable, "-P", proof_outputs.__file__, str(exchange)]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if result.returncode == 0:
        return None
    if result.returncode < 0:
        return f"its process was ended by signal {-result.returncode}; is there enough memory?"
    return " ".join((result.stderr.strip() or "no message").splitlines()[-1].split())[:300]
