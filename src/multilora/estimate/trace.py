"""Run a training step on fake tensors, which have shapes but no data, and count its memory and operations."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from multilora.data.tokenize import row_length
from multilora.errors import InputError
from multilora.loss.linear_cross_entropy import linear_cross_entropy
from multilora.loss.output_head import base_of
from multilora.methods import FULL
from multilora.modeling import attach, load_model_config
from multilora.recipe import Recipe
from multilora.training.prepare import recipe_arguments

# Products that torch's table of operations leaves out: in place, of groups of experts, and attention on a CPU.
_MORE_OPERATIONS: dict[Any, Callable[..., int]] = {
    torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm],
    torch.ops.aten.baddbmm_: flop_registry[torch.ops.aten.baddbmm],
    # [tokens, d_in] and [experts, d_in, d_out], or the gradient of the latter from [d_in, tokens] and [tokens, d_out]
    torch.ops.aten._grouped_mm: lambda left, right, *_, **__: 2 * left.numel() * right.shape[-1],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: int(
        sdpa_flop_count(query.shape, key.shape, value.shape)  # type: ignore[no-untyped-call]
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, query, key, value, *_, **__: int(
        sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)  # type: ignore[no-untyped-call]
    ),
}


@dataclass(frozen=True)
class Trace:
    """A micro-batch of one process: one forward and one backward pass.

    working_bytes: most bytes in use at once besides weights, their gradients and the optimizer's state
    operations: floating point operations of the matrix products and of attention; an addition and a multiplication
        count as two
    linear_parameters: frozen weights of linear layers, which quantization shrinks; the output head is not one of them
    matrix_parameters: weights of the largest of these layers
    layer_parameters: frozen weights of the largest block of layers, gathered as a whole when weights are sharded
    """

    rows: int
    tokens: int
    frozen_parameters: int
    trained_parameters: int
    linear_parameters: int
    matrix_parameters: int
    layer_parameters: int
    working_bytes: int
    operations: int


def traces(recipe: Recipe) -> tuple[Trace, Trace]:
    """Trace a micro-batch of `training.per_device_train_batch_size` full rows, all of whose tokens are trained on.

    If the model has many equal blocks of layers, two and four of them are traced, and the rest is extrapolated.

    Args:
        recipe: its base's config is read, not its weights; its data is not read

    Returns:
        (with activations kept for the backward pass, with those of each block recomputed there)

    Raises:
        InputError: the config cannot be loaded, or the model cannot be traced.
    """
    from transformers import AutoModelForCausalLM

    arguments = recipe_arguments(recipe)
    config = load_model_config(recipe.model)
    full = recipe.adapter.method == FULL
    dtype = torch.float32 if full else getattr(torch, recipe.model.dtype)
    rows, tokens = arguments.per_device_train_batch_size, row_length(recipe.data.max_length, config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=dtype,
            # Other kernels need their package and a GPU; their memory is that of torch's attention, the default.
            attn_implementation="eager" if recipe.model.attn_implementation == "eager" else None,
            trust_remote_code=recipe.model.trust_remote_code,
        )
        head = model.get_output_embeddings()
        linear = [item.weight.numel() for item in model.modules() if isinstance(item, nn.Linear) and item is not head]
        blocks = _blocks(model)
        layer = max(_size(block) for block in blocks or [model])
        model = attach(model, recipe.adapter, seed=0).train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        frozen = _size(model) - sum(parameter.numel() for parameter in trained)
        for parameter in trained:  # counted with the weights, not as working memory
            parameter.grad = torch.zeros_like(parameter)
        depths = (2, 4) if len(blocks) > 4 and len(set(map(_shapes, blocks))) == 1 else (len(blocks),)
        counts: list[list[_Counter]] = [[], []]
        every = list(blocks)
        try:
            with torch.autocast("cpu", torch.bfloat16, enabled=bool(arguments.bf16)):
                for recomputed, results in enumerate(counts):
                    if recomputed:
                        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
                        base_of(model).enable_input_require_grads()
                    for depth in depths:
                        blocks._modules = {str(index): block for index, block in enumerate(every[:depth])}
                        results.append(_Counter())
                        with results[-1]:
                            _step(model, rows, tokens)
        except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
            raise InputError(
                f"{recipe.model.name_or_path}: cannot be traced without data "
                f"({' '.join(str(error).split())[:300]}); run `multilora plan` on a machine that holds the model"
            ) from error

    def result(found: Sequence[_Counter]) -> Trace:
        return Trace(
            rows=rows,
            tokens=tokens,
            frozen_parameters=frozen,
            trained_parameters=sum(parameter.numel() for parameter in trained),
            linear_parameters=sum(linear),
            matrix_parameters=max(linear, default=0),
            layer_parameters=layer,
            working_bytes=_at_depth(len(every), depths, [count.peak for count in found]),
            operations=_at_depth(len(every), depths, [count.operations for count in found]),
        )

    return result(counts[0]), result(counts[1])


def _at_depth(depth: int, depths: Sequence[int], values: Sequence[int]) -> int:
    """A value at `depth`: the last one, or on the line through two."""
    if len(depths) == 1:
        return values[0]
    slope = (values[1] - values[0]) / (depths[1] - depths[0])
    return round(values[1] + slope * (depth - depths[1]))


def _blocks(model: nn.Module) -> nn.ModuleList:
    """The list of the model's layers: the largest list of modules; empty if there is none."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=_size, default=nn.ModuleList())


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _shapes(block: nn.Module) -> tuple[tuple[str, tuple[int, ...], bool], ...]:
    return tuple((name, tuple(item.shape), item.requires_grad) for name, item in block.named_parameters())


def _step(model: Any, rows: int, tokens: int) -> None:
    """A forward pass, the loss of every token, and a backward pass, as in training."""
    ids = torch.zeros(rows, tokens, dtype=torch.long)
    base = base_of(model)
    hidden = base.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    head = base.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if weight is None:
        raise TypeError(f"its output head is a {type(head).__name__}, expected a linear layer")
    bias = getattr(head, "bias", None)
    losses = linear_cross_entropy(hidden.flatten(0, 1), weight, bias, ids.flatten())
    torch.autograd.backward(losses.mean())


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations, and the bytes of the tensors that are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self.operations = self._alive = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        count = _operations_of(func)
        if count is not None:
            self.operations += int(count(*args, **(kwargs or {}), out_val=result))
        inputs = {item.untyped_storage()._cdata for item in tree_leaves(args) if isinstance(item, Tensor)}
        for item in tree_leaves(result):
            if isinstance(item, Tensor):
                self._add(item, inputs)
        return result

    def _add(self, tensor: Tensor, inputs: set[int]) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in inputs or key in self._known:  # a view, or changed in place
            return
        size = storage.nbytes()
        self._known.add(key)
        self._alive += size
        self.peak = max(self.peak, self._alive)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._alive -= size


def _operations_of(func: Any) -> Callable[..., int] | None:
    packet = getattr(func, "overloadpacket", None)
    found: Callable[..., int] | None = _MORE_OPERATIONS.get(packet) or flop_registry.get(packet)
    return found
