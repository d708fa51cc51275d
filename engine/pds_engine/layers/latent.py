"""Multi-head latent attention's token-wise part (DeepSeek-AI, "DeepSeek-V2", 2024)."""

import torch
from pds_kernels.rms_norm import rms_norm
from pds_kernels.rope import rotate
from torch import Tensor

from pds_engine.layers.linear import Matrix, linear
from pds_engine.layers.shapes import LatentShape


def heads(
    shape: LatentShape,
    x: Tensor,
    rope: Tensor,
    q_a: Matrix,
    q_a_norm: Tensor,
    q_b: Matrix,
    kv_a: Matrix,
    kv_a_norm: Tensor,
) -> tuple[Tensor, Tensor]:
    """Queries with their rotated part, and what the KV cache keeps of each token.

    x: [T, hidden]; rope: [T, rope_dim]. Returns q [T, H, nope_dim + rope_dim] and the latent
    [T, kv_rank + rope_dim], normalised, with the rotated part that all heads share behind it.
    """
    read = x
    if shape.q_rank is not None:
        read = rms_norm(linear(x, q_a), q_a_norm, shape.norm_eps)
    q = linear(read, q_b).view(x.shape[0], shape.heads, shape.nope_dim + shape.rope_dim)
    q_nope, q_rope = q.split_with_sizes([shape.nope_dim, shape.rope_dim], dim=-1)
    latent, k_rope = linear(x, kv_a).split_with_sizes([shape.kv_rank, shape.rope_dim], dim=-1)
    latent = rms_norm(latent, kv_a_norm, shape.norm_eps)
    k_rope = rotate(k_rope.unsqueeze(1), rope).squeeze(1)
    return torch.cat((q_nope, rotate(q_rope, rope)), -1), torch.cat((latent, k_rope), -1)
