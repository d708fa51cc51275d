"""benchmarks/delaying: dp ranks in virtual time, and costs that give what was published."""

import random
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from delaying.aims import standing
from delaying.calibrate import fit
from delaying.costs import MACHINES, Cost, Load, Machine
from delaying.fleet import Request, Trace, View, quantile, simulate
from delaying.match import cases, play
from delaying.published import reproduce
from delaying.rivals import Coalescer, Interval, Table
from delaying.traces import atom_run, sglang_run, vllm_run
from pds_engine.scheduler.dp.rows import SyncRow

SIMPLE = Machine(
    Cost(graph=1.0, eager=10.0, token=0.0, context=0.0, square=0.0, shared=0.0),
    slots=2,
    chunk=100,
    kv=1000,
    ahead=False,
    ranks=2,
)


def off(views):
    return [True] * len(views)


def test_a_pass_costs_what_the_busiest_rank_does_and_the_sum():
    cost = Cost(graph=1.0, eager=10.0, token=0.1, context=0.01, square=0.001, shared=0.5)
    assert cost.of([Load(2, 30), Load(1, 5)]) == pytest.approx(1 + 0.2 + 0.3 + 1.5)
    assert cost.of([Load(2, 30, 4, 8.0), Load(1, 5)]) == pytest.approx(10 + 0.6 + 0.3 + 0.008 + 3.5)


def test_one_request_takes_its_chunks_and_its_tokens():
    """250 tokens are three chunks; of three tokens, the last two are decode rows."""
    outcome = simulate(SIMPLE, Trace([Request(5.0, 250, 3)]), off)
    assert outcome.waits == [30.0]
    assert outcome.gaps == [(1.0, 1), (1.0, 1)]
    assert (outcome.passes, outcome.extends, outcome.seconds) == (5, 3, 37.0)


def test_all_ranks_wait_for_one_that_has_a_prompt():
    requests = [Request(0.0, 10, 4, rank=0), Request(11.0, 10, 1, rank=1)]
    assert simulate(SIMPLE, Trace(requests), off).gaps == [(1.0, 1), (10.0, 1), (1.0, 1)]


def test_a_request_waits_for_a_slot_and_for_pages():
    three = [Request(0.0, 10, 3, rank=0)] * 3
    assert simulate(SIMPLE, Trace(three), off).waits == [10.0, 10.0, 22.0]
    long = [Request(0.0, 90, 600, rank=0), Request(0.0, 90, 400, rank=0)]
    assert simulate(SIMPLE, Trace(long), off).waits == [10.0, 10.0 + 599.0 + 10.0]


def test_where_kinds_of_rows_are_separate_a_prompt_stops_the_decode_rows_of_its_rank():
    machine = replace(SIMPLE, separate=True)
    requests = [Request(0.0, 10, 3, rank=0), Request(0.5, 10, 1, rank=0)]
    assert simulate(machine, Trace(requests), off).gaps == [(11.0, 1), (1.0, 1)]


def test_what_comes_after_a_pass_was_planned_is_in_the_one_after():
    machine = replace(SIMPLE, ahead=True)
    requests = [Request(0.0, 10, 9, rank=0), Request(10.5, 10, 1, rank=1)]
    assert simulate(machine, Trace(requests), off).waits == [10.0, 1.5 + 10.0]


def test_clients_send_their_next_request_when_one_is_answered():
    trace = Trace([Request(0.0, 10, 2)] * 4, clients=2)
    outcome = simulate(SIMPLE, trace, off)
    assert outcome.waits == [10.0] * 2
    assert outcome.seconds == 22.0


def test_quantiles_are_weighted():
    assert quantile([(3.0, 1), (1.0, 98), (2.0, 1)], 0.5) == 1.0
    assert quantile([(3.0, 1), (1.0, 98), (2.0, 1)], 0.99) == 2.0


def near(found: float, published: float, share: float) -> bool:
    return abs(found - published) <= share * published


