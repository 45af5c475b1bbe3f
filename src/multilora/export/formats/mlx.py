"""Export the update of an adapter in the layout of mlx-lm, which runs models on Apple silicon.

mlx-lm adds `scale * (x @ lora_a) @ lora_b` to a linear module, with `lora_a` [d_in, rank] and `lora_b` [rank, d_out]:
the transposes of PEFT's. Stacks of experts keep PEFT's orientation: [experts, rank, d_in] and [experts, d_out, rank].
One rank and one scale hold for all modules (mlx-lm's `tuner/utils.py` and `tuner/lora.py`, version 0.32).
"""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.functional import pad

from multilora.errors import AdapterError
from multilora.export.factors import TO_MERGED, AdapterFactors, ExpertFactors
from multilora.export.folder import new_folder
from multilora.export.formats.update_files import file_proof, module_updates, vocabulary_error
from multilora.export.proof.result import Proof
from multilora.export.sources.source import Source, open_source
from multilora.export.verify import check_finite
from multilora.files import write_json
from multilora.foreign_errors import own_errors

WEIGHTS_FILE = "adapters.safetensors"
CONFIG_FILE = "adapter_config.json"
# mlx-lm names the modules of these as transformers does, except for stacks of experts.
MODEL_TYPES = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3", "qwen3_moe")
LAYER = re.compile(r"model\.layers\.\d+\.(?P<key>.+)")


@own_errors
def export_mlx(source: Any, out: str | Path, *, base: str | None = None, adapter_name: str = "default") -> Path:
    """Write a MultiLoRA or LoRA adapter for mlx-lm (`mlx_lm.generate --adapter-path`).

    Args:
        source: a `Run`, a run directory, the folder of a PEFT adapter, or a `PeftModel`
        out: a new folder
        base: see `open_source`
        adapter_name: the adapter of a `PeftModel`

    Returns:
        the folder

    Raises:
        AdapterError: the base is of another architecture, mlx-lm cannot add something that the adapter changes, or a
            weight is NaN or infinite.
        RunDirectoryError: `out` is taken or cannot be written, or `source` is not a finished run.
        RunError: the file differs from what was written; nothing is left.
    """
    write_mlx(open_source(source, base=base, adapter_name=adapter_name), out)
    return Path(out)


def write_mlx(source: Source, out: str | Path) -> Proof:
    """Do the work of `export_mlx`; returns the proof that the file holds the factors."""
    with new_folder(Path(out)) as folder:
        factors = source.factors()
        tensors, keys = mlx_tensors(factors)
        check_finite(tensors)
        # Not `save_file`, which leaves a file that only its owner can read.
        (folder / WEIGHTS_FILE).write_bytes(save(tensors, metadata={"format": "mlx"}))
        config = {
            "fine_tune_type": "lora",
            "model": factors.base,
            "num_layers": factors.config.num_hidden_layers,
            "lora_parameters": {"rank": factors.largest_rank, "scale": 1.0, "dropout": 0.0, "keys": keys},
        }
        write_json(folder / CONFIG_FILE, config)
        return file_proof(load_file(folder / WEIGHTS_FILE), tensors, f"safetensors {version('safetensors')}")


def mlx_tensors(factors: AdapterFactors) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors by name, and the keys of `lora_parameters`.

    A key names a module within a layer, for all layers, or outside of the layers. mlx-lm adds a zero update where the
    file has no tensor. Smaller ranks are padded with zeros.

    Raises:
        AdapterError: mlx-lm has no such architecture here, or cannot add something that the adapter changes.
    """
    model_type = getattr(factors.config, "model_type", None)
    if model_type not in MODEL_TYPES:
        raise AdapterError(
            f"model type `{model_type}` cannot be exported to MLX, only {', '.join(MODEL_TYPES)}; {TO_MERGED} and "
            "convert the folder: mlx_lm.convert --hf-path FOLDER"
        )
    if factors.tied:
        raise vocabulary_error(min(factors.tied), "mlx-lm")
    rank = factors.largest_rank
    tensors: dict[str, Tensor] = {}
    keys = set()
    for name, update in module_updates(factors, "an adapter of mlx-lm").items():
        module = name.replace(".experts.", ".switch_mlp.")
        down = pad(update.down, (0, 0, 0, rank - update.rank))
        up = pad(update.up, (0, rank - update.rank))
        if not isinstance(update, ExpertFactors):
            down, up = down.mT, up.mT
        tensors[f"{module}.lora_a"] = down.contiguous()
        tensors[f"{module}.lora_b"] = up.contiguous()
        keys.add(match["key"] if (match := LAYER.fullmatch(module)) else module)
    return tensors, sorted(keys)
