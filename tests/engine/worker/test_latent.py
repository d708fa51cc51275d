"""Latent attention in groups of real processes: their tokens are transformers', and pages that all
ranks of a tp group have are handed over once."""

from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from pds_engine.config import EngineConfig
from pds_engine.messages import State, Token
from pds_engine.models.loader import load
from pds_engine.parallel.collectives import Alone
from pds_engine.worker.process import kv_format, make_pool
from real_group import Group, handed_over
from runner_driver import Reference

pytestmark = pytest.mark.slow

LENGTHS = (1, 16, 33, 100, 190)
"""Chunks of 32 expand keys and values of latents, and steps of one token absorb: both are here."""


class Shard(Alone):
    """One of several shards that never speak to each other: enough to load one."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as DeepSeek-V3: a layer with a dense block, and three with experts."""
    import transformers

    torch.manual_seed(5)
    config = transformers.DeepseekV3Config(
        vocab_size=200,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        first_k_dense_replace=1,
        n_routed_experts=16,
        num_experts_per_tok=4,
        moe_intermediate_size=24,
        n_group=4,
        topk_group=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=20,
        kv_lora_rank=24,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=12,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 64,
        },
    )
    folder = tmp_path_factory.mktemp("latent")
    transformers.DeepseekV3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected(path):
    """Greedy tokens of transformers."""
    reference = Reference()
    return lambda ids, count: reference(path, ids, count)


def layout(shaped, path, role, tp=1, pp=1):
    return shaped(model__path=str(path), role=role, parallelism__tp=tp, parallelism__pp=pp)


@pytest.mark.parametrize("split", [{"tp": 2}, {"pp": 2}, {"tp": 2, "pp": 2}], ids=str)
def test_a_group_gives_the_tokens_of_the_whole_model(
    lone, shaped, path, expected, prompt, submit, split
):
    group = lone(layout(shaped, path, "unified", **split))
    asked = [submit(f"u{length}", prompt(length, length), 12) for length in LENGTHS]
    found = group.collect(*asked)
    tokens = {name: [token.token for token in sent] for name, sent in found.items()}
    assert tokens == {each.request_id: expected(each.prompt_ids, 12) for each in asked}


@pytest.mark.parametrize(
    ("number", "p", "d"), [(0, {"tp": 2}, {}), (1, {}, {"tp": 2}), (2, {"tp": 2}, {"pp": 2})]
)
def test_latents_are_handed_over(running, shaped, path, expected, prompt, submit, number, p, d):
    """Twice: the second time both sides have the prompt's whole pages in their prefix caches."""
    prefill = running(layout(shaped, path, "prefill", **p))
    decode = running(layout(shaped, path, "decode", **d))
    asked = [submit(f"{number}-{n}", prompt(n, 7 * number + n), 12) for n in LENGTHS]
    again = [replace(each, request_id=f"{each.request_id}-again") for each in asked]
    hits = []
    for batch in (asked, again):
        found = handed_over(prefill, decode, batch)
        tokens = {name: [token.token for token in sent] for name, sent in found.items()}
        assert tokens == {each.request_id: expected(each.prompt_ids, 12) for each in batch}
        states = [group.idle() for group in (prefill, decode)]
        assert [(state.kv_used, state.kv_quarantined) for state in states] == [(0, 0)] * 2
        hits.append([state.prefix_hit_tokens for state in states])
    pages = sum((length - 1) // 16 for length in LENGTHS)
    assert [after - before for before, after in zip(*hits, strict=True)] == [16 * pages] * 2


def test_a_stream_goes_on_in_another_pair(running, shaped, path, expected, prompt, submit):
    """After seven tokens that another pair has given, as a migration has it."""
    prefill = running(layout(shaped, path, "prefill", tp=2))
    decode = running(layout(shaped, path, "decode"))
    ids = prompt(100, 4)
    right = expected(ids, 20)
    asked = submit("moved", ids, 20, output_ids=tuple(right[:7]))
    prefill.send(replace(asked, role_hint="prefill"))
    decode.send(replace(asked, role_hint="decode", source=prefill.source))
    (first,) = received(prefill, 1)
    assert (first.index, first.token) == (7, right[7])
    assert [(token.index, token.token) for token in received(decode, 13)] == [
        (at, right[at]) for at in range(7, 20)
    ]


def received(group: Group, count: int) -> list[Token]:
    """The next `count` tokens, of whatever index they are."""
    found: list[Token] = []
    while len(found) < count:
        message = group.receive()
        assert isinstance(message, Token | State), message
        found += [message] if isinstance(message, Token) else []
    return found


def test_requests_that_are_preempted_answer_as_if_they_never_were(
    lone, shaped, path, expected, prompt, submit
):
    few = layout(shaped, path, "unified").model_dump() | {"max_model_len": 128}
    few["kv"]["pages"] = 8
    group = lone(EngineConfig.model_validate(few))
    asked = [submit(f"p{at}", prompt(10 + 5 * at, at), 60) for at in range(4)]
    found = group.collect(*asked)
    tokens = {name: [token.token for token in sent] for name, sent in found.items()}
    assert tokens == {each.request_id: expected(each.prompt_ids, 60) for each in asked}
    assert group.idle().preemptions > 0


def test_pages_hold_the_latent_alone(shaped, path):
    """Of a token (kv_rank + rope_dim) · layers numbers, whole on every rank."""
    config = layout(shaped, path, "prefill", tp=2)
    cpu, formats = torch.device("cpu"), []
    for rank in range(2):
        decoder = load(config, rank, cpu, Shard(rank, 2))
        formats.append(kv_format(config, decoder))
        _, pool = make_pool(config, decoder, formats[-1], cpu)
        assert pool.bytes_per_page == 16 * (24 + 8) * 4 * 4
    assert formats[0] == formats[1]
    assert (formats[0].latent, formats[0].kv_heads, formats[0].head_dim) == (32, 1, 0)
