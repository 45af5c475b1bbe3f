"""A linear layer with MultiLoRA branches. The formula is in `multilora.functional`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import quantization_extra_repr, resolve_quantization_backend
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from multilora import functional
from multilora.errors import AdapterError
from multilora.peft_method import fused
from multilora.peft_method._register import in_out_features
from multilora.peft_method.config import MultiLoraConfig


class AdapterParameters(nn.ParameterDict):
    """Adapter name -> parameter. A parameter is read by calling the module, so that module hooks see it: accelerate's
    offloading, for example, loads the parameters of a module when it is called."""

    def __call__(self, adapter_name: str) -> Tensor:
        """The parameter of an adapter."""
        parameter: Tensor = nn.Module.__call__(self, adapter_name)
        return parameter

    def forward(self, adapter_name: str) -> Tensor:
        """See `__call__`."""
        parameter: Tensor = self[adapter_name]
        return parameter


class MultiLoraLayer(BaseTunerLayer):
    """The parameters of all adapters on one matrix or stack of matrices, and the weight update they define.

    multilora_A [n*r, d_in], multilora_B [d_out, n*r], multilora_scale [d_out, n] or [n], with a leading axis for a
    stack; see `multilora.functional`. If `transposed`, the base weight is stored as [..., d_in, d_out].
    """

    if TYPE_CHECKING:  # inherited from PEFT, which mypy does not follow
        active_adapters: list[str]
        get_base_layer: Callable[[], nn.Module]
        get_base_weight: Callable[[], Tensor]
        set_base_weight: Callable[[Tensor], None]

    adapter_layer_names = ("multilora_A", "multilora_B", "multilora_scale")
    other_param_names = ("r", "num_branches", "scaling_constant", "multilora_dropout")

    def __init__(self, base_layer: nn.Module, **quantization: Any) -> None:
        self.base_layer = base_layer
        self.r: dict[str, int] = {}
        self.num_branches: dict[str, int] = {}
        self.scaling_constant: dict[str, float] = {}
        self.multilora_dropout = nn.ModuleDict({})
        self.multilora_A = AdapterParameters({})
        self.multilora_B = AdapterParameters({})
        self.multilora_scale = AdapterParameters({})
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

        inner = self.get_base_layer()
        self.quantization_backend = resolve_quantization_backend(inner, **quantization)
        self.stack, self.in_features, self.out_features, self.transposed = self._base_shape(inner)

    def _base_shape(self, inner: nn.Module) -> tuple[tuple[int, ...], int, int, bool]:
        """(shape of the stack, () for one matrix; d_in; d_out; transposed)."""
        d_in, d_out = in_out_features(inner)
        return (), d_in, d_out, isinstance(inner, Conv1D)

    def update_layer(self, adapter_name: str, *, config: MultiLoraConfig, r: int, alpha: float | None) -> None:
        """Add the branches of a new adapter; `r` and `alpha` are the values for this module, after the patterns."""
        n = config.num_branches
        self.r[adapter_name] = r
        self.num_branches[adapter_name] = n
        self.scaling_constant[adapter_name] = functional.scaling_constant(
            config.alpha_for(r, alpha), r, rank_stabilized=config.use_rslora
        )
        dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout > 0 else nn.Identity()
        # New modules are in training mode; use the mode of the base layer.
        self.multilora_dropout[adapter_name] = dropout.train(self.get_base_layer().training)
        self.multilora_A[adapter_name] = nn.Parameter(torch.empty(*self.stack, n * r, self.in_features))
        self.multilora_B[adapter_name] = nn.Parameter(torch.empty(*self.stack, self.out_features, n * r))
        if config.scaling == "vector":
            scale_shape: tuple[int, ...] = (*self.stack, self.out_features, n)
        else:
            scale_shape = (*self.stack, 1, n) if self.stack else (n,)
        self.multilora_scale[adapter_name] = nn.Parameter(torch.empty(scale_shape))
        self.reset_parameters(adapter_name, init_weights=config.init_weights)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def reset_parameters(self, adapter_name: str, *, init_weights: bool | Literal["lora"] = True) -> None:
        """Initialise the adapter's parameters again; see `MultiLoraConfig.init_weights`."""
        A, B, scale = (getattr(self, name)[adapter_name] for name in self.adapter_layer_names)
        functional.init_branches_(A, B, scale, self.num_branches[adapter_name])
        if init_weights == "lora":
            nn.init.zeros_(B)
            nn.init.ones_(scale)
        elif not init_weights:
            nn.init.uniform_(scale, -1.0, 1.0)

    def branches(self, adapter_name: str) -> tuple[Tensor, Tensor, Tensor, float]:
        """(A, B, scale, c) of an adapter, as `multilora.functional` takes them."""
        parts = self.multilora_A(adapter_name), self.multilora_B(adapter_name), self.multilora_scale(adapter_name)
        return *parts, self.scaling_constant[adapter_name]

    def effective_factors(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """(A [..., n*r, d_in], B_eff [..., d_out, n*r]): the equivalent LoRA of rank n*r with a scaling of 1.

        They have the parameters' dtype, but at least float32.
        """
        A, B, scale, c = self.branches(adapter_name)
        dtype = torch.promote_types(A.dtype, torch.float32)
        return A.to(dtype), functional.effective_up_projection(B.to(dtype), scale.to(dtype), c)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Delta W in the layout of the base weight: [..., d_out, d_in], or its transpose if `transposed`.

        Raises:
            AdapterError: this layer has no adapter of that name.
        """
        if adapter not in self.multilora_A:
            raise AdapterError(f"no adapter {adapter!r} on this layer; it has {sorted(self.multilora_A)}")
        delta = functional.delta_weight(*self.branches(adapter))
        return delta.mT if self.transposed else delta

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters' updates to the base weight.

        Args:
            safe_merge: check that the merged weight is finite before writing it.
            adapter_names: the adapters to merge; by default, the active ones.

        Raises:
            AdapterError: `safe_merge` found a non-finite value, or the quantised base does not support merging; the
                base weight of this layer is unchanged.
        """
        backend = self.quantization_backend
        if backend is not None and not backend.supports_merge:
            raise AdapterError(
                f"merging into a {backend.backend_name} layer is not supported; export the adapter as a plain LoRA"
            )
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.multilora_A]
        if safe_merge:  # check all adapters before writing the first
            for name in names:
                if not torch.isfinite(self._shifted_base_weight(name, +1)).all():
                    raise AdapterError(
                        f"NaNs detected in the merged weights. The adapter {name} seems to be broken; "
                        "the base weight of this layer is unchanged (unmerge_adapter undoes the layers before it)"
                    )
        for name in names:
            self.set_base_weight(self._shifted_base_weight(name, +1))
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Subtract all merged adapters from the base weight."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            if name in self.multilora_A:
                self.set_base_weight(self._shifted_base_weight(name, -1))

    @torch.no_grad()
    def _shifted_base_weight(self, adapter_name: str, sign: int) -> Tensor:
        base = self.get_base_weight()
        # Add in at least float32 and round once, so that a bfloat16 base gets the nearest merged weight.
        delta = self.get_delta_weight(adapter_name).to(base.device)
        dtype = torch.promote_types(base.dtype, delta.dtype)
        return (base.to(dtype) + sign * delta.to(dtype)).to(base.dtype)


