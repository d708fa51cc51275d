"""Preemption with a real model: the scheduler's world has shown the rest."""

import pytest
from pds_engine.config import ParallelConfig
from pds_engine.messages import Sampling, State, Submit, Token

pytestmark = pytest.mark.slow

REQUESTS = [
    Submit(
        request_id=f"r{at}",
        prompt_ids=tuple((37 * at + i * i) % 200 for i in range(10 + 5 * at)),
        sampling=Sampling(max_tokens=80, temperature=at % 2, repetition_penalty=1.1),
        seed=at,
    )
    for at in range(4)
]
"""Of up to seven pages each."""


def answers(group) -> tuple[dict[str, list[int]], int]:
    """Every request's tokens, and how often one was preempted."""
    group.await_ready()
    for request in REQUESTS:
        group.link.send(request)
    tokens: dict[str, list[int]] = {request.request_id: [] for request in REQUESTS}
    preemptions = 0
    while any(len(found) < 80 for found in tokens.values()):
        message = group.receive()
        if isinstance(message, State):
            preemptions = message.preemptions
            continue
        assert isinstance(message, Token), message
        assert message.index == len(tokens[message.request_id])
        tokens[message.request_id].append(message.token)
    return tokens, preemptions


@pytest.mark.parametrize("stages", [1, 2])
def test_requests_that_are_preempted_answer_as_if_they_never_were(start, config, stages):
    """Greedy and seeded, with penalties: the same tokens in eight pages and in enough."""
    few = config.model_copy(
        update={
            "max_model_len": 128,
            "kv": config.kv.model_copy(update={"pages": 8}),
            "parallelism": ParallelConfig(pp=stages),
        }
    )
    found, preemptions = answers(start(few, "few"))
    assert preemptions > 0
    assert (found, 0) == answers(start(config, "enough"))
