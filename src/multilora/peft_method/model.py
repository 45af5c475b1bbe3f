"""Insert MultiLoRA layers into a model, and check that checkpoints are complete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    AuxiliaryTrainingWrapper,
    get_quantization_kwargs,
    resolve_quantization_backend,
)
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from multilora.errors import AdapterError
from multilora.peft_method.config import MultiLoraConfig
from multilora.peft_method.experts import ParamWrapper
from multilora.peft_method.layer import MultiLoraLayer, MultiLoraLinear
from multilora.peft_method.ties import untie_adapted_weights


def _pass_adapter_names(
    names: list[str], _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {**kwargs, "adapter_names": names}


class MultiLoraModel(BaseTuner):
    """A transformers or plain torch model with MultiLoRA branches on the targeted linear layers."""

    prefix = "multilora_"
    tuner_layer_cls = MultiLoraLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def _create_and_replace(
        self,
        config: MultiLoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        r = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), current_key), config.r)
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), current_key))
        # A wrapper of another parameter of the same module gets wrapped again.
        if isinstance(target, MultiLoraLayer) and getattr(target, "parameter_name", None) == parameter_name:
            target.update_layer(adapter_name, config=config, r=r, alpha=alpha)
            return
        new: nn.Module
        if parameter_name is not None:
            new = ParamWrapper(target, adapter_name, parameter_name=parameter_name, config=config, r=r, alpha=alpha)
        else:
            new = self._adapted_linear(config, adapter_name, target, current_key, r, alpha)
        if adapter_name not in self.active_adapters:
            new.requires_grad_(False)  # another adapter is not trained until it is activated
        self._replace_module(parent, target_name, new, target)

    def _adapted_linear(
        self, config: MultiLoraConfig, adapter_name: str, target: nn.Module, key: str, r: int, alpha: float | None
    ) -> MultiLoraLinear:
        inner: nn.Module = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        quantization = get_quantization_kwargs(self)
        backend = resolve_quantization_backend(inner, **quantization)
        linear = isinstance(inner, nn.Linear | Conv1D) or (backend is not None and backend.layer_type == "linear")
        if not linear:
            raise AdapterError(
                f"cannot adapt {key!r}: it is a {type(inner).__name__}, and MultiLoRA adapts linear modules "
                "(nn.Linear, transformers' Conv1D) and stacked experts (target_parameters). Name only linear modules "
                "in target_modules, or use target_modules='all-linear'. To train this module fully, list it in "
                "modules_to_save; to train the embeddings of a few tokens, use trainable_token_indices"
            )
        return MultiLoraLinear(target, adapter_name, config=config, r=r, alpha=alpha, **quantization)

    def _check_new_adapter_config(self, config: MultiLoraConfig) -> None:
        super()._check_new_adapter_config(config)
        # Only the nesting depth of a wrapper tells which parameter its branches belong to.
        parameters = set(config.target_parameters or ())
        for name, other in self.peft_config.items():
            other_parameters = set(getattr(other, "target_parameters", None) or ())
            if other is not config and parameters and other_parameters and parameters != other_parameters:
                raise AdapterError(
                    f"target_parameters is {sorted(parameters)}, but adapter {name!r} has {sorted(other_parameters)}; "
                    "all adapters of a model must name the same parameters"
                )

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's version also copies weight and device; MultiLoRA layers keep the base and place their own parameters.
        setattr(parent, child_name, new_module)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge adapters into the base as PEFT does, after untying adapted weights; they stay untied."""
        untie_adapted_weights(self.model)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> nn.Module:
        if merge:
            untie_adapted_weights(self.model)
        base: nn.Module = super()._unload_and_optionally_merge(merge, *args, **kwargs)
        return base

    @contextmanager
    def _enable_peft_forward_hooks(self, *_: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT calls this around forward and generate: passes `adapter_names` to the layers, one per row."""
        names = kwargs.pop("adapter_names", None)
        if names is None:
            yield
            return
        if self.training:
            raise AdapterError(
                "Cannot pass `adapter_names` when the model is in training mode. Call model.eval() first."
            )
        known = {name for m in self.modules() if isinstance(m, MultiLoraLayer) for name in m.multilora_A}
        unknown = sorted(set(names) - known - {"__base__"})
        if unknown:
            raise AdapterError(
                f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}; "
                f"the model has {', '.join(sorted(known))}"
            )
        beams = kwargs.get("num_beams") or 1
        repeated = [name for name in names for _ in range(beams)]
        encoder = self.model.get_encoder() if hasattr(self.model, "get_encoder") else None
        # An encoder sees each row once, a decoder once per beam. Without an encoder, `get_encoder` returns the model.
        encoder_modules = set() if encoder is None or encoder is self.model else set(encoder.modules())
        handles = [
            module.register_forward_pre_hook(
                partial(_pass_adapter_names, names if module in encoder_modules else repeated), with_kwargs=True
            )
            for module in self.modules()
            if isinstance(module, MultiLoraLayer | AuxiliaryTrainingWrapper)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        remapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        # PEFT only warns about missing keys, and an adapter without its scales has no effect.
        expected = {
            f"{name}.{part}.{adapter_name}": getattr(module, part)[adapter_name].shape
            for name, module in model.named_modules()
            if isinstance(module, MultiLoraLayer) and adapter_name in module.multilora_A
            for part in module.adapter_layer_names
        }
        missing = [key for key in expected if key not in remapped]
        if missing:
            raise AdapterError(
                f"the checkpoint of adapter {adapter_name!r} lacks {len(missing)} of {len(expected)} parameters "
                f"({_some(missing)}), without which it would be a different adapter; save it again with save_pretrained"
            )
        mismatches = [
            f"{key} is {list(remapped[key].shape)}, expected {list(shape)}"
            for key, shape in expected.items()
            if remapped[key].shape != shape
        ]
        if mismatches:
            raise AdapterError(
                f"the checkpoint of adapter {adapter_name!r} has {len(mismatches)} of {len(expected)} parameters in "
                f"another shape ({_some(mismatches)}); load it with the config and the base it was saved with"
            )
        return remapped


def _some(items: list[str]) -> str:
    return ", ".join(items[:3]) + (", ..." if len(items) > 3 else "")
