"""`torch_compile` for training: a model's repeated blocks, each in its place.

The model as a whole stays a plain module, so that the loss in chunks, the hooks of FSDP2 and DeepSpeed, and saving find
what they know; one block is compiled and its code serves all of them. (transformers compiles the whole model, output
head included.)
"""

from __future__ import annotations

from torch import nn

from multilora.errors import InputError


def compile_blocks(model: nn.Module, *, backend: str, mode: str | None) -> int:
    """Compile the modules of every outermost list of two or more modules of one class, in place.

    Args:
        model: any model, adapted or not
        backend, mode: of `torch.compile`

    Returns:
        the number of compiled blocks

    Raises:
        InputError: the model has no such list.
    """
    count = _compile(model, backend, mode)
    if not count:
        raise InputError(
            f"training.torch_compile: {type(model).__name__} has no list of two or more blocks of one class, and only "
            "such blocks are compiled; leave torch_compile out"
        )
    return count


def _compile(module: nn.Module, backend: str, mode: str | None) -> int:
    children = list(module.children())
    if isinstance(module, nn.ModuleList) and len(children) > 1 and len({type(child) for child in children}) == 1:
        for child in children:
            child.compile(backend=backend, mode=mode)
        return len(children)
    return sum(_compile(child, backend, mode) for child in children)
