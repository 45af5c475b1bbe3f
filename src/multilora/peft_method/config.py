"""The options of a MultiLoRA adapter, named as in LoRA where they mean the same."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from peft import PeftConfig

from multilora.errors import AdapterError
from multilora.peft_method._register import add_peft_type

# Above the side of any matrix; a total rank beyond it is a mistake, and could exhaust the memory.
MAX_TOTAL_RANK = 65_536


@dataclass
class MultiLoraConfig(PeftConfig):
    """Options of MultiLoRA (arXiv 2311.11501). The total rank of an adapted matrix is `num_branches * r`.

    Args:
        r: rank of each branch.
        num_branches: n, the number of parallel branches on each adapted matrix.
        scaling: shape of a branch's learned scale: `"vector"` (one scale per output feature) or `"scalar"`.
        lora_alpha: the constant alpha in alpha / r; None means `r`, that is a factor of 1 as in the paper. With Adam,
            `k * r` acts like a k times larger learning rate of the scales only; with k = sqrt(3 r) the update grows as
            fast as LoRA's (docs/maths.md).
        use_rslora: use alpha / sqrt(r) instead of alpha / r.
        lora_dropout: dropout probability of the branches' input during training; all branches share the mask.
        init_weights: if True, scales start at zero and B is Kaiming-uniform, so that the untrained adapter does not
            change the model. If `"lora"`, it does not either: B starts at zero as in LoRA, and the scales at one. If
            False, scales are drawn from U(-1, 1), so that it does (for tests).
        target_modules: names or a regular expression of the linear modules to adapt, or `"all-linear"`.
        target_parameters: names of parameters to adapt outside of linear modules, such as the stacked experts of a
            mixture of experts: `["experts.gate_up_proj", "experts.down_proj"]`. Each expert gets its own branches.
        exclude_modules: names or a regular expression of modules not to adapt.
        layers_to_transform: indices of the layers to adapt; None for all.
        layers_pattern: name of the module list that `layers_to_transform` indexes.
        rank_pattern: module name or regular expression -> r, to override `r`.
        alpha_pattern: module name or regular expression -> alpha, to override `lora_alpha`.
        bias: the biases of the base to train as well: `"none"`, `"all"` or `"multilora_only"`.
        modules_to_save: other modules to train fully and save with the adapter.
        trainable_token_indices: token ids whose embeddings are trained as well, or embedding name -> ids.

    Raises:
        AdapterError: options are out of range or in conflict; the message names all of them.
    """

    r: int = field(default=8, metadata={"help": "rank of each branch"})
    num_branches: int = field(default=3, metadata={"help": "number of parallel branches"})
    scaling: Literal["vector", "scalar"] = field(default="vector", metadata={"help": "shape of the learned scale"})
    lora_alpha: float | None = field(default=None, metadata={"help": "constant alpha of alpha / r; None means r"})
    use_rslora: bool = field(default=False, metadata={"help": "alpha / sqrt(r) instead of alpha / r"})
    lora_dropout: float = field(default=0.0, metadata={"help": "dropout on the branches' input"})
    init_weights: bool | Literal["lora"] = field(
        default=True, metadata={"help": "true: scales start at zero; lora: B starts at zero, and scales at one"}
    )
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "modules to adapt"})
    target_parameters: list[str] | None = field(default=None, metadata={"help": "stacked experts to adapt"})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "modules not to adapt"})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "layer indices to adapt"})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "name of the list of layers"})
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "module -> r"})
    alpha_pattern: dict[str, float] = field(default_factory=dict, metadata={"help": "module -> alpha"})
    bias: Literal["none", "all", "multilora_only"] = field(default="none", metadata={"help": "biases to train"})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "other modules to train fully"})

    trainable_token_indices: list[int] | dict[str, list[int]] | None = field(
        default=None, metadata={"help": "token ids whose embeddings are trained"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rank_pattern = {} if self.rank_pattern is None else self.rank_pattern
        self.alpha_pattern = {} if self.alpha_pattern is None else self.alpha_pattern
        self.peft_type = add_peft_type()
        problems = [*self._number_problems(), *self._name_problems(), *self._conflicts()]
        if problems:
            raise AdapterError("MultiLoraConfig: " + "; ".join(problems))
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            # A set, as in PEFT's other configs; `PeftConfig.save_pretrained` writes it as a sorted list.
            setattr(self, name, set(value) if isinstance(value, list) else value)

    def _number_problems(self) -> Iterator[str]:
        ranks = {"r": self.r, "num_branches": self.num_branches}
        alphas = {} if self.lora_alpha is None else {"lora_alpha": self.lora_alpha}
        for key, values in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
            pattern: Any = getattr(self, key)
            if isinstance(pattern, dict):
                values.update({f"{key}[{name!r}]": value for name, value in pattern.items()})
            else:
                yield f"{key} is {pattern!r}, expected a mapping from module names to numbers"
        wrong = [f"{name} is {value!r}" for name, value in ranks.items() if not _is_number(value, int) or value < 1]
        for problem in wrong:
            yield f"{problem}, expected a whole number of at least 1"
        if not wrong:
            largest = max(value for name, value in ranks.items() if name != "num_branches") * self.num_branches
            if largest > MAX_TOTAL_RANK:
                yield (
                    f"a total rank of {largest} (num_branches * r) is larger than any matrix, expected at most "
                    f"{MAX_TOTAL_RANK}"
                )
        for name, value in alphas.items():
            if not _is_number(value) or not (math.isfinite(value) and value > 0):
                yield f"{name} is {value!r}, expected a finite number above 0"
        if not _is_number(self.lora_dropout) or not 0 <= self.lora_dropout < 1:
            yield f"lora_dropout is {self.lora_dropout!r}, expected a probability in [0, 1)"
        for name, other in (("use_rslora", None), ("init_weights", "lora")):
            value = getattr(self, name)
            if not isinstance(value, bool) and (other is None or value != other):
                expected = "true or false" if other is None else f"true, false or {other!r}"
                yield f"{name} is {value!r}, expected {expected}"

    def _name_problems(self) -> Iterator[str]:
        if self.scaling not in ("vector", "scalar"):
            yield f"scaling is {self.scaling!r}, expected 'vector' or 'scalar'"
        if self.bias not in ("none", "all", "multilora_only"):
            yield f"bias is {self.bias!r}, expected 'none', 'all' or 'multilora_only'"
        for name in ("target_modules", "exclude_modules"):
            value: Any = getattr(self, name)
            if isinstance(value, str) and value:
                yield from _pattern_problems(name, [value])
            elif value is not None and not _is_list_of(value, str):
                yield f"{name} is {value!r}, expected a list of names or a regular expression"
        if self.target_modules in ([], ()) and not self.target_parameters:
            yield f"target_modules is {self.target_modules!r}, expected names, or leave it out"
        for name in ("rank_pattern", "alpha_pattern"):
            pattern: Any = getattr(self, name)
            yield from _pattern_problems(name, pattern if isinstance(pattern, dict) else [])
        for name in ("target_parameters", "modules_to_save"):
            value = getattr(self, name)
            if value is not None and not _is_list_of(value, str):
                yield f"{name} is {value!r}, expected a list of names"
        value = self.layers_to_transform
        if value is not None and not _is_list_of(value if isinstance(value, list | tuple | set) else [value], int):
            yield f"layers_to_transform is {value!r}, expected the index of a layer, from 0, or a list of them"
        value = self.layers_pattern
        if value is not None and not (isinstance(value, str) or _is_list_of(value, str)):
            yield f"layers_pattern is {value!r}, expected the name of a list of layers"
        value = self.trainable_token_indices
        lists = list(value.values()) if isinstance(value, dict) else [value]
        if value is not None and not all(_is_list_of(ids, int) for ids in lists):
            yield f"trainable_token_indices is {value!r}, expected a list of token ids, or embedding name -> ids"

    def _conflicts(self) -> Iterator[str]:
        if self.lora_dropout and self.target_parameters:
            yield "lora_dropout cannot be used with target_parameters, whose input is not known; set it to 0"
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            yield "layers_to_transform needs target_modules as a list, not as a regular expression"
        if self.layers_pattern and self.layers_to_transform is None:
            yield "layers_pattern needs layers_to_transform"

    def alpha_for(self, r: int, alpha: float | None = None) -> float:
        """The constant alpha of a module of rank `r`: its own `alpha`, else `lora_alpha`, else `r`."""
        for value in (alpha, self.lora_alpha):
            if value is not None:
                return float(value)
        return float(r)


def _is_number(value: Any, kind: Any = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_list_of(value: Any, kind: type) -> bool:
    """Whether `value` is a list of names that are not empty (`str`), or of whole numbers from 0 (`int`)."""
    return (
        isinstance(value, list | tuple | set)
        and all(isinstance(item, kind) and not isinstance(item, bool) for item in value)
        and all(item >= 0 if isinstance(item, int) else bool(item) for item in value)
    )


def _pattern_problems(name: str, patterns: Any) -> Iterator[str]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError, RecursionError, OverflowError) as error:
            yield f"{name}: {pattern!r} is not a regular expression ({error}); fix it, or give a list of names"
