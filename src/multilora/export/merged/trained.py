"""Copy a model whose weights were all trained: there is nothing to merge."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from multilora.errors import InputError
from multilora.export.merged.base_files import CONFIG, INDEX, base_files, copy_files
from multilora.export.merged.tensor_files import DTYPES, Layout, Slot, TensorWriter


def copy_trained(source: Path, folder: Path) -> None:
    """Copy the weights, the config and the other files of a trained model.

    Args:
        source: folder of the model
        folder: of the export

    Raises:
        InputError: a weight is NaN or infinite, or a file is damaged.
        RunError: the copy differs from the original.
    """
    files = base_files(str(source))
    for name, layout in files.shards.items():
        slots = {
            key: Slot(folder / name, slot.dtype, slot.shape, slot.start, slot.size)
            for key, slot in layout.slots.items()
        }
        with TensorWriter(folder / name, Layout(layout.header, layout.metadata, slots)) as writer:
            for key, slot in layout.slots.items():
                if slot.dtype in DTYPES and not torch.isfinite(slot.read()).all():
                    raise InputError(
                        f"{str(source)!r} has NaN or infinite weights ({key}), so its training diverged; train the "
                        "run again with a lower learning rate"
                    )
                writer.copy(key, slot)
        writer.check()
    copy_files(source, folder)
    for name in (CONFIG, INDEX):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
