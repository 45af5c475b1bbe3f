"""Merge an adapter of any PEFT method one layer at a time, with PEFT's own `merge`.

The model has an adapter with its weights, and placeholders instead of the weights of the base. To merge a layer, its
placeholders are replaced by the weights, in float32. Placeholders are NaN, so what a method computes from the base when
it is loaded (PiSSA, ...) is NaN too, and such an adapter is recognised instead of being merged wrongly.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper, TrainableTokensWrapper
from torch import Tensor, nn

import multilora.peft_method  # noqa: F401  (registers the method)
from multilora.errors import AdapterError, MultiLoraError
from multilora.export.factors import base_key
from multilora.export.merged.names import NotByShardsError
from multilora.initialise import adapter_state, read_weights
from multilora.peft_method.ties import untie_adapted_weights
from multilora.saved_adapter import SavedAdapter

# Methods that decompose the weights of the base when an adapter is loaded. A decomposition of placeholders is finite in
# some of them, so it would not be noticed.
NEEDS_BASE = {"FROD"}
# Parts of module names that PEFT adds around a module of the base.
_WRAPPERS = {"base_layer", "original_module", "token_adapter"}


def base_name(name: str) -> str:
    """The name in the base of a parameter in the adapted base."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def wrapped_modules(base: nn.Module) -> dict[str, nn.Module]:
    """The outermost modules that PEFT put around modules of the base, by name."""
    found: dict[str, nn.Module] = {}
    for name, module in base.named_modules():
        is_wrapper = isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
        if is_wrapper and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


@torch.no_grad()
def merge_module(module: Any) -> nn.Module:
    """Merge the active adapters of a wrapped module, as PEFT's `merge_and_unload` does; returns the plain module.

    Raises:
        AdapterError: its method cannot be merged, or the merged weights are not finite.
    """
    try:
        if hasattr(module, "unload_and_optionally_merge_module"):
            plain = module.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        else:
            module.merge(safe_merge=True)
            plain = module.get_base_layer()
    except MultiLoraError:
        raise
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise AdapterError(f"cannot be merged into the base: {' '.join(str(error).split())[:300]}") from error
    if any(isinstance(inner, BaseTunerLayer) for inner in plain.modules()):
        raise AdapterError("cannot be merged into the base: a module and a module inside it are both adapted")
    merged: nn.Module = plain
    return merged


def check_mergeable(model: Any) -> None:
    """Check that PEFT can merge the active adapters of a model.

    Raises:
        AdapterError: names the method.
    """
    config = model.active_peft_config
    method = str(getattr(config.peft_type, "value", config.peft_type)).lower()
    if not isinstance(getattr(model, "base_model", None), BaseTuner):
        raise AdapterError(f"method {method!r} cannot be merged into the base: it has no update of the weights")
    if getattr(config, "layer_replication", None):
        raise AdapterError(
            f"method {method!r} cannot be merged into the base: layer_replication uses its weights several times"
        )


