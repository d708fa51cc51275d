"""The choice of tokens in one pass over the logits, split over a row, and a second over its parts.

Each logit is read once, and nothing but a value and an id of each part is written: as fast as
memory, if arithmetic keeps up. Noise in float64 would not, with two logarithms a logit. So it is
first bounded from above in float32, and computed only in blocks where some token might beat the
best so far: of n blocks in random order, 1 + 1/2 + … + 1/n on average.

What equals the definition (reference.py):
- Philox's words, and scores, bit by bit: scores are divided as IEEE 754 rounds. So greedy rows
  choose the same token always.
- Noise, but for the last places of float64: both take two logarithms of the same numbers, each
  within one last place or two. The definition's log1p(-u) is log(1 - u) here, and 1 - u is exact.
So a hot row chooses the same token, unless its two best lie within about 1e-14 of each other, where
words differ. Equal scores with equal words tie here as there, and the lowest id wins.
"""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from pds_kernels.launching import launch
from pds_kernels.sampler.plan import Geometry, GumbelMax, Rows
from pds_kernels.sampler.tuning import BLOCK, MOST_PARTS, WARPS, split
from pds_kernels.targets import SMS

_OF_ONE_CALL = 4
"""Words that Philox makes of one counter."""


def serves(_: Geometry) -> bool:
    """Any vocabulary. Rows with top_k or top_p are none of plan.Rows, whatever the kernel."""
    return True


def make(geometry: Geometry) -> GumbelMax:
    """Knows how many multiprocessors there are."""
    sms = SMS[90]
    if geometry.device.type == "cuda":
        sms = torch.cuda.get_device_properties(geometry.device).multi_processor_count
    return partial(gumbel_max, geometry, sms)


def gumbel_max(geometry: Geometry, sms: int, logits: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """plan.GumbelMax, once `geometry` is given."""
    count = len(logits)
    calls, lead = divmod(geometry.first, _OF_ONE_CALL)
    cut = split(count, geometry.columns + lead, sms)
    best = logits.new_empty(count, cut.parts, dtype=torch.float64)
    best_ids = logits.new_empty(count, cut.parts, dtype=torch.int64)
    launch(
        best_of_parts,
        (count, cut.parts),
        logits,
        rows.temperatures,
        rows.temperatures if rows.least is None else rows.least,
        *rows.draws.key,
        *rows.draws.counter,
        best,
        best_ids,
        logits.stride(0),
        calls,
        geometry.columns,
        cut.blocks * BLOCK,
        lead=lead,
        bounded=rows.least is not None,
        block=BLOCK,
        num_warps=WARPS,
    )
    values = logits.new_empty(count, dtype=torch.float64)
    ids = logits.new_empty(count, dtype=torch.int64)
    launch(
        best_of_rows,
        (count,),
        best,
        best_ids,
        values,
        ids,
        cut.parts,
        block=MOST_PARTS,
        num_warps=1,
    )
    return values, ids


@triton.jit(do_not_specialize=["calls", "columns", "share"])
def best_of_parts(
    logits_at,
    temperatures_at,
    least_at,
    low_at,
    high_at,
    indices_at,
    choices_at,
    best_at,
    ids_at,
    stride,
    calls,
    columns,
    share,
    lead: tl.constexpr,
    bounded: tl.constexpr,
    block: tl.constexpr,
):
    """`share` columns of a row each. They are counted from the first id of a Philox call, `lead`
    before column 0; `calls` come before that one."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    temperature = tl.load(temperatures_at + row)
    hot = temperature > 0
    divisor = tl.where(hot, temperature, 1.0)
    key = tl.load(low_at + row) | (tl.load(high_at + row) << 32)
    index = tl.load(indices_at + row).to(tl.uint32)
    choice = tl.load(choices_at + row).to(tl.uint32)
    best = tl.full((), float("-inf"), tl.float64)
    found = tl.full((), 0, tl.int32)
    begin = part * share
    for start in range(begin, tl.minimum(begin + share, columns + lead), block):
        column = start - lead + tl.arange(0, block)
        there = (column >= 0) & (column < columns)
        logit = tl.load(logits_at + row * stride + column, mask=there, other=float("-inf"))
        score = tl.div_rn(logit, divisor)
        if bounded:
            score = tl.where(score < tl.load(least_at + row), float("-inf"), score)
        score = tl.where(score == score, score, float("inf"))  # NaN must not lose
        if hot:
            words = noise_words(key, calls + start // 4, index, choice, block)
            slack = 1e-6 * tl.minimum(tl.abs(score), 1e30)  # what float32 may round away
            reach = score + gumbel_ceiling(words) + slack
            if tl.max((reach >= best.to(tl.float32)).to(tl.int32), 0) > 0:
                best, found = better(best, found, score.to(tl.float64) + gumbel(words), column)
        else:
            best, found = better(best, found, score.to(tl.float64), column)
    place = row * tl.num_programs(1) + part
    tl.store(best_at + place, best)
    tl.store(ids_at + place, found.to(tl.int64) + calls * 4 + lead)


@triton.jit(do_not_specialize=["parts"])
def best_of_rows(best_at, best_ids_at, values_at, ids_at, parts, block: tl.constexpr):
    """A row each: of its parts, which are in order of ids."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, block)
    there = part < parts
    value = tl.load(best_at + row * parts + part, mask=there, other=float("-inf"))
    ids = tl.load(best_ids_at + row * parts + part, mask=there, other=(1 << 62))
    top = tl.max(value, 0)
    tl.store(values_at + row, top)
    tl.store(ids_at + row, tl.min(tl.where(value == top, ids, 1 << 62), 0))


@triton.jit
def better(best, found, value, column):
    """The best of `value` and its first column, if it beats `best`."""
    top = tl.max(value, 0)
    first = tl.min(tl.where(value == top, column, 0x7FFFFFFF), 0)
    return tl.where(top > best, top, best), tl.where(top > best, first, found)


@triton.jit
def noise_words(key, call, index, choice, block: tl.constexpr):
    """[block] uint32: the words of tokens from `call` · 4 on, as philox.Draws has them."""
    counter = (call + tl.arange(0, block // 4)).to(tl.uint32)
    zero = tl.zeros_like(counter)
    first, second, third, fourth = tl.philox(key, counter, zero + index, zero + choice, zero)
    return tl.interleave(tl.interleave(first, third), tl.interleave(second, fourth))


@triton.jit
def gumbel(words):
    """-log(-log(1 - u)) of u = (word + 1/2) / 2³², in float64, where 1 - u is exact."""
    left = (4294967295.5 - words.to(tl.float64)) * 2.3283064365386963e-10
    return -tl.log(-tl.log(left))


@triton.jit
def gumbel_ceiling(words):
    """At least `gumbel`, and little more where that is great, in float32.

    -log(1 - u) is at least u + u²/2. The thousandth is far more than float32's rounding and a GPU's
    quick logarithm lose.
    """
    u = (words.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    return 0.001 - tl.log(u + 0.5 * u * u)
