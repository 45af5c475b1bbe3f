"""Weight updates as products of two factors: read them from a layer, their singular values and vectors, truncation.

A QR decomposition of both factors reduces Delta W = up @ down to a k x k core with the same singular values:

    up = Q_u R_u        down^T = Q_d R_d        Delta W = Q_u (R_u R_d^T) Q_d^T

so that neither Delta W nor its singular vectors are formed in full.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from multilora.peft_method import MultiLoraLayer


def layer_factors(module: Any, adapter_name: str) -> tuple[Tensor, Tensor] | None:
    """Return (up [..., d_out, k], down [..., k, d_in]) of a MultiLoRA or plain LoRA layer, with Delta W = up @ down.

    All constants and scales are in `up`. The factors are at least float32. For other layers, and for variants of LoRA
    whose update is not such a product, None.
    """
    from peft.tuners import lora

    if isinstance(module, MultiLoraLayer):
        down, up = module.effective_factors(adapter_name)
        return up, down
    if not isinstance(module, lora.LoraLayer) or not isinstance(module.lora_A, torch.nn.ModuleDict):
        return None
    if adapter_name not in module.lora_A or adapter_name in module.lora_variant:  # an adapted embedding, or DoRA etc.
        return None
    down, up = (getattr(module, part)[adapter_name].weight for part in ("lora_A", "lora_B"))
    if down.dim() != 2:  # a convolution
        return None
    dtype = torch.promote_types(down.dtype, torch.float32)
    down, up = down.to(dtype), up.to(dtype) * module.scaling[adapter_name]
    if hasattr(module, "parameter_name") and module.get_param().dim() == 3:
        down, up = unstacked(down, up, module.num_experts)
    return up, down


def unstacked(down: Tensor, up: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """From PEFT's layout for a stack of experts, down [experts * k, d_in] and up [d_out, k * experts], to
    (down [experts, k, d_in], up [experts, d_out, k])."""
    return down.reshape(experts, -1, down.shape[-1]), up.reshape(up.shape[0], -1, experts).permute(2, 0, 1)


def stacked(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `unstacked`."""
    return down.flatten(0, 1), up.permute(1, 2, 0).flatten(1)


def singular_values_of_product(up: Tensor, down: Tensor) -> Tensor:
    """Compute the singular values of `up @ down`, largest first, without forming the product.

    Args:
        up: [..., d_out, k]
        down: [..., k, d_in]

    Returns:
        [..., min(d_out, d_in, k)] in float64
    """
    values: Tensor = torch.linalg.svdvals(core_of_product(up, down))
    return values


def core_of_product(up: Tensor, down: Tensor) -> Tensor:
    """The core R_u R_d^T [..., min(d_out, k), min(d_in, k)] of `up @ down` in float64; both have the same norms."""
    _, upper = torch.linalg.qr(up.detach().double(), mode="r")
    _, lower = torch.linalg.qr(down.detach().double().mT, mode="r")
    core: Tensor = upper @ lower.mT
    return core


def svd_of_product(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the singular value decomposition of `up @ down`, without forming the product.

    Args:
        up: [..., d_out, k]
        down: [..., k, d_in]

    Returns:
        (left [..., d_out, m], values [..., m], right [..., d_in, m]) in float64, with m = min(d_out, d_in, k), so that
        up @ down = left @ diag(values) @ right^T
    """
    q_up, upper = torch.linalg.qr(up.detach().double())
    q_down, lower = torch.linalg.qr(down.detach().double().mT)
    left, values, right = torch.linalg.svd(upper @ lower.mT, full_matrices=False)
    return q_up @ left, values, q_down @ right.mT


def truncated_product(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Compute the factors of the best approximation of `up @ down` of a rank (Eckart-Young).

    The singular values are divided evenly between the factors.

    Args:
        up: [..., d_out, k]
        down: [..., k, d_in]
        rank: of the result; if it is at least k, the factors are returned unchanged, so that this is exact

    Returns:
        (up [..., d_out, rank], down [..., rank, d_in]) in the dtype of the arguments
    """
    if rank >= up.shape[-1]:
        return up, down
    left, values, right = svd_of_product(up, down)
    root = values[..., :rank].sqrt()
    new_up = left[..., :, :rank] * root.unsqueeze(-2)
    new_down = root.unsqueeze(-1) * right[..., :, :rank].mT
    return new_up.to(up.dtype), new_down.to(down.dtype)
