"""Read and write safetensors files one tensor at a time.

`safetensors.torch.save_file` needs all tensors of a file at once, and `safe_open` maps the whole file into memory. Here
a tensor is read from its place in the file, and written to its place, so that one tensor is in memory. The format is
eight bytes with the length of the header, the header in JSON (name -> dtype, shape, offsets), and the tensors.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from multilora.errors import InputError, RunError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4}
_SIZES |= {"U64": 8, "I64": 8, "F64": 8, "C64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
_CHUNK = 4 * 2**20
_LONGEST_HEADER = 100_000_000  # the limit of the safetensors library
_DAMAGED = "the file is damaged; restore it, or download or save it again"


@dataclass(frozen=True)
class Slot:
    """The place of a tensor: its file, the name of its dtype, its shape, and its first byte and size in bytes."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    def read(self) -> Tensor:
        """Read the tensor, of a floating-point dtype, in its own dtype.

        Raises:
            InputError: the dtype is another one, or the file is shorter than its header says.
        """
        if self.dtype not in DTYPES:
            raise InputError(f"{self.file}: a weight is {self.dtype}, expected one of {', '.join(DTYPES)}")
        data = torch.empty(self.size, dtype=torch.uint8)
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.start)
            view, read = data.numpy().data, 0
            while read < self.size:
                count = file.readinto(view[read:])
                if not count:
                    raise InputError(f"{self.file}: is shorter than its header says; {_DAMAGED}")
                read += count
        return data.view(DTYPES[self.dtype]).view(self.shape)

    def chunks(self) -> Iterator[bytes]:
        """Read the bytes of the tensor in pieces.

        Raises:
            InputError: the file is shorter than its header says.
        """
        with self.file.open("rb") as file:
            file.seek(self.start)
            left = self.size
            while left:
                chunk = file.read(min(left, _CHUNK))
                if not chunk:
                    raise InputError(f"{self.file}: is shorter than its header says; {_DAMAGED}")
                left -= len(chunk)
                yield chunk


@dataclass(frozen=True)
class Layout:
    """The header of a safetensors file as bytes, and the slot of each tensor."""

    header: bytes
    metadata: dict[str, str] | None
    slots: dict[str, Slot]

    @property
    def size(self) -> int:
        """Of the file, in bytes."""
        return len(self.header) + sum(slot.size for slot in self.slots.values())


def read_layout(path: Path) -> Layout:
    """Read and check the header of a file.

    Raises:
        InputError: not a safetensors file, or one that is damaged or incomplete.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        total = os.fstat(file.fileno()).st_size
        if not 2 <= length <= min(total - 8, _LONGEST_HEADER):
            raise InputError(f"{path}: is no safetensors file, or a damaged one; {_DAMAGED}")
        text = file.read(length)
    try:
        entries = json.loads(text)
        metadata = entries.pop("__metadata__", None)
        slots = {name: _slot(path, 8 + length, entry) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: its header cannot be read ({str(error)[:200]}); {_DAMAGED}") from error
    end = 8 + length
    for name, slot in sorted(slots.items(), key=lambda item: (item[1].start, item[1].size)):
        if slot.start != end:
            raise InputError(f"{path}: {name} does not begin where the tensor before it ends; {_DAMAGED}")
        end += slot.size
    if end != total:
        raise InputError(f"{path}: has {total:,} bytes, expected {end:,} by its header; {_DAMAGED}")
    return Layout(length.to_bytes(8, "little") + text, metadata, slots)


def _slot(path: Path, begin: int, entry: dict[str, Any]) -> Slot:
    dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    known = _SIZES.get(dtype)
    if start < 0 or end < start or (known is not None and end - start != known * math.prod(shape)):
        raise ValueError(f"{dtype} of shape {list(shape)} in {end - start} bytes")
    return Slot(path, dtype, shape, begin + start, end - start)


def new_layout(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Any) -> Layout:
    """Lay out a file that is to be written.

    Args:
        path: of the file
        tensors: name -> name of the dtype, shape; in the order of the file
        metadata: texts for the header
    """
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    # Those with the largest elements first, as in the safetensors library, so that each is aligned.
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: -_SIZES[item[1][0]]):
        start, end = end, end + _SIZES[dtype] * math.prod(shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    slots = {name: _slot(path, 8 + len(text), entry) for name, entry in entries.items() if name != "__metadata__"}
    return Layout(len(text).to_bytes(8, "little") + text, metadata, slots)


class TensorWriter:
    """Writes a safetensors file tensor by tensor, in any order; a context manager.

    Args:
        path: a new file
        layout: of the file
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path = path
        self.layout = layout
        self._sums: dict[str, int] = {}
        self._file: BinaryIO = path.open("wb", buffering=0)
        self._write(0, layout.header)

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a tensor, which must have the dtype and shape of the layout.

        Raises:
            OSError: the disk is full.
        """
        slot = self.layout.slots[name]
        if NAMES.get(tensor.dtype) != slot.dtype or tuple(tensor.shape) != slot.shape:
            raise RunError(
                f"{self.path.name}: {name} is {tensor.dtype} of shape {list(tensor.shape)}, expected {slot.dtype} of "
                f"shape {list(slot.shape)}; report this as a bug"
            )
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
        self._write(slot.start, data)
        self._sums[name] = zlib.crc32(data)

    def copy(self, name: str, source: Slot) -> None:
        """Write the bytes of a tensor in another file.

        Raises:
            OSError: the disk is full.
            InputError: the other file is shorter than its header says.
        """
        position, total = self.layout.slots[name].start, 0
        for chunk in source.chunks():
            self._write(position, chunk)
            position += len(chunk)
            total = zlib.crc32(chunk, total)
        self._sums[name] = total

    def _write(self, position: int, data: Any) -> None:
        self._file.seek(position)
        view = memoryview(data)
        while len(view):  # a nearly full disk takes part of it, and raises for the rest
            view = view[self._file.write(view) :]

    def check(self) -> None:
        """Read the file again, and compare it with what was written.

        Raises:
            RunError: a tensor is missing or has other bytes.
        """
        written = read_layout(self.path)
        for name in self.layout.slots:
            total = 0
            for chunk in written.slots[name].chunks():
                total = zlib.crc32(chunk, total)
            if total != self._sums.get(name):
                raise RunError(
                    f"{self.path.name}: {name} differs from what was saved; check the disk and its free space, then "
                    "export again; nothing was written"
                )

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is None:
                os.fsync(self._file.fileno())
        finally:
            self._file.close()