class LayerMerger:
    """The merged weights of an adapted base, computed when they are asked for.

    Args:
        base: on the meta device, see `multilora.export.sources.base.empty_base`; it is changed
        saved: the adapter
        read: returns a weight of the base by its name in the model

    Attributes:
        shapes: the shape of each merged weight, by its name in the base. All other weights are unchanged.

    Raises:
        AdapterError: the adapter is damaged, of another base, or cannot be merged.
        NotByShardsError: it needs the weights of the base when it is loaded.
    """

    def __init__(self, base: Any, saved: SavedAdapter, read: Callable[[str], Tensor]) -> None:
        self._read = read
        names = {name for name, _ in base.named_parameters(remove_duplicate=False)}
        unchanged = _add_placeholders(base, {base_key(key) for key in read_weights(saved)})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the placeholders, and repeated when the export is verified
                model = PeftModel.from_pretrained(base, str(saved.folder), torch_device="cpu")
        except MultiLoraError:
            raise
        except Exception as error:  # methods raise anything for a base of placeholders
            raise NotByShardsError(f"its adapter cannot be loaded without the base ({error})") from error
        check_mergeable(model)
        if str(getattr(model.active_peft_config.peft_type, "value", "")) in NEEDS_BASE:
            raise NotByShardsError("its method computes a part of the update from the weights of the base")
        adapter_state(model, saved)  # PEFT only warns about weights that are missing
        self._base = model.get_base_model()
        parameters = self._parameters()
        if any(_is_placeholder(item) and item.data_ptr() not in unchanged for item in parameters.values()):
            raise NotByShardsError("loading its adapter changes the base")
        untie_adapted_weights(self._base)
        self._modules = wrapped_modules(self._base)
        self._ready: dict[str, Tensor] = {}
        self._module_of: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path, item in self._parameters().items():
            if item.dim() > 1 and _is_placeholder(item):  # untying copied it
                item.data = _nan(item.shape)
            name = base_name(path)
            if name not in names:
                continue
            outer = next((module for module in self._modules if path.startswith(f"{module}.")), None)
            if outer is not None:
                self._module_of[name] = outer
            elif not _is_placeholder(item):  # trained without a wrapper: biases, a resized vocabulary
                self._ready[name] = item.detach()
            else:
                continue
            self.shapes[name] = tuple(item.shape)
        for module_name, module in self._modules.items():
            if isinstance(module, ModulesToSaveWrapper):  # may have buffers too
                for key, value in _trained_copy(module).state_dict().items():
                    self._module_of[f"{module_name}.{key}"] = module_name
                    self.shapes[f"{module_name}.{key}"] = tuple(value.shape)

    def same(self, first: str, second: str) -> bool:
        """Whether two weights that are tied in the base are still equal."""
        if first not in self.shapes and second not in self.shapes:
            return True
        if first not in self.shapes or second not in self.shapes:
            return False
        if first in self._ready and second in self._ready:
            return torch.equal(self._ready[first], self._ready[second])
        modules = [self._modules[self._module_of[name]] for name in (first, second) if name in self._module_of]
        if len(modules) == 2 and all(isinstance(module, ModulesToSaveWrapper) for module in modules):
            weights = [_trained_copy(module).state_dict()["weight"] for module in modules]
            return torch.equal(*weights)
        return len(modules) == 2 and any(_tied_tokens(*pair) for pair in (modules, modules[::-1]))

    def _parameters(self) -> dict[str, nn.Parameter]:
        return dict(self._base.named_parameters(remove_duplicate=False))

    def merged(self, name: str) -> Tensor:
        """A merged weight in at least float32; each can be asked for once.

        Raises:
            AdapterError: its layer cannot be merged.
            NotByShardsError: the result is not finite, so something was computed from placeholders.
        """
        if name not in self._ready:
            self._merge(self._module_of[name])
        return self._ready.pop(name)

    def _merge(self, module_name: str) -> None:
        module = self._modules[module_name]
        with self._filled(module_name, module):
            try:
                plain = merge_module(module)
            except MultiLoraError as error:
                raise NotByShardsError(f"{module_name}: {error}") from error
            for key, value in plain.state_dict().items():
                name = f"{module_name}.{key}"
                if self._module_of.get(name) != module_name:
                    continue
                if not torch.isfinite(value).all():
                    raise NotByShardsError(f"{name} is not finite without the base")
                self._ready[name] = value

    @contextmanager
    def _filled(self, module_name: str, module: nn.Module) -> Iterator[None]:
        """Put weights in the places of a module's placeholders."""
        placeholders: list[tuple[nn.Parameter, Tensor]] = []
        if not isinstance(module, ModulesToSaveWrapper):  # whose trained copy does not depend on the base
            for path, item in module.named_parameters():
                name = base_name(f"{module_name}.{path}")
                if name in self._module_of and _is_placeholder(item):
                    placeholders.append((item, item.data))
                    weight = self._read(name)
                    item.data = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
        try:
            yield
        finally:
            for item, placeholder in placeholders:
                item.data = placeholder


def _add_placeholders(base: nn.Module, saved: Collection[str]) -> set[int]:
    """Replace the parameters by NaN, in place; returns the addresses of their data.

    They need no memory, except for vectors, which may be trained, and for those in `saved`, which will be loaded.
    """
    replaced: dict[int, nn.Parameter] = {}
    named = {id(item): name for name, item in base.named_parameters(remove_duplicate=False) if name in saved}
    for module in base.modules():
        for key, item in module._parameters.items():
            if item is None:
                continue
            if id(item) not in replaced:
                value = _nan(item.shape)
                if item.dim() < 2 or id(item) in named:
                    value = value.clone(memory_format=torch.contiguous_format)
                replaced[id(item)] = nn.Parameter(value, requires_grad=False)
            module._parameters[key] = replaced[id(item)]
    return {item.data_ptr() for item in replaced.values()}


def _nan(shape: torch.Size) -> Tensor:
    return torch.full((), torch.nan).expand(shape)


def _trained_copy(module: Any) -> nn.Module:
    copy: nn.Module = module.modules_to_save[module.active_adapter]
    return copy


def _tied_tokens(module: Any, other: Any) -> bool:
    """Whether both modules have the same trained tokens, of the tokens of one of them."""
    if not (isinstance(module, TrainableTokensWrapper) and isinstance(other, TrainableTokensWrapper)):
        return False
    return module.token_adapter.tied_adapter is other.token_adapter


def _is_placeholder(item: Tensor) -> bool:
    return item.numel() > 0 and bool(item.detach()[(0,) * item.dim()].isnan())
