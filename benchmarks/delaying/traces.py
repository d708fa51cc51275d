"""The traces: seeded, so that all policies see the same requests."""

import random

from delaying.fleet import Request, Trace

SEED = 13


def lengths(seed: int, count: int, prompt: tuple[int, int], output: tuple[int, int]) -> Trace:
    """Requests that all come at once, with lengths that are equally likely within bounds."""
    draw = random.Random(seed)
    sizes = [(draw.randint(*prompt), draw.randint(*output)) for _ in range(count)]
    return Trace([Request(0.0, *size) for size in sizes])


def poisson(seed: int, rate: float, trace: Trace) -> Trace:
    """The requests of a trace, `rate` a second."""
    draw = random.Random(seed + 1)
    at, requests = 0.0, []
    for request in trace.requests:
        at += draw.expovariate(rate)
        requests.append(Request(at, request.prompt, request.output, request.rank))
    return trace._replace(requests=requests)


# ---- the runs that others have published --------------------------------------------------------


def vllm_run(scale: float = 1.0) -> Trace:
    """#44558, workload A: 1,000 tokens in, 200 out, 24 requests a second, for two minutes."""
    return poisson(SEED, 24.0, lengths(SEED, int(3000 * scale), (1000, 1000), (200, 200)))


def sglang_run(scale: float = 1.0) -> Trace:
    """#16363's offline test: 800 prompts of up to 30,000 tokens, answers of up to 500."""
    return lengths(SEED, int(800 * scale), (1, 30000), (1, 500))


def atom_run(prompt: int, scale: float = 1.0) -> Trace:
    """#1611: 1,024 clients; lengths vary by a fifth, as in its usual benchmark."""
    sizes = (prompt * 4 // 5, prompt), (820, 1024)
    return lengths(SEED, int(5000 * scale), *sizes)._replace(clients=1024)


# ---- the traces on which policies are compared --------------------------------------------------


def chat(count: int) -> Trace:
    """Prompts of 500 to 1,500 tokens, answers of 100 to 300; all at once."""
    return lengths(SEED, count, (500, 1500), (100, 300))


def bursts(count: int) -> Trace:
    """Every minute, eight prompts of 6,000 tokens within 8 ms, each on its own idle rank."""
    draw = random.Random(SEED + 6)
    at = [60.0 * burst + draw.uniform(0.0, 0.008) for burst in range(count) for _ in range(8)]
    requests = [Request(arrival, 6000, 300, number % 8) for number, arrival in enumerate(at)]
    return Trace(sorted(requests, key=lambda request: request.arrival))


def skewed(rate: float, count: int) -> Trace:
    """Three of ten requests are for rank 0, the others for any."""
    draw = random.Random(SEED + 2)
    trace = poisson(SEED, rate, chat(count))
    for request in trace.requests:
        request.rank = 0 if draw.random() < 0.3 else draw.randrange(8)
    return trace


def mixed(count: int) -> Trace:
    """Four ranks have long prompts all the time, short answers; four have decode rows alone."""
    draw = random.Random(SEED + 3)
    long = [
        Request(0.0, draw.randint(8000, 24000), draw.randint(20, 80), number % 4)
        for number in range(count)
    ]
    short = [Request(0.0, 100, 2 * count, 4 + number % 4) for number in range(256)]
    return Trace(long + short)


def out_of_step(count: int) -> Trace:
    """sglang #35241: 16 clients, prompts of several chunks, so that ranks drift by a chunk."""
    trace = lengths(SEED + 4, count, (30000, 60000), (100, 300))
    return trace._replace(clients=16)


def few_long(rate: float, count: int) -> Trace:
    """One prompt of 50 has 20,000 tokens, the others have 100 to 500."""
    draw = random.Random(SEED + 5)
    trace = poisson(SEED, rate, lengths(SEED, count, (100, 500), (100, 300)))
    for request in trace.requests:
        if draw.random() < 0.02:
            request.prompt = 20000
    return trace
