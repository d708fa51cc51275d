"""What attention costs on a CPU by context and by pages: ms a layer and step, one token a request.

Heads are those of Llama 3 8B (32 of 128, 8 for keys and values), pages are scattered over a pool.
Each figure is the least of some runs, which take turns. `value` is the greatest time a token of
context over the least, from 1,024 tokens on: 1 where the cost grows linearly (a step's own part,
some 0.1 ms, is in it). `by_page_size` has the time with pages of 16 tokens and more over that with
pages of 256, at one context; `by_pool` that of a pool of four times as many pages over that of a
full one. `copied` is the time of 16 requests at 4,096 tokens over that of copying their keys and
values once.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping
from itertools import accumulate

import torch
from common import doing, kernels
from pds_kernels.paged_attention import Geometry
from pds_kernels.paged_attention.cpu import LIBRARY, make
from pds_kernels.plan import AttentionPlan

HEADS, KV_HEADS, DIM = 32, 8, 128
LINEAR_FROM, PAGE = 1024, 256
CPU = torch.device("cpu")
Work = Callable[[], object]


def plan_of(requests: int, context: int, page: int, pages: int) -> AttentionPlan:
    """A step of one token each, on pages that lie anywhere among so many."""
    each = -(-context // page)
    order = torch.randperm(pages, generator=torch.Generator().manual_seed(0))
    table = order[: requests * each].to(torch.int32).view(requests, each)
    last = table[:, (context - 1) // page].long() * page + (context - 1) % page
    starts = tuple(accumulate([0] + [1] * requests))
    return AttentionPlan(
        page_table=table,
        seq_lens=torch.full((requests,), context, dtype=torch.int32),
        cu_seqlens_q=torch.tensor(starts, dtype=torch.int32),
        write_slots=last,
        seq_lens_host=(context,) * requests,
        cu_seqlens_q_host=starts,
    )


def step(requests: int, context: int, page: int = PAGE, spare: int = 1) -> Work:
    """The attention of a step. The pool has `spare` times the pages that it reads."""
    pages = spare * requests * -(-context // page)
    keys, values = torch.randn(2, pages, KV_HEADS, page, DIM).bfloat16()
    q = torch.randn(requests, HEADS, DIM).bfloat16()
    k, v = torch.randn(2, requests, KV_HEADS, DIM).bfloat16()
    geometry = Geometry(HEADS, KV_HEADS, DIM, page, torch.bfloat16, torch.bfloat16, CPU)
    attend = make(geometry)(plan_of(requests, context, page, pages))
    return lambda: attend(q, k, v, keys, values)


def copy(requests: int, context: int) -> Work:
    """Keys and values of as much context, from here to there."""
    held = torch.zeros(2, requests, KV_HEADS, context, DIM, dtype=torch.bfloat16)
    room = torch.zeros_like(held)
    return lambda: room.copy_(held)


def least_ms(works: Mapping[str, Work], rounds: int) -> dict[str, float]:
    """Of each, while all take turns."""
    found = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, work in works.items():
            begun = time.perf_counter()
            work()
            found[name] = min(found[name], 1000 * (time.perf_counter() - begun))
    return found


def measured(requests: int, contexts: list[int], rounds: int) -> dict[str, object]:
    """Of the kernels that are provided now."""
    by_context = least_ms({str(n): step(requests, n) for n in contexts}, rounds)
    each = [ms / int(n) for n, ms in by_context.items() if int(n) >= LINEAR_FROM]
    longest = contexts[-1]
    paged = least_ms({str(p): step(requests, longest, p) for p in (16, 64, PAGE)}, rounds)
    pools = least_ms({str(n): step(requests, longest, 64, spare=n) for n in (1, 4)}, rounds)
    beside = least_ms({"attend": step(16, 4096), "copy": copy(16, 4096)}, rounds)
    return {
        "linear": round(max(each) / min(each), 3),
        "by_page_size": {p: round(ms / paged[str(PAGE)], 3) for p, ms in paged.items()},
        "by_pool": round(pools["4"] / pools["1"], 3),
        "copied": round(beside["attend"] / beside["copy"], 3),
        "ms": {n: round(ms, 3) for n, ms in by_context.items()},
        "ms_16_4096": round(beside["attend"], 2),
        "copy_ms": round(beside["copy"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter contexts and fewer runs")
    quick = parser.parse_args().quick
    contexts = [64, 1024, 4096] if quick else [64, 512, 1024, 2048, 4096, 8192]
    requests, rounds = (4, 5) if quick else (8, 30)
    torch.manual_seed(0)
    found = {}
    with doing("attending", 300 if quick else 900):
        for which in kernels.sets(few=True):
            with kernels.of(which, LIBRARY):
                found[which.name] = measured(requests, contexts, rounds)
    best = next(iter(found.values()))
    result = {
        "name": "attention",
        "value": best["linear"],
        "unit": "greatest over least time a token of context",
        "better": "lower",
        "baseline": 1.0,
        "ratio": best["linear"],
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "requests": requests,
        "instructions": found,
    }
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
