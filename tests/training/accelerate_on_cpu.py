"""`multilora` with sharding on the CPU, which accelerate supports only on GPUs: `python accelerate_on_cpu.py ...`.

Everything else is unmodified accelerate: plugins, wrapping, checkpoints.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import transformers.training_args
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

_initialise, _prepare = AcceleratorState.__init__, PartialState._prepare_backend


def _with_fsdp(self: AcceleratorState, *arguments: Any, fsdp_plugin: Any = None, **options: Any) -> None:
    _initialise(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
    if self.distributed_type == DistributedType.MULTI_CPU and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        # The same steps as in accelerate for GPUs.
        self.distributed_type = DistributedType.FSDP
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin = fsdp_plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def _with_deepspeed(self: PartialState, cpu: bool = False, *arguments: Any) -> Any:
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        self.device = torch.device("cpu")
        return "gloo", DistributedType.MULTI_GPU
    return _prepare(self, cpu, *arguments)


AcceleratorState.__init__ = _with_fsdp  # type: ignore[method-assign]
PartialState._prepare_backend = _with_deepspeed  # type: ignore[method-assign]
if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True

if __name__ == "__main__":
    from multilora.cli import main

    main()