class MultiLoraLinear(nn.Module, MultiLoraLayer):
    """A MultiLoRA-adapted `nn.Linear`, transformers `Conv1D`, or quantised linear."""

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        *,
        config: MultiLoraConfig,
        r: int,
        alpha: float | None,
        **quantization: Any,
    ) -> None:
        super().__init__()
        MultiLoraLayer.__init__(self, base_layer, **quantization)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config=config, r=r, alpha=alpha)

    def forward(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        """x [..., d_in] -> [..., d_out], the base's output plus the updates of all active adapters.

        `adapter_names` selects one adapter per row of the batch at inference (`"__base__"` for none).

        Raises:
            AdapterError: the length of `adapter_names` is not the batch size, or adapters are merged.
        """
        if self.disable_adapters and self.merged:
            self.unmerge()
        if adapter_names is not None and not self.disable_adapters:
            return self._mixed_batch_forward(x, adapter_names, *args, **kwargs)
        names = [name for name in self.active_adapters if name in self.multilora_A]
        if self.disable_adapters or self.merged or not names:
            return cast(Tensor, self.base_layer(x, *args, **kwargs))
        base_layer = self.base_layer
        cast_x = _autocast(x)  # once, for the base and the branches
        weight = fused.frozen_weight(base_layer, cast_x) if fused.applies(x) and not (args or kwargs) else None
        if weight is not None:
            first = names.pop(0)
            bias = cast("Tensor | None", base_layer.bias)
            branches = self.branches(first)
            result = fused.linear_with_branches(cast_x, weight, bias, *branches, dropout=self._dropout(first))
        else:
            self._check_base_has_backward(x)
            result = base_layer(x, *args, **kwargs)
        for name in names:
            result = self._add_branches(result, cast_x, name)
        return result

    def _check_base_has_backward(self, x: Tensor) -> None:
        # bitsandbytes repacks a 4-bit layer at its first call in eval mode on the CPU. The repacked layer has no
        # backward, so the gradient of x would silently lack the base's contribution.
        state = getattr(getattr(self.base_layer, "weight", None), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False) and x.requires_grad and torch.is_grad_enabled():
            raise AdapterError(
                "this 4-bit base was evaluated on the CPU, for which bitsandbytes repacks it into a form without "
                "backward; reload the base to train, and evaluate afterwards"
            )

    def _dropout(self, name: str) -> float:
        """The current dropout probability: 0 outside training."""
        dropout = self.multilora_dropout[name]
        return dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0

    def _add_branches(self, result: Tensor, x: Tensor, name: str) -> Tensor:
        A, B, scale, c = self.branches(name)
        same_form = result.dtype == x.dtype and result.shape == (*x.shape[:-1], self.out_features)
        if fused.applies(x) and same_form:
            return fused.add_branches(result, x, A, B, scale, c, dropout=self._dropout(name))
        up = functional.effective_up_projection(B, scale, c)
        return result + functional.low_rank_forward(self.multilora_dropout[name](x), A, up).to(result.dtype)

    def _mixed_batch_forward(self, x: Tensor, adapter_names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        # The messages of these errors are PEFT's.
        if len(adapter_names) != len(x):
            raise AdapterError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(x)} respectively."
            )
        if self.merged:
            raise AdapterError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )
        result: Tensor = self.base_layer(x, *args, **kwargs)
        for name in dict.fromkeys(adapter_names):
            if name in self.multilora_A:
                rows = [row for row, row_adapter in enumerate(adapter_names) if row_adapter == name]
                A, up = self.effective_factors(name)
                result[rows] += functional.low_rank_forward(x[rows], A, up).to(result.dtype)
        return result

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """True: `peft.convert_to_lora` works, but `multilora.export_lora` is exact and faster."""
        return True

    def extra_repr(self) -> str:
        """Show the quantisation of the base, if any."""
        text: str = quantization_extra_repr(self)
        return text

    def __repr__(self) -> str:
        return "multilora." + super().__repr__()


# Asked once: torch.compile cannot trace the question.
_AUTOCAST_DEVICES = frozenset(name for name in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(name))


def _autocast(x: Tensor) -> Tensor:
    """x in the autocast dtype if autocast is enabled; like autocast, this does not cast float64."""
    device = x.device.type
    if x.dtype == torch.float64 or device not in _AUTOCAST_DEVICES or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))
