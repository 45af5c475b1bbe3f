"""A LoRA as MultiLoRA branches of the same function, from which training can continue.

A LoRA of rank R updates a matrix by g B_L A_L, where g is its scaling (alpha / R, or alpha / sqrt(R) with rsLoRA).
MultiLoRA's update is c * sum_i s_i (.) B_i A_i (`multilora.functional`). The R ranks are divided into n consecutive
groups whose sizes differ by at most one. With the ranks of group i in front,

    A_i = [A_L[group i]; K]      B_i = [(g / c) B_L[:, group i] | 0]      s_i = 1

give exactly the LoRA's update. K is the usual Kaiming initialisation of the ranks that are left over. Their columns of
B_i are zero, so that they add nothing, and learn as a new LoRA does. If R < n, a branch without ranks keeps its usual
initialisation, with s_i = 0. So every branch can be trained: either s_i or A_i and B_i are not zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multilora.errors import AdapterError

__all__ = ["branches_from_lora", "check_total_rank"]


def check_total_rank(rank: int, r: int, num_branches: int) -> None:
    """Check that n branches of rank r can contain a LoRA.

    Raises:
        AdapterError: n*r is less than the LoRA's rank.
    """
    if num_branches * r < rank:
        raise AdapterError(
            f"r {r} with num_branches {num_branches} is a total rank of {num_branches * r}, less than the rank {rank} "
            f"of the LoRA; set r to {-(-rank // num_branches)} or more"
        )


@torch.no_grad()
def branches_from_lora(
    lora_A: Tensor, lora_B: Tensor, factor: float, initial: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The branches (A, B, scale) whose update is that of a LoRA.

    Args:
        lora_A: [..., R, d_in]
        lora_B: [..., d_out, R]
        factor: g / c, the LoRA's scaling divided by the constant factor of the branches
        initial: (A [..., n*r, d_in], B [..., d_out, n*r], scale [..., d_out, n], [..., 1, n] or [n]) as initialised by
            `multilora.functional.init_branches_`; not changed

    Raises:
        AdapterError: n*r < R.
    """
    A, B, scale = (parameter.clone() for parameter in initial)
    rank, num_branches = lora_A.shape[-2], scale.shape[-1]
    r = A.shape[-2] // num_branches
    check_total_rank(rank, r, num_branches)
    smallest, larger = divmod(rank, num_branches)
    sizes = [smallest + (branch < larger) for branch in range(num_branches)]
    slots = [branch * r + offset for branch, size in enumerate(sizes) for offset in range(size)]
    used = min(rank, num_branches)
    dtype = torch.promote_types(lora_B.dtype, torch.float32)
    A[..., slots, :] = lora_A.to(A)
    B[..., : used * r] = 0
    B[..., slots] = (lora_B.to(dtype) * factor).to(B)
    scale[...] = 0
    scale[..., :used] = 1
    return A, B, scale
