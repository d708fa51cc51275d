"""Whole groups of real processes, scheduler and worker, driven as an API server would."""

import pytest
from forked import Forked
from pds_engine.messages import Source

pytestmark = pytest.mark.slow


def assert_ends_with(killed: Forked, other: Forked) -> None:
    """A group lives and dies as one."""
    killed.kill()
    assert other.wait(10) == 1


def test_requests_side_by_side_in_a_unified_group(start, shaped, greedy, prompt, submit):
    group = start(shaped(), "both")
    group.await_ready()
    asked = {f"r{seed}": prompt(length, seed) for seed, length in enumerate((1, 16, 33, 100))}
    found = group.collect(*(submit(name, ids, 12) for name, ids in asked.items()))
    tokens = {name: [token.token for token in sent] for name, sent in found.items()}
    assert tokens == {name: greedy(ids, 12) for name, ids in asked.items()}
    assert group.idle().kv_used == 0
    assert_ends_with(group.workers[0], group.scheduler)


def test_a_prompt_handed_over_from_group_to_group(start, shaped, greedy, prompt, submit):
    prefill = start(shaped(role="prefill"), "prefill")
    decode = start(shaped(role="decode"), "decode")
    prefill.await_ready()
    decode.await_ready()
    ids = prompt(107, 9)
    expected = greedy(ids, 10)
    source = Source(address=f"127.0.0.1:{prefill.port}", group="prefill")
    prefill.link.send(submit("r", ids, 10, role_hint="prefill"))
    decode.link.send(submit("r", ids, 10, role_hint="decode", source=source))
    assert prefill.tokens("r", 1) == expected[:1]
    assert decode.tokens("r", 10) == expected
    for group in (prefill, decode):
        idle = group.idle()
        assert (idle.kv_used, idle.transfers_in_flight, idle.kv_quarantined) == (0, 0, 0)
    assert_ends_with(prefill.scheduler, prefill.workers[0])


def test_a_chat_that_goes_on_computes_only_what_is_new(start, shaped, greedy, prompt, submit):
    group = start(shaped(), "both")
    group.await_ready()
    first = prompt(100, 3)
    answered = greedy(first, 30)
    second = (*first, *answered, *prompt(9, 4))
    for name, ids, count, cached in (
        ("new", first, 30, 0),
        ("again", first, 30, 96),
        ("goes-on", second, 10, 128),
    ):
        group.link.send(submit(name, ids, count))
        tokens = group.answer(name, count)
        assert tokens[0].cached_tokens == cached
        assert [token.token for token in tokens] == greedy(ids, count)
    idle = group.idle()
    assert (idle.kv_used, idle.prefix_hit_tokens, idle.prefix_query_tokens) == (0, 224, 339)


def test_a_chat_that_goes_on_is_handed_over_from_where_decode_has_it(
    start, shaped, greedy, prompt, submit
):
    prefill = start(shaped(role="prefill"), "prefill")
    decode = start(shaped(role="decode"), "decode")
    prefill.await_ready()
    decode.await_ready()
    source = Source(address=f"127.0.0.1:{prefill.port}", group="prefill")
    first = prompt(100, 9)
    second = (*first, *greedy(first, 30), *prompt(9, 4))
    for name, ids, cached, spared in (
        ("new", first, 0, 0),
        ("again", first, 96, 96),
        ("goes-on", second, 96, 96 + 128),  # P has the prompt alone, D the answer too
    ):
        prefill.link.send(submit(name, ids, 30, role_hint="prefill"))
        decode.link.send(submit(name, ids, 30, role_hint="decode", source=source))
        (token,) = prefill.answer(name, 1)
        expected = greedy(ids, 30)
        assert (token.token, token.cached_tokens) == (expected[0], cached)
        assert decode.tokens(name, 30) == expected
        idle = decode.idle()
        assert (idle.kv_used, idle.kv_quarantined, idle.prefix_hit_tokens) == (0, 0, spared)
        prefill.idle()
