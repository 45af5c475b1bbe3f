"""Updates of LoRA and MultiLoRA adapters, as factors: from the file one module at a time, or from a loaded adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from torch import Tensor

from multilora import functional
from multilora.analysis.stored_weights import Weights
from multilora.analysis.update import Branches, Update
from multilora.errors import AdapterError
from multilora.export.factors import AdapterFactors, base_key
from multilora.export.merged.tensor_files import Slot, read_layout
from multilora.initialise import lora_scaling
from multilora.peft_method import MultiLoraConfig
from multilora.saved_adapter import UNCHANGED_BASE, WEIGHTS_FILES, SavedAdapter, lora_variant

_LORA = ("lora_A.weight", "lora_B.weight")
_MULTILORA = ("multilora_A", "multilora_B", "multilora_scale")
_NUMBERS = ("r", "num_branches", "lora_alpha", "rank_pattern", "alpha_pattern")


def is_low_rank(saved: SavedAdapter) -> bool:
    """Whether the update of an adapter is a product of two factors in its files."""
    if saved.method == "multilora":
        return True
    if saved.method != "lora" or lora_variant(saved):
        return False
    return saved.config.get("init_lora_weights") in UNCHANGED_BASE


class FactorFile:
    """A LoRA or MultiLoRA on disk, of which one module is in memory at a time. The base is not needed.

    Args:
        saved: of method lora or multilora
        weights: of the base, if it is at hand
        device: of the updates

    Raises:
        NotStreamableError: it adapts an embedding, a stack of experts or single tokens, or is no safetensors file.
        AdapterError: a tensor is missing, or has another shape than the config says.
        InputError: the file is damaged.
    """

    def __init__(self, saved: SavedAdapter, weights: Weights | None, device: torch.device) -> None:
        self.label, self.method, self.weights = saved.path, saved.method, weights
        self._config, self._device = saved.config, device
        file = saved.folder / WEIGHTS_FILES[0]
        if not file.is_file() or saved.config.get("target_parameters"):
            raise NotStreamableError
        parts = _MULTILORA if saved.method == "multilora" else _LORA
        self._modules: dict[str, dict[str, Slot]] = {}
        for key, slot in read_layout(file).slots.items():
            name, part = _split(base_key(key), parts)
            if part is None and ("lora_" in key or "trainable_tokens" in key):
                raise NotStreamableError
            if part is not None:
                if len(slot.shape) != 2 and part != "multilora_scale":
                    raise NotStreamableError
                self._modules.setdefault(name, {})[part] = slot
        self._parts = parts
        self._check(file)
        self.names = sorted(self._modules, key=_natural)
        if weights is not None:  # else the order of the model is not known
            order = {name: number for number, (name, _) in enumerate(weights.model.named_modules())}
            self.names.sort(key=lambda name: order.get(name, len(order)))

    def read(self, name: str) -> list[Update]:
        """See `multilora.analysis.sources.UpdateSource`."""
        slots = self._modules[name]
        A, B, *scale = (slots[part].read().to(self._device) for part in self._parts)
        dtype = torch.promote_types(A.dtype, torch.float32)
        A, B, scale = A.to(dtype), B.to(dtype), [item.to(dtype) for item in scale]
        branches = None
        if scale:
            branches = Branches(scale[0].shape[-1], scale[0])
            B = functional.effective_up_projection(B, scale[0], self._constant(name, A.shape[0] // branches.count))
        else:
            B = B * lora_scaling(self._config, name)[0]
        return [Update(name, up=B, down=A, base=reader(self.weights, name, self._device), branches=branches)]

    def _check(self, file: Path) -> None:
        """Check that the file has all factors, in the shapes that the config says."""
        if not self._modules:
            raise AdapterError(f"{file}: has no factors of a {self.method} adapter; restore the file, or save it again")
        branches = 1
        if self.method == "multilora":
            config = MultiLoraConfig(**{key: self._config[key] for key in _NUMBERS if key in self._config})
            branches = config.num_branches
        problems, ranks = [], self._config.get("rank_pattern") or {}
        for name, found in self._modules.items():
            missing = [part for part in self._parts if part not in found]
            if missing:
                problems.append(f"{name} has no {', '.join(missing)}")
                continue
            rank = branches * ranks.get(get_pattern_key(ranks.keys(), name), self._config.get("r", 8))
            A, B, *scale = (found[part].shape for part in self._parts)
            if A[0] != rank or B[1] != rank or (scale and list(scale[0]) not in ([B[0], branches], [branches])):
                shapes = " and ".join(str(list(found[part].shape)) for part in self._parts)
                problems.append(f"{name} has factors of {shapes}, expected a total rank of {rank} by its config")
        if problems:
            more = f" (and {len(problems) - 1} more modules)" if len(problems) > 1 else ""
            raise AdapterError(f"{file}: {problems[0]}{more}; restore the file, or save the adapter again")

    def _constant(self, name: str, r: int) -> float:
        """The constant of a MultiLoRA module of rank r, as in `MultiLoraModel`."""
        patterns = self._config.get("alpha_pattern") or {}
        alpha = patterns.get(get_pattern_key(patterns.keys(), name), self._config.get("lora_alpha"))
        return functional.scaling_constant(
            float(r if alpha is None else alpha), r, rank_stabilized=bool(self._config.get("use_rslora"))
        )


class NotStreamableError(Exception):
    """The factors of this adapter cannot be read from its file one module at a time."""


class LoadedFactors:
    """The factors of an adapter in memory.

    Args:
        label: of the adapter
        method: lora or multilora
        factors: of the adapter; trained tokens and modules trained in full are not part of the analysis
        weights: of the base, if it is at hand
        device: of the updates
    """

    def __init__(
        self, label: str, method: str, factors: AdapterFactors, weights: Weights | None, device: torch.device
    ) -> None:
        self.label, self.method, self.weights = label, method, weights
        self._factors, self._device = factors, device
        self._items = dict(factors.matrices())
        self.names = [*self._items, *factors.tokens]

    def read(self, name: str) -> list[Update]:
        """See `multilora.analysis.sources.UpdateSource`."""
        if name in self._factors.tokens:
            return [self._token_rows(name)]
        item = self._items[name]
        up, down = item.up.to(self._device), item.down.to(self._device)
        base = reader(self.weights, name, self._device)
        if name in self._factors.embeddings:  # (up @ down)^T is added to the rows
            up, down = down.mT, up.mT
        if up.dim() == 2:
            return [Update(name, up=up, down=down, base=base)]
        return list(_expert_updates(name, up, down, base))

    def _token_rows(self, name: str) -> Update:
        if self.weights is None:
            raise AdapterError(f"{self.label}: trained rows of {name} need the base; give it with --base")
        tokens = self._factors.tokens[name]
        before = self.weights.matrix(name).to(self._device)
        change = torch.zeros(before.shape, dtype=torch.float64, device=self._device)
        rows = tokens.rows.to(self._device).double()
        change[tokens.ids] = rows - before[tokens.ids].double()
        return Update(name, dense=change, base=lambda: before)


def _expert_updates(name: str, up: Tensor, down: Tensor, base: Callable[[], Tensor] | None) -> Iterator[Update]:
    for index in range(up.shape[0]):
        expert_base = None if base is None else (lambda i=index: base()[i])
        yield Update(f"{name}[{index}]", up=up[index], down=down[index], base=expert_base)


def reader(weights: Weights | None, name: str, device: torch.device) -> Callable[[], Tensor] | None:
    """A function that reads the base's weight; None without the base."""
    return None if weights is None else lambda: weights.matrix(name).to(device)


def _split(key: str, parts: tuple[str, ...]) -> tuple[str, str | None]:
    for part in parts:
        if key.endswith(f".{part}"):
            return key.removesuffix(f".{part}"), part
    return key, None


def _natural(name: str) -> list[Any]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]
