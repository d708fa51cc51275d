"""Cost of planning: µs per StepPlan with 256 running requests, without sockets.

A cycle is what the scheduler does for one decode step: take in a StepDone of 256 tokens, make 256
Tokens, plan the next step. `value` is the planning alone; the cycle and the encoding are beside it.
It is measured again after thousands of requests have come and gone: the cost must not grow.
`admit_32k_us` is the plan that takes a prompt of 32K tokens up: without the prefix cache, with it
(the prompt is new: its pages are digested), and when all of it is found.
"""

import argparse
import json
import platform
import statistics
import time

from common import doing
from msgspec.msgpack import Encoder
from pds_engine.config import SchedulerConfig
from pds_engine.messages import KvEndpoint, Ready, Sampling, StepDone, StepPlan, Submit
from pds_engine.scheduler.party import WORKERS, Out, Party
from pds_engine.scheduler.scheduler import Scheduler
from pds_engine.scheduler.settings import Settings

RUNNING = 256
LONG = 6000
"""Output tokens of a measured request: more than the steps that are measured."""
PROMPT = 1 << 15
SERVER = Party("server", "s")
ENDPOINT = KvEndpoint(rank=0, shard=b"", pages=1 << 17, backends={})


def make_scheduler(prefix_cache: bool = True) -> Scheduler:
    bounds = SchedulerConfig(
        max_running=RUNNING,
        max_waiting=4 * RUNNING,
        chunk_size=8192,
        max_step_tokens=8192 + RUNNING,
        prefix_cache=prefix_cache,
    )
    settings = Settings(max_model_len=1 << 20, scheduler=bounds)
    scheduler = Scheduler(settings, "benchmark")
    scheduler.handle(
        WORKERS, Ready(rank=0, pages=1 << 17, kv_fingerprint="", endpoint=ENDPOINT), 0.0
    )
    return scheduler


def submit(scheduler: Scheduler, prefix: str, max_tokens: int) -> None:
    for number in range(RUNNING):
        request = Submit(
            request_id=f"{prefix}-{number}",
            prompt_ids=tuple(range(100)),
            sampling=Sampling(max_tokens=max_tokens, stop_token_ids=(2,)),
            seed=number,
        )
        scheduler.handle(SERVER, request, 0.0)


def finish_oldest(scheduler: Scheduler) -> list[Out]:
    """Answer the oldest step in flight with a token for each row that samples."""
    step = scheduler.steps.in_flight[0]
    tokens = (7,) * len(step.samplers)
    done = StepDone(step_id=step.plan.step_id, tokens=tokens, logprobs=(), elapsed=0.0)
    return scheduler.handle(WORKERS, done, 0.0)


def run_out(scheduler: Scheduler) -> None:
    while scheduler.ledger.requests or scheduler.steps.in_flight:
        scheduler.plan(0.0)
        finish_oldest(scheduler)


def measure(steps: int, scheduler: Scheduler) -> dict[str, float]:
    """Median µs per step of planning, of a whole cycle, and of encoding the plan."""
    submit(scheduler, "measured", max_tokens=LONG)
    while len(scheduler.ledger.decoding) < RUNNING:
        scheduler.plan(0.0)
        finish_oldest(scheduler)
    encoder = Encoder()
    plan_us, cycle_us, encode_us = [], [], []
    while len(plan_us) < steps:
        start = time.perf_counter_ns()
        finish_oldest(scheduler)
        taken = time.perf_counter_ns()
        out = scheduler.plan(0.0)
        planned = time.perf_counter_ns()
        plans = [item.message for item in out if isinstance(item.message, StepPlan)]
        if [len(plan.rows) for plan in plans] != [RUNNING]:
            continue  # a step that fills the pipeline anew
        encoder.encode(plans[0])
        encoded = time.perf_counter_ns()
        plan_us.append((planned - taken) / 1000)
        cycle_us.append((planned - start) / 1000)
        encode_us.append((encoded - planned) / 1000)
    return {
        "plan_us": round(statistics.median(plan_us), 1),
        "plan_p99_us": round(statistics.quantiles(plan_us, n=100)[98], 1),
        "cycle_us": round(statistics.median(cycle_us), 1),
        "encode_us": round(statistics.median(encode_us), 1),
    }


def admissions(rounds: int) -> dict[str, float]:
    """Median µs of a plan that admits a prompt of 32K tokens and issues its first chunks."""
    cases: dict[str, list[float]] = {"off": [], "new": [], "found": []}
    schedulers = {"off": make_scheduler(prefix_cache=False), "new": make_scheduler()}
    for number in range(rounds):
        for case, times in cases.items():
            scheduler = schedulers["off" if case == "off" else "new"]
            ids = (number, *range(PROMPT - 1))
            request = Submit(
                request_id=case, prompt_ids=ids, sampling=Sampling(max_tokens=1), seed=0
            )
            scheduler.handle(SERVER, request, 0.0)
            start = time.perf_counter_ns()
            scheduler.plan(0.0)
            times.append((time.perf_counter_ns() - start) / 1000)
            run_out(scheduler)
    return {case: round(statistics.median(times), 1) for case, times in cases.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    steps = 300 if parser.parse_args().quick else 3000
    rounds = 20 if steps < 1000 else 80
    with doing(f"{steps} steps, twice", 300 if steps < 1000 else 1800):
        fresh = measure(steps, make_scheduler())
        aged = make_scheduler()
        for number in range(rounds):
            submit(aged, f"old-{number}", max_tokens=3)
            run_out(aged)
        worn = measure(steps, aged)
        admitted = admissions(rounds)
    result = {
        "name": "scheduler",
        "value": worn["plan_us"],
        "unit": "µs per plan",
        "better": "lower",
        "baseline": fresh["plan_us"],
        "ratio": round(worn["plan_us"] / fresh["plan_us"], 3),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "running": RUNNING,
        "finished_before": rounds * RUNNING,
        "admit_32k_us": admitted,
        **{key: value for key, value in worn.items() if key != "plan_us"},
    }
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
