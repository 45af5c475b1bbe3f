"""Check the tensors of an export: before they are written, and in the files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from multilora.errors import AdapterError, RunError


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights with NaN or infinity.

    Raises:
        AdapterError: names the first such parameter.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        finite = torch.isfinite(tensor)
        if not finite.all():
            raise AdapterError(
                f"{name}: {int((~finite).sum()):,} of {tensor.numel():,} values are NaN or infinite, so its training "
                "diverged; train again with a lower learning rate, or export an earlier checkpoint"
            )


def check_files(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Compare the tensors in the safetensors files of a folder with those that were saved, exactly.

    Names that occur on one side only are skipped: some architectures are saved under other names, and the proof of the
    export covers them.

    Raises:
        RunError: a tensor in a file has other values.
    """
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118  (not a dict)
                tensor = tensors.get(name)
                if tensor is None:
                    continue
                written = stored.get_tensor(name)
                expected = tensor.detach().cpu()
                if written.shape != expected.shape or not torch.equal(written, expected.to(written.dtype)):
                    raise RunError(
                        f"{file.name}: {name} differs from what was saved ({_difference(written, expected)}); check "
                        "the disk and its free space, then export again; nothing was written"
                    )


def _difference(written: Tensor, expected: Tensor) -> str:
    if written.shape != expected.shape:
        return f"shape {list(written.shape)}, expected {list(expected.shape)}"
    return f"by up to {float((written.double() - expected.double()).abs().max()):.3g}"
