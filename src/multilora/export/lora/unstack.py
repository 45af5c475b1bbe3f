"""The update of stacked experts as one update per expert and projection.

transformers keeps all experts of a layer in two parameters, `experts.gate_up_proj` and `experts.down_proj`, and PEFT
adapts these. Published checkpoints have a matrix per expert and projection (`experts.3.gate_proj.weight`), and so do
the LoRA adapters that vLLM and llama.cpp's converter read. The names come from transformers' own table of how it reads
the checkpoints of each architecture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter, WeightRenaming

from multilora.errors import AdapterError
from multilora.export.factors import AdapterFactors, ExpertFactors, Factors

LITERAL = re.compile(r"[\w.]+")  # the other renamings are of whole models, and do not concern experts


@dataclass(frozen=True)
class _Stack:
    """How a checkpoint names the matrices of a stack.

    parameter: end of the parameter's name in the model (`mlp.experts.gate_up_proj`)
    projections: end of the name of each projection, `*` for the expert (`mlp.experts.*.gate_proj`)
    """

    parameter: str
    projections: list[str]


def unstack(factors: AdapterFactors) -> AdapterFactors:
    """Replace the updates of stacked experts by updates of single matrices, exactly.

    A layer in which only one of the two parameters is adapted gets zeros for the other one, because the consumers need
    all projections of a layer.

    Args:
        factors: unchanged

    Returns:
        factors without `experts`. Their `modules` are named as in the base's checkpoint, for example
        `model.layers.0.mlp.experts.3.gate_proj`.

    Raises:
        AdapterError: the checkpoints of this architecture have no matrix per expert.
    """
    if not factors.experts:
        return factors
    model_type = factors.config.model_type
    stacks, renamings = _checkpoint_names(model_type)
    complete = _with_missing(factors.experts, stacks, model_type)
    modules = dict(factors.modules)
    for pattern, projection in _projections(complete, stacks, model_type):
        for checkpoint, model in renamings:
            pattern = pattern.replace(model, checkpoint)
        for expert, (down, up) in enumerate(zip(projection.down, projection.up, strict=True)):
            modules[pattern.replace("*", str(expert))] = Factors(down.contiguous(), up.contiguous())
    return replace(factors, modules=modules, experts={})


def split_projections(factors: AdapterFactors) -> dict[str, ExpertFactors]:
    """Return the updates of the adapted stacks by projection, such as `model.layers.0.mlp.experts.gate_proj`.

    Raises:
        AdapterError: as for `unstack`.
    """
    if not factors.experts:
        return {}
    model_type = factors.config.model_type
    stacks, _ = _checkpoint_names(model_type)
    return {name.replace(".*", ""): item for name, item in _projections(factors.experts, stacks, model_type)}


def _projections(
    experts: dict[str, ExpertFactors], stacks: list[_Stack], model_type: str
) -> Iterator[tuple[str, ExpertFactors]]:
    """Names with `*` for the expert, and the updates of all experts."""
    for name, factors in experts.items():
        stack = _stack_of(name, stacks, model_type)
        prefix = name.removesuffix(stack.parameter)
        ups = factors.up.chunk(len(stack.projections), dim=1)
        for projection, up in zip(stack.projections, ups, strict=True):
            yield prefix + projection, ExpertFactors(factors.down, up.contiguous())


def _checkpoint_names(model_type: str) -> tuple[list[_Stack], list[tuple[str, str]]]:
    """The stacks of an architecture, and its renamings of modules as (name in the checkpoint, name in the model)."""
    stacks, renamings = [], []
    for entry in get_checkpoint_conversion_mapping(model_type) or []:
        if isinstance(entry, WeightConverter):
            operations = [type(operation) for operation in entry.operations]
            if operations not in ([MergeModulelist], [MergeModulelist, Concatenate]):
                continue
            (parameter,) = entry.target_patterns
            stacks.append(_Stack(parameter, [source.removesuffix(".weight") for source in entry.source_patterns]))
        elif isinstance(entry, WeightRenaming):
            (checkpoint,), (model,) = entry.source_patterns, entry.target_patterns
            if LITERAL.fullmatch(checkpoint) and LITERAL.fullmatch(model):
                renamings.append((checkpoint, model))
    return stacks, renamings


def _stack_of(name: str, stacks: list[_Stack], model_type: str) -> _Stack:
    for stack in stacks:
        if name.endswith(stack.parameter):
            return stack
    raise AdapterError(
        f"{name}: checkpoints of `{model_type}` have no matrix per expert, so its update cannot be written as one LoRA "
        "per expert; export it in PEFT's layout, or with --to merged"
    )


def _with_missing(experts: dict[str, ExpertFactors], stacks: list[_Stack], model_type: str) -> dict[str, ExpertFactors]:
    """Add zeros for the stacks of an adapted layer that are not adapted themselves."""
    complete = dict(experts)
    for name, factors in experts.items():
        stack = _stack_of(name, stacks, model_type)
        for other in stacks:
            partner = name.removesuffix(stack.parameter) + other.parameter
            if other is stack or partner in complete:
                continue
            # One maps d_model to d_inner, the other d_inner to d_model, once per projection.
            count, d_out, rank = factors.up.shape
            d_in = factors.down.shape[2]
            down = torch.zeros(count, rank, d_out // len(stack.projections))
            complete[partner] = ExpertFactors(down, torch.zeros(count, len(other.projections) * d_in, rank))
    return complete
