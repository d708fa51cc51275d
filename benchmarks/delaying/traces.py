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
