"""Memory and time of a training step on a given machine, from a trace."""

from __future__ import annotations

from dataclasses import dataclass

from multilora.errors import InputError
from multilora.estimate.trace import Trace, traces
from multilora.methods import FULL
from multilora.recipe import Recipe

# Bytes per weight. 4 bits: nf4 and a float32 scale per 64 weights; 8 bits: the float32 scale of a row is left out.
BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "4bit": 0.5 + 4 / 64, "8bit": 1.0}
# A trained parameter and its gradient in float32, and Adam's two moments.
TRAINED_BYTES = {"weights": 4, "gradients": 4, "optimizer": 8}
# Share of the peak operations per second that training reaches, if none is given.
UTILIZATION = 0.4


@dataclass(frozen=True)
class Memory:
    """Bytes on each process.

    base: frozen weights, or this process's share of them
    trained: trained weights, their gradients and Adam's moments, or this process's share of them
    gathered: weights of two blocks of layers, one in use and one on its way, if the weights are sharded
    working: activations and temporary tensors
    """

    sharded: bool
    checkpointing: bool
    base: int
    trained: int
    gathered: int
    working: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.base + self.trained + self.gathered + self.working


@dataclass(frozen=True)
class Needs:
    """What a recipe needs on a machine.

    memory: with weights on every process or sharded, each without and with gradient checkpointing
    operations: per optimizer step of all processes, without and with gradient checkpointing
    seconds: per optimizer step, likewise; None if the speed of the processors was not given
    tokens: per optimizer step of all processes
    """

    processes: int
    rows: int
    row_tokens: int
    accumulation: int
    frozen_parameters: int
    trained_parameters: int
    memory: tuple[Memory, ...]
    operations: tuple[int, int]
    seconds: tuple[float, float] | None
    tokens: int


def needs(
    recipe: Recipe,
    *,
    processes: int = 1,
    tflops: float | None = None,
    utilization: float = UTILIZATION,
) -> Needs:
    """Estimate the memory and the time of an optimizer step; the formulas are in docs/scaling.md.

    Args:
        recipe: what is trained; neither its data nor the weights of its base are read
        processes: one per GPU; each gets `training.per_device_train_batch_size` rows
        tflops: of one processor in the dtype of the products, 10^12 operations per second; None to estimate no time
        utilization: share of `tflops` that is reached

    Raises:
        InputError: an argument is out of range, or the model cannot be traced.
    """
    _check(processes, tflops, utilization)
    both = traces(recipe)
    first = both[0]
    accumulation = int(recipe.training.get("gradient_accumulation_steps", 1))
    operations = tuple(item.operations * accumulation * processes for item in both)
    speed = None if tflops is None else tflops * 1e12 * utilization * processes
    return Needs(
        processes=processes,
        rows=first.rows,
        row_tokens=first.tokens,
        accumulation=accumulation,
        frozen_parameters=first.frozen_parameters,
        trained_parameters=first.trained_parameters,
        memory=tuple(
            _memory(recipe, item, processes, sharded=sharded, checkpointing=checkpointing)
            for sharded in (False, True)[: 1 if processes == 1 else 2]
            for checkpointing, item in enumerate(both)
        ),
        operations=(operations[0], operations[1]),
        seconds=None if speed is None else (operations[0] / speed, operations[1] / speed),
        tokens=first.rows * first.tokens * accumulation * processes,
    )


def _memory(recipe: Recipe, item: Trace, processes: int, *, sharded: bool, checkpointing: int) -> Memory:
    shares = processes if sharded else 1
    full = BYTES["float32" if recipe.adapter.method == FULL else recipe.model.dtype]
    if recipe.model.quantization == "none":
        base, layer, unpacked = full * item.frozen_parameters, full * item.layer_parameters, 0.0
    else:
        small = BYTES[recipe.model.quantization]
        base = small * item.linear_parameters + full * (item.frozen_parameters - item.linear_parameters)
        layer = small * item.layer_parameters
        unpacked = full * item.matrix_parameters  # a matrix is unpacked for its product
    return Memory(
        sharded=sharded,
        checkpointing=bool(checkpointing),
        base=round(base / shares),
        trained=round(sum(TRAINED_BYTES.values()) * item.trained_parameters / shares),
        gathered=round(2 * layer) if sharded else 0,
        working=round(item.working_bytes + unpacked),
    )


def _check(processes: int, tflops: float | None, utilization: float) -> None:
    problems = [
        f"{name} is {value}, expected {expected}"
        for name, value, valid, expected in (
            ("processes", processes, processes >= 1, "at least 1"),
            ("tflops", tflops, tflops is None or tflops > 0, "more than 0"),
            ("utilization", utilization, 0 < utilization <= 1, "more than 0 and at most 1"),
        )
        if not valid
    ]
    if problems:
        raise InputError("; ".join(problems))
