"""MultiLoRA on a parameter outside of a linear module: the stacked experts of a mixture of experts.

MoE models keep all experts of a layer in one parameter, [experts, d_out, d_in], and each has its own code for the
products. So the parameter is replaced by W + B_eff A during the forward, whatever the module computes with it. This has
two drawbacks. A second copy of the stack is kept until the backward. And the sum is rounded to the stack's dtype: over
a bfloat16 stack, updates far below the rounding error of W (scales near zero, early in training) have little effect on
the forward. The gradients are not affected by this rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from multilora.errors import AdapterError
from multilora.peft_method.config import MultiLoraConfig
from multilora.peft_method.layer import MultiLoraLayer


class ParamWrapper(nn.Module, MultiLoraLayer):
    """Wraps a module to adapt one of its parameters, as named in `MultiLoraConfig.target_parameters`.

    To adapt several parameters of a module, wrappers are nested: `base_layer` may be another wrapper. PEFT looks for
    wrappers by this class name when another adapter is added.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        *,
        parameter_name: str,
        config: MultiLoraConfig,
        r: int,
        alpha: float | None,
    ) -> None:
        super().__init__()
        self.parameter_name = parameter_name
        MultiLoraLayer.__init__(self, base_layer)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config=config, r=r, alpha=alpha)

    def _base_shape(self, inner: nn.Module) -> tuple[tuple[int, ...], int, int, bool]:
        weight = self.get_base_weight()
        shape = tuple(getattr(weight, "ds_shape", weight.shape))  # under DeepSpeed ZeRO-3, `weight` is a partition
        if len(shape) not in (2, 3) or not weight.dtype.is_floating_point:
            raise AdapterError(
                f"cannot adapt the parameter {self.parameter_name!r} of {type(inner).__name__}: it is {weight.dtype} "
                f"of shape {list(shape)}, expected a floating-point matrix or stack of matrices; leave it out of "
                "target_parameters"
            )
        # transformers sets `is_transposed` for stacks of [experts, d_in, d_out]
        transposed = len(shape) == 3 and bool(getattr(inner, "is_transposed", False))
        d_out, d_in = (shape[-1], shape[-2]) if transposed else (shape[-2], shape[-1])
        return shape[:-2], d_in, d_out, transposed

    def full_name(self, module_name: str) -> str:
        """The name of the adapted parameter in the base model, from the wrapper's module name."""
        parts = [part for part in module_name.split(".") if part != "base_layer"]
        return ".".join([*parts, self.parameter_name])

    def get_base_weight(self) -> Tensor:
        """The adapted parameter."""
        weight: Tensor = getattr(self.get_base_layer(), self.parameter_name)
        return weight

    def set_base_weight(self, weight: Tensor) -> None:
        """Replace the values of the adapted parameter."""
        parameter = self.get_base_weight()
        parameter.data = weight

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT's version needs a parameter called `weight`.
        weight = self.get_base_weight()
        for part in self.adapter_layer_names:
            parameters = getattr(self, part)
            if adapter_name in parameters and parameters[adapter_name].device.type != "meta":
                parameters[adapter_name] = parameters[adapter_name].to(device or weight.device, weight.dtype)

    def forward(self, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Any:
        """The module's forward with W + Delta W as the parameter.

        Raises:
            AdapterError: `adapter_names` is set; a forward uses the same experts for all rows.
        """
        if adapter_names is not None:
            raise AdapterError(
                f"adapter_names cannot be used with target_parameters (all rows of a batch use the same "
                f"{self.parameter_name!r}); run one batch per adapter"
            )
        if self.disable_adapters and self.merged:
            self.unmerge()
        names = [name for name in self.active_adapters if name in self.multilora_A]
        if self.disable_adapters or self.merged or not names:
            return self.base_layer(*args, **kwargs)
        weight = self.get_base_weight()
        # Without autocast, so that the parameter keeps its dtype.
        with torch.autocast(weight.device.type, enabled=False):
            for name in names:
                weight = self._add_update(weight, name)
        path = self.parameter_name
        module = self.base_layer
        while isinstance(module, ParamWrapper):
            module, path = module.base_layer, f"base_layer.{path}"
        return functional_call(self.base_layer, {path: weight}, args, kwargs)

    def _add_update(self, weight: Tensor, name: str) -> Tensor:
        A, up = (factor.to(weight.dtype) for factor in self.effective_factors(name))
        factors = (A.mT, up.mT) if self.transposed else (up, A)
        return torch.baddbmm(weight, *factors) if self.stack else torch.addmm(weight, *factors)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The module without its wrappers; called by PEFT's `unload` and `merge_and_unload`."""
        module: nn.Module = self
        while isinstance(module, ParamWrapper):
            if merge:
                module.merge(safe_merge=safe_merge, adapter_names=adapter_names)
            module = module.base_layer
        return module

    def extra_repr(self) -> str:
        """Show the name of the parameter."""
        return f"parameter_name={self.parameter_name!r}"

    def __repr__(self) -> str:
        return "multilora." + super().__repr__()
