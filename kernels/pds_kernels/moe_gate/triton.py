"""The gate in one pass: a token's logits are read once and stay in the registers of a warp.

The best are found one after the other, by as many reductions as a token has choices; for the eight
of 256 experts that takes less than a sort. It reads 4 · experts bytes a token and writes
12 · top_k; with few tokens it costs no more than its launch.

Numbers are compared as keys: int32 that are in the order of the floats, equal where those are
equal. A NaN is the greatest key, as in the reference's sort, and no number is the least, which
marks what may not be chosen.
"""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from pds_kernels.launching import launch
from pds_kernels.moe_gate.plan import Gate, Geometry
from pds_kernels.moe_gate.tuning import TOKENS, WARPS, WIDEST, padded

NO_ZERO = tl.constexpr(1e-20)
LEAST = tl.constexpr(-(1 << 31))
GREATEST = tl.constexpr((1 << 31) - 1)
"""As a float it is a NaN."""
MAGNITUDE = tl.constexpr((1 << 31) - 1)


def serves(geometry: Geometry) -> bool:
    groups, places = padded(geometry.experts, geometry.groups)
    return groups * places <= WIDEST and geometry.experts % geometry.groups == 0


def make(geometry: Geometry) -> Gate:
    """Nothing is kept from call to call."""
    return partial(gate, geometry)


def gate(
    geometry: Geometry, logits: Tensor, correction: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """plan.Gate, once `geometry` is given."""
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    tokens = len(logits)
    weights = logits.new_empty(tokens, geometry.top_k, dtype=torch.float32)
    ids = torch.empty_like(weights, dtype=torch.int64)
    groups, places = padded(geometry.experts, geometry.groups)
    launch(
        choose_experts,
        (triton.cdiv(tokens, TOKENS),),
        logits,
        logits if correction is None else correction,
        weights,
        ids,
        logits.stride(0),
        tokens,
        experts=geometry.experts,
        top_k=geometry.top_k,
        score=geometry.score,
        corrected=correction is not None,
        renormalise=geometry.renormalise,
        scaling=geometry.scaling,
        group_size=geometry.experts // geometry.groups,
        real_groups=geometry.groups,
        top_groups=geometry.top_groups,
        two_best=geometry.group_score == "top2" and geometry.experts > geometry.groups,
        groups=groups,
        places=places,
        choices=triton.next_power_of_2(geometry.top_k),
        block=TOKENS,
        num_warps=WARPS,
    )
    return weights, ids


@triton.jit
def keys_of(number):
    """int32 in the order of float32, whose two zeros are equal."""
    bits = tl.where(number == 0.0, 0.0, number).to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ MAGNITUDE, bits)
    return tl.where(number == number, ordered, GREATEST)


@triton.jit
def number_of(key):
    return tl.where(key < 0, key ^ MAGNITUDE, key).to(tl.float32, bitcast=True)


@triton.jit
def softmax_of(logits):
    """Of each row. What is not there is -inf; a NaN makes all of the row NaN."""
    greatest = number_of(tl.max(keys_of(logits), 1))
    powers = tl.exp(logits - greatest[:, None])
    return powers / tl.sum(powers, 1)[:, None]


@triton.jit
def in_best_groups(
    keys, real_groups: tl.constexpr, top_groups: tl.constexpr, two_best: tl.constexpr
):
    """keys: [tokens, groups, places] → [tokens, groups]: whether a group may be chosen from."""
    group = tl.arange(0, keys.shape[1])[None, :]
    best, where = tl.max(keys, 2, return_indices=True)
    if two_best:
        place = tl.arange(0, keys.shape[2])[None, None, :]
        rest = tl.where(place == where[:, :, None], LEAST, keys)
        best = keys_of(number_of(best) + number_of(tl.max(rest, 2)))
    best = tl.where(group < real_groups, best, LEAST)
    kept = tl.zeros(best.shape, tl.int1)
    for _ in range(top_groups):
        which = tl.argmax(best, 1)[:, None]
        kept = kept | (group == which)
        best = tl.where(group == which, LEAST, best)
    return kept


@triton.jit(do_not_specialize=["stride", "tokens"])
def choose_experts(
    logits_at,
    correction_at,
    weights_at,
    ids_at,
    stride,
    tokens,
    experts: tl.constexpr,
    top_k: tl.constexpr,
    score: tl.constexpr,
    corrected: tl.constexpr,
    renormalise: tl.constexpr,
    scaling: tl.constexpr,
    group_size: tl.constexpr,
    real_groups: tl.constexpr,
    top_groups: tl.constexpr,
    two_best: tl.constexpr,
    groups: tl.constexpr,
    places: tl.constexpr,
    choices: tl.constexpr,
    block: tl.constexpr,
):
    """`block` tokens each. Rows of logits lie `stride` apart, those of the results side by side.

    A group's experts stand at its `places`; the last ones are empty where its size is no power of
    two. So is the order of places that of ids.
    """
    token = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    place = tl.arange(0, groups * places)
    expert = place // places * group_size + place % places
    there = (place % places < group_size) & (expert < experts)
    known = (token < tokens)[:, None]
    logits = tl.load(
        logits_at + token[:, None] * stride + expert[None, :],
        mask=known & there[None, :],
        other=float("-inf"),
    ).to(tl.float32)
    logits = tl.where(known, logits, 0.0)  # rows without a token: any number will do
    if score == "softmax":
        scores = softmax_of(tl.where(there[None, :], logits, float("-inf")))
    elif score == "sigmoid":
        scores = tl.sigmoid(logits)
    else:
        scores = logits
    ranked = scores
    if corrected:
        ranked = scores + tl.load(correction_at + expert, mask=there, other=0.0)[None, :]
    keys = tl.where(there[None, :], keys_of(ranked), LEAST)
    if real_groups > 1:
        members = tl.reshape(keys, [block, groups, places])
        kept = in_best_groups(members, real_groups, top_groups, two_best)
        kept = tl.broadcast_to(kept[:, :, None], [block, groups, places])
        kept = tl.reshape(kept, [block, groups * places])
        nothing = tl.where(there[None, :], keys_of(tl.full([1], float("-inf"), tl.float32)), LEAST)
        keys = tl.where(kept, keys, nothing)

    choice = tl.arange(0, choices)[None, :]
    ids = tl.zeros([block, choices], tl.int32)
    weights = tl.full([block, choices], float("-inf"), tl.float32)
    for index in range(top_k):
        best = tl.argmax(keys, 1)[:, None]
        taken = place[None, :] == best
        found = tl.sum(tl.where(taken, scores, 0.0), 1)[:, None]
        weights = tl.where(choice == index, found, weights)
        ids = tl.where(choice == index, best // places * group_size + best % places, ids)
        keys = tl.where(taken, LEAST, keys)
    if score == "softmax of chosen":
        weights = softmax_of(weights)
    if renormalise:
        total = tl.sum(tl.where(choice < top_k, weights, 0.0), 1)
        weights = weights / (total[:, None] + NO_ZERO)
    at = token[:, None] * top_k + choice
    within = known & (choice < top_k)
    tl.store(weights_at + at, weights * scaling, mask=within)
    tl.store(ids_at + at, ids.to(tl.int64), mask=within)
