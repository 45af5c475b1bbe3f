"""`torch_compile` for training: compile a model's repeated blocks in place.

transformers compiles the whole model, including the output head. Here the model stays a plain module, so that the
chunked loss, the hooks of FSDP2 and DeepSpeed, and saving work as usual. All blocks share the code of the first one.
"""

from __future__ import annotations

from torch import nn

from multilora.errors import InputError


def compile_blocks(model: nn.Module, *, backend: str, mode: str | None) -> int:
    """Compile in place every outermost `ModuleList` of two or more modules of the same class.

    Args:
        model: any model, with or without adapters
        backend, mode: of `torch.compile`

    Returns:
        the number of compiled blocks

    Raises:
        InputError: the model has no such list.
    """
    count = _compile(model, backend, mode)
    if not count:
        raise InputError(
            f"training.torch_compile: {type(model).__name__} has no list of two or more blocks of the same class, and "
            "only such blocks are compiled; remove torch_compile"
        )
    return count


def _compile(module: nn.Module, backend: str, mode: str | None) -> int:
    children = list(module.children())
    if isinstance(module, nn.ModuleList) and len(children) > 1 and len({type(child) for child in children}) == 1:
        for child in children:
            child.compile(backend=backend, mode=mode)
        return len(children)
    return sum(_compile(child, backend, mode) for child in children)
