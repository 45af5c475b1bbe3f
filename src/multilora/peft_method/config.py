"""The options of a MultiLoRA adapter, named as in LoRA where they mean the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from peft import PeftConfig

from multilora.errors import AdapterError
from multilora.peft_method._register import add_peft_type


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
        init_weights: if True, scales start at zero, so that the untrained adapter does not change the model. If False,
            scales are drawn from U(-1, 1), so that it does (for tests).
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
    init_weights: bool = field(default=True, metadata={"help": "start with scales of zero, equal to the base"})
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
        self.rank_pattern, self.alpha_pattern = self.rank_pattern or {}, self.alpha_pattern or {}
        self.peft_type = add_peft_type()
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            # A set, as in PEFT's other configs; `PeftConfig.save_pretrained` writes it as a sorted list.
            setattr(self, name, set(value) if isinstance(value, list) else value)
        problems = list(self._problems())
        if problems:
            raise AdapterError("MultiLoraConfig: " + "; ".join(problems))

    def _problems(self) -> Any:
        for name in ("r", "num_branches"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                yield f"{name} is {value!r}, expected a whole number of at least 1"
        if self.scaling not in ("vector", "scalar"):
            yield f"scaling is {self.scaling!r}, expected 'vector' or 'scalar'"
        numeric_options = {"lora_dropout": self.lora_dropout, "lora_alpha": self.lora_alpha or 0}
        for name, value in numeric_options.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                yield f"{name} is {value!r}, expected a number"
                return
        if not 0 <= self.lora_dropout < 1:
            yield f"lora_dropout is {self.lora_dropout!r}, expected a probability in [0, 1)"
        if self.lora_dropout and self.target_parameters:
            yield "lora_dropout cannot be used with target_parameters, whose input is not known; set it to 0"
        if self.bias not in ("none", "all", "multilora_only"):
            yield f"bias is {self.bias!r}, expected 'none', 'all' or 'multilora_only'"
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            yield "layers_to_transform needs target_modules as a list, not as a regular expression"
        if self.layers_pattern and self.layers_to_transform is None:
            yield "layers_pattern needs layers_to_transform"
        for name, rank in self.rank_pattern.items():
            if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
                yield f"rank_pattern[{name!r}] is {rank!r}, expected a whole number of at least 1"

    def alpha_for(self, r: int, alpha: float | None = None) -> float:
        """The constant alpha of a module of rank `r`: its own `alpha`, else `lora_alpha`, else `r`."""
        for value in (alpha, self.lora_alpha):
            if value is not None:
                return float(value)
        return float(r)