def test_without_a_policy_the_machines_give_what_was_published():
    vllm = simulate(MACHINES["vllm"], vllm_run(), off)
    assert near(vllm.gap(0.5), 0.2749, 0.05)
    assert near(sum(vllm.waits) / len(vllm.waits), 0.813, 0.15)
    assert near(len(vllm.waits) / vllm.seconds, 22.43, 0.03)
    assert near(simulate(MACHINES["sglang"], sglang_run(), off).rate, 237_656, 0.03)
    assert near(simulate(MACHINES["atom"], atom_run(1024), off).rate, 22_900, 0.03)
    assert near(simulate(MACHINES["atom"], atom_run(8192), off).rate, 37_200, 0.03)


def test_a_cost_is_found_again_from_passes_that_it_made():
    draw = random.Random(1)
    cost = Cost(graph=0.01, eager=0.02, token=1e-4, context=1e-6, square=1e-8, shared=5e-5)
    passes = []
    for number in range(200):
        loads = []
        for _ in range(2):
            tokens = number % 2 * draw.randrange(1, 600)
            pairs = tokens * draw.randrange(999)
            loads.append(Load(draw.randrange(1, 64), draw.randrange(64, 9999), tokens, pairs))
        passes.append((loads, cost.of(loads)))
    found, miss = fit(passes)
    assert miss < 1e-6
    assert asdict(found) == pytest.approx(asdict(cost), rel=1e-3)


# ---- policies ----------------------------------------------------------------------------------


def view(prompt=0, running=4, waiting=0, usage=0.5, prompts=1, **more):
    row = SyncRow(1, running, prompt, more.pop("pending", prompt), running, **more)
    return View(row, prompts if prompt else 0, waiting, usage, slots=8, chunk=100)


def runs(policy, *passes):
    return ["".join("-R"[run] for run in policy(views)) for views in passes]


def test_the_interval_runs_prompts_in_every_second_pass_unless_a_rank_is_saturated():
    assert runs(Interval(), *[(view(50), view())] * 4) == ["RR", "--", "RR", "--"]
    left = (view(50, waiting=3), view(50))
    assert runs(Interval(), *[left] * 4) == ["RR", "R-", "RR", "R-"]
    assert runs(Interval(), *[(view(50, running=0), view(50))] * 2) == ["RR", "R-"]


def test_the_coalescer_waits_for_all_ranks_and_a_full_batch():
    some, all_ready, full = (view(50), view()), (view(50), view(50)), (view(70), view(70))
    assert runs(Coalescer(), some, some, all_ready, full) == ["RR", "--", "--", "RR"]
    assert runs(Coalescer(), *[some] * 32) == ["RR", *["--"] * 30, "RR"]
    begun = (view(50, begun=1), view())
    assert runs(Coalescer(), *[begun] * 10) == ["RR", *["--"] * 8, "RR"]
    assert runs(Coalescer(), *[all_ready] * 6) == ["RR", *["--"] * 3, "RR", "--"]
    assert runs(Coalescer(), some, (view(50, running=0), view(running=0))) == ["RR", "RR"]
    assert runs(Coalescer(), some, (view(50, usage=0.9), view())) == ["RR", "RR"]


def test_the_table_waits_for_all_ranks_and_for_slots():
    some, all_ready = (view(50), view()), (view(50), view(50))
    assert runs(Table(), *[some] * 30, all_ready) == [*["--"] * 29, "RR", "RR"]
    assert runs(Table(low=0.8), some) == ["RR"]
    assert runs(Table(), (view(50, begun=1), view(50, running=8), view())) == ["R--"]
    many = (view(50, prompts=5), view(50))
    assert runs(Table(), many, all_ready, all_ready) == ["RR", "RR", "--"]


def test_each_rival_reproduces_what_it_has_published():
    assert [each for each in reproduce() if not each.holds] == []


def test_ours_is_ahead_offline_and_never_below_where_a_mix_persists():
    wanted = {"offline", "persistent mixed"}
    played = {
        name: {policy: play(MACHINES, case, policy) for policy in ("off", "sglang", "ours")}
        for name, case in cases(scale=0.01).items()
        if name in wanted
    }
    offline, persistent = (played[name] for name in sorted(wanted))
    assert offline["ours"].rate >= 1.4 * offline["off"].rate
    assert standing(offline["ours"], offline["sglang"]) == "ahead"
    assert persistent["ours"].rate >= 0.9995 * persistent["off"].rate
