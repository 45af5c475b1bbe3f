"""Export the update of an adapter as a GGUF adapter, for llama.cpp, Ollama and others that read GGUF."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multilora.errors import RunDirectoryError
from multilora.export.factors import AdapterFactors
from multilora.export.formats.gguf_tensors import family_of, gguf_tensors
from multilora.export.formats.update_files import file_proof
from multilora.export.proof.result import Proof
from multilora.export.sources.source import Source, open_source
from multilora.export.verify import check_finite
from multilora.files import atomic_file
from multilora.foreign_errors import own_errors

SUFFIX = ".gguf"


@own_errors
def export_gguf(source: Any, out: str | Path, *, base: str | None = None, adapter_name: str = "default") -> Path:
    """Write a MultiLoRA or LoRA adapter as a GGUF adapter in float32, for llama.cpp's `--lora`.

    The file is read again and compared. Needs `pip install 'multilora[gguf]'`.

    Args:
        source: a `Run`, a run directory, the folder of a PEFT adapter, or a `PeftModel`
        out: a new file whose name ends in .gguf
        base: see `open_source`
        adapter_name: the adapter of a `PeftModel`

    Returns:
        the file

    Raises:
        AdapterError: the base is of another architecture (the message says how llama.cpp converts it), llama.cpp
            cannot add something that the adapter changes, or a weight is NaN or infinite.
        RunDirectoryError: `out` is taken or does not end in .gguf, or `source` is not a finished run.
        RunError: the file differs from what was written, or the disk is full; nothing is left.
    """
    check_new_file(Path(out))
    write_gguf(open_source(source, base=base, adapter_name=adapter_name), out)
    return Path(out)


def write_gguf(source: Source, out: str | Path) -> Proof:
    """Do the work of `export_gguf`; returns the proof that the file holds the factors."""
    path = Path(out)
    check_new_file(path)
    factors = source.factors()
    tensors, alpha = gguf_tensors(factors)
    check_finite(tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        _write(temporary, tensors, alpha, factors)
        return file_proof(_read(temporary), tensors, f"gguf {version('gguf')}")


def check_new_file(path: Path) -> None:
    """Check that a file can be created without overwriting anything.

    Raises:
        RunDirectoryError: the path exists, or its name does not end in .gguf.
    """
    if path.suffix != SUFFIX:
        raise RunDirectoryError(f"{path}: a GGUF adapter is one file; choose a name that ends in {SUFFIX}")
    if path.exists():
        raise RunDirectoryError(f"{path}: exists; choose another name, or remove it")


def _write(path: Path, tensors: dict[str, Tensor], alpha: int, factors: AdapterFactors) -> None:
    from gguf import GGUFType, GGUFWriter, Keys

    writer = GGUFWriter(path, family_of(factors).architecture)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha)
    if factors.base:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, factors.base)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.numpy())
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _read(path: Path) -> dict[str, Tensor]:
    from gguf import GGUFReader

    return {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in GGUFReader(path).tensors}
