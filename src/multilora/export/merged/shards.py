"""Write a merged model shard by shard: the same files as the base's, with other values where the adapter changes them.

A shard is written to its place tensor by tensor, so that one layer of the model is in memory. Tensors that do not
change are copied as bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from multilora.errors import AdapterError, InputError, RunError
from multilora.export.merged.base_files import INDEX, BaseFiles
from multilora.export.merged.names import Group, Names, NotByShardsError
from multilora.export.merged.tensor_files import DTYPES, Layout, Slot, TensorWriter, new_layout
from multilora.files import write_json


class Changes(Protocol):
    """The weights that an export changes.

    shapes: by their names in the model
    """

    shapes: dict[str, tuple[int, ...]]

    def merged(self, name: str) -> Tensor:
        """A changed weight; each is asked for once."""

    def same(self, first: str, second: str) -> bool:
        """Whether two weights that are tied in the base are still equal."""


class BaseWeights:
    """Reads the weights of a base by their names in the model, also those that are tied to one in the files."""

    def __init__(self, names: Names) -> None:
        self.names = names
        ties: dict[str, str] = names.model.all_tied_weights_keys
        self.ties = dict(ties)

    def stored(self, name: str) -> str | None:
        """The name under which the files have a weight: its own, or one that is tied to it; None without one."""
        root = self.ties.get(name, name)
        tied = [name, root, *(other for other, target in self.ties.items() if target == root)]
        return next((other for other in tied if other in self.names.groups), None)

    def read(self, name: str) -> Tensor:
        """Read a weight in the dtype of the files.

        Raises:
            InputError: the files do not have it.
        """
        stored = self.stored(name)
        if stored is None:
            raise InputError(f"{name}: the files of the base lack this weight, and the adapter does not have it either")
        group = self.names.groups[stored]
        return self.names.parameters(group, lambda key: self.names.slots[key].read())[stored]


class ShardMerger:
    """The plan of a merged model's files, made before the first is written.

    Args:
        files: of the base
        weights: of the base
        changes: of the adapter

    Attributes:
        untied: whether the merged model's head and embeddings are no longer tied
        added: keys of tensors that the base's files do not have -> name in the model

    Raises:
        NotByShardsError: a conversion makes one tensor of several parameters, of which one changes its shape.
        InputError: the base lacks a weight.
    """

    def __init__(self, files: BaseFiles, weights: BaseWeights, changes: Changes) -> None:
        self.files, self.weights, self.changes = files, weights, changes
        self.names = weights.names
        broken = [pair for pair in weights.ties.items() if not changes.same(*pair)]
        self.untied = bool(broken)
        wanted = dict.fromkeys([*changes.shapes, *(name for pair in broken for name in pair)])
        kept_ties = {name for pair in weights.ties.items() if pair not in broken for name in pair}
        self.added: dict[str, str] = {}
        for name in wanted:
            if name not in self.names.groups and not (name in kept_ties and weights.stored(name)):
                key = next(iter(self.names.tensors({name: torch.empty(1, device="meta")})))
                self.added[key] = name
        parameters = {name for name, _ in self.names.model.named_parameters(remove_duplicate=False)}
        lacking = sorted(name for name in parameters - set(wanted) if weights.stored(name) is None)
        if lacking:
            raise InputError(
                f"{files.folder}: lacks {len(lacking)} weights of {type(self.names.model).__name__} "
                f"({', '.join(lacking[:3])}), which the adapter does not have either; give the base that the adapter "
                "was trained on"
            )

    def write(self, folder: Path) -> None:
        """Write the shards and their index.

        Raises:
            AdapterError: a merged weight is too large for the dtype of the files.
            InputError: a file of the base is damaged.
            RunError: the disk is full, or its files differ from what was written.
        """
        layouts = self._layouts(folder)
        needed, free = sum(layout.size for layout in layouts.values()), shutil.disk_usage(folder).free
        if needed > free:
            raise RunError(
                f"{folder.parent}: the merged model needs {needed / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB "
                "free; free some space, or export to another disk"
            )
        with ExitStack() as stack:
            writers = {name: stack.enter_context(TensorWriter(folder / name, item)) for name, item in layouts.items()}
            file_of = {key: writers[name] for name, layout in layouts.items() for key in layout.slots}
            for group in self._in_order():
                self._write_group(group, file_of)
            for key, name in self.added.items():
                value = self.changes.merged(name) if name in self.changes.shapes else self.weights.read(name)
                _write(file_of[key], key, value)
        for writer in writers.values():
            writer.check()
        self._write_index(folder, layouts)

    def _in_order(self) -> Iterable[Group]:
        """All groups, in the order of the files."""
        unused = [Group([key]) for key in self.names.unused]
        groups = [*{id(group): group for group in self.names.groups.values()}.values(), *unused]
        place = {key: number for number, key in enumerate(self.names.slots)}
        return sorted(groups, key=lambda group: min(place[key] for key in group.keys))

    def _write_group(self, group: Group, file_of: dict[str, TensorWriter]) -> None:
        changed = [name for name in group.names if name in self.changes.shapes]
        if not changed:
            for key in group.keys:
                file_of[key].copy(key, self.names.slots[key])
        elif group.pattern is None:
            _write(file_of[group.keys[0]], group.keys[0], self.changes.merged(changed[0]))
        else:
            unchanged = [name for name in group.names if name not in changed]
            values = {name: self.weights.read(name).float() for name in unchanged}
            values |= {name: self.changes.merged(name) for name in changed}
            for key, value in self.names.tensors(values).items():
                _write(file_of[key], key, value)

    def _layouts(self, folder: Path) -> dict[str, Layout]:
        """The layout of each file: that of the base, unless a shape changes or tensors are added."""
        shapes = {key: slot.shape for key, slot in self.names.slots.items()}
        for name, group in self.names.groups.items():
            if self.changes.shapes.get(name, self.names.shapes[name]) != self._stored_shape(name, group):
                if group.pattern is not None:
                    raise NotByShardsError(f"the shape of {name} changes")
                shapes[group.keys[0]] = self.changes.shapes[name]
        added = self._places_of_added()
        layouts = {}
        for file, layout in self.files.shards.items():
            new = {key: (dtype, shape) for key, (at, dtype, shape) in added.items() if at == file}
            if not new and all(shapes[key] == slot.shape for key, slot in layout.slots.items()):
                slots = {
                    key: Slot(folder / file, slot.dtype, slot.shape, slot.start, slot.size)
                    for key, slot in layout.slots.items()
                }
                layouts[file] = Layout(layout.header, layout.metadata, slots)
                continue
            tensors = {key: (slot.dtype, shapes[key]) for key, slot in layout.slots.items()}
            layouts[file] = new_layout(folder / file, tensors | new, layout.metadata)
        return layouts

    def _stored_shape(self, name: str, group: Group) -> tuple[int, ...]:
        """The shape of a parameter in the files; converted parameters were checked to have the model's."""
        return self.names.slots[group.keys[0]].shape if group.pattern is None else self.names.shapes[name]

    def _places_of_added(self) -> dict[str, tuple[str, str, tuple[int, ...]]]:
        """Key of an added tensor -> its file, dtype, shape: those of its tied weight, else the last file's."""
        last_file, last = list(self.files.shards.items())[-1]
        dtypes = [slot.dtype for slot in last.slots.values() if slot.dtype in DTYPES]
        places = {}
        for key, name in self.added.items():
            shape = self.changes.shapes.get(name, self.names.shapes[name])
            stored = self.weights.stored(name)
            if stored is None:
                places[key] = (last_file, max(dtypes, key=dtypes.count), shape)
            else:
                slot = self.names.slots[self.names.groups[stored].keys[0]]
                places[key] = (slot.file.name, slot.dtype, shape)
        return places

    def _write_index(self, folder: Path, layouts: dict[str, Layout]) -> None:
        if self.files.index is None:
            return
        if not self.added and sum(layout.size for layout in layouts.values()) == self.files.size:
            shutil.copyfile(self.files.folder / INDEX, folder / INDEX)
            return
        weight_map = {key: file for file, layout in layouts.items() for key in layout.slots}
        total = sum(slot.size for layout in layouts.values() for slot in layout.slots.values())
        metadata: dict[str, Any] = {**self.files.index.get("metadata", {}), "total_size": total}
        write_json(folder / INDEX, {**self.files.index, "metadata": metadata, "weight_map": weight_map})


def _write(writer: TensorWriter, key: str, value: Tensor) -> None:
    """Round a merged weight to the dtype of its file, once."""
    dtype = DTYPES[writer.layout.slots[key].dtype]
    rounded = value.to("cpu", dtype)
    if not torch.isfinite(rounded).all():
        raise AdapterError(
            f"{key}: the merged weight is not finite in {str(dtype).removeprefix('torch.')}, the dtype of the base's "
            "files; export it with --to lora, or use a base in float32"
        )
    writer.write(key, rounded)
