"""Which groups a request gets: exact picks for exact fleets."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pds_engine.router.policy import Ask, Candidate, Pick, pick, shortage, terms


def p(key, kv="a", outstanding=0, **more):
    return Candidate(key, "prefill", kv, outstanding, **more)


def d(key, kv="a", outstanding=0, **more):
    return Candidate(key, "decode", kv, outstanding, **more)


def u(key, outstanding=0):
    return Candidate(key, "unified", "a", outstanding)


@pytest.mark.parametrize(
    ("fleet", "expected"),
    [
        ([p("p0"), d("d0")], Pick("p0", "d0")),
        ([u("u0")], Pick("u0")),
        ([p("p0", outstanding=5), p("p1", outstanding=4), d("d0")], Pick("p1", "d0")),
        ([p("p0"), d("d0", outstanding=5), d("d1", outstanding=4)], Pick("p0", "d1")),
        # never across fingerprints, whatever the load
        ([p("p0", "a"), d("d0", "b"), p("p1", "b", outstanding=9)], Pick("p1", "d0")),
        ([p("p0", "a"), d("d0", "b")], None),
        # nor across protocols, nor across control keys
        ([p("p0", protocol=2), d("d0"), p("p1", outstanding=9)], Pick("p1", "d0")),
        (
            [p("p0", key_id="k"), d("d0", key_id="l"), d("d1", key_id="k", outstanding=9)],
            Pick("p0", "d1"),
        ),
        ([p("p0", key_id="k"), d("d0", key_id="l")], None),
        # b's prefill groups are idle, but its one decode group is flooded
        (
            [p("p0", "a", 10), d("d0", "a", 10), p("p1", "b"), p("p2", "b"), d("d1", "b", 30)],
            Pick("p0", "d0"),
        ),
        ([p("p0", outstanding=10), d("d0", outstanding=10), u("u0", outstanding=19)], Pick("u0")),
        ([p("p0")], None),
        ([d("d0")], None),
        ([], None),
    ],
)
def test_least_tokens(fleet, expected):
    assert pick(fleet, Ask("leastTokens", turn=0)) == expected


@pytest.mark.parametrize("policy", ["leastTokens", "roundRobin"])
def test_equal_groups_take_turns(policy):
    fleet = [p("p0"), p("p1"), p("p2"), d("d0"), d("d1")]
    assert [pick(fleet, Ask(policy, turn)) for turn in range(6)] == [
        Pick("p0", "d0"),
        Pick("p1", "d1"),
        Pick("p2", "d0"),
        Pick("p0", "d1"),
        Pick("p1", "d0"),
        Pick("p2", "d1"),
    ]


@pytest.mark.parametrize("policy", ["leastTokens", "roundRobin"])
@given(heads=st.integers(1, 6), partners=st.integers(1, 6), first=st.integers(0, 5))
def test_every_pair_of_equal_groups_has_its_turn(policy, heads, partners, first):
    fleet = [p(f"p{i}") for i in range(heads)] + [d(f"d{i}") for i in range(partners)]
    all_of_them = heads * partners
    turns = range(first * all_of_them, (first + 1) * all_of_them)
    assert len({pick(fleet, Ask(policy, turn)) for turn in turns}) == all_of_them


@pytest.mark.parametrize("policy", ["leastTokens", "roundRobin"])
@given(partners=st.integers(2, 6), turn=st.integers(0, 100))
def test_one_head_meets_another_partner_each_time(policy, partners, turn):
    fleet = [p("p0"), *(d(f"d{i}") for i in range(partners))]
    assert pick(fleet, Ask(policy, turn)) != pick(fleet, Ask(policy, turn + 1))


def test_two_draws_for_one_request_are_not_one_and_the_same():
    fleet = [p("p0"), p("p1"), d("d0"), d("d1")]
    picks = Counter(pick(fleet, Ask("powerOfTwo", turn, seed=7)) for turn in range(400))
    assert min(picks.values()) > 60
    assert len(picks) == 4


def test_round_robin_does_not_look_at_loads():
    fleet = [p("p0", outstanding=1000), p("p1"), d("d0")]
    assert [pick(fleet, Ask("roundRobin", turn)).prefill for turn in range(4)] == [
        "p0",
        "p1",
        "p0",
        "p1",
    ]


def test_power_of_two_takes_the_lighter_of_two_drawn_ones():
    fleet = [u(f"u{i}", outstanding=i) for i in range(4)]
    picks = Counter(pick(fleet, Ask("powerOfTwo", turn, seed=7)).prefill for turn in range(600))
    assert picks["u3"] == 0  # the heaviest never wins
    assert picks["u0"] > picks["u1"] > picks["u2"] > 0
    again = [pick(fleet, Ask("powerOfTwo", turn, seed=7)) for turn in range(20)]
    assert again == [pick(fleet, Ask("powerOfTwo", turn, seed=7)) for turn in range(20)]


@pytest.mark.parametrize("policy", ["prefixAware", "session"])
def test_affinity_holds_until_its_group_is_loaded(policy):
    fleet = [p(f"p{i}") for i in range(4)] + [d("d0")]
    homes = {pick(fleet, Ask(policy, turn, affinity=b"chat-1")).prefill for turn in range(8)}
    assert len(homes) == 1
    (home,) = homes
    fewer = [c for c in fleet if c.key == home or c.role == "decode"] + [p("p9")]
    assert pick(fewer, Ask(policy, affinity=b"chat-1")).prefill in (home, "p9")
    flooded = [p(c.key, outstanding=100_000) if c.key == home else c for c in fleet]
    assert pick(flooded, Ask(policy, affinity=b"chat-1")).prefill != home
    spread = Counter(pick(fleet, Ask(policy, affinity=b"%d" % i)).prefill for i in range(400))
    assert min(spread.values()) > 50


@pytest.mark.parametrize(
    ("fleet", "expected"),
    [
        ([], "no ready group"),
        ([p("p0")], "no ready decode group"),
        ([d("d0")], "no ready prefill group"),
        (
            [p("p0", "a"), p("p1", "b"), d("d0", "c")],
            "no ready prefill and decode group share a KV fingerprint (prefill: a, b; decode: c)",
        ),
        (
            [p("p0"), d("d0", protocol=2)],
            "no ready prefill and decode group share a protocol (prefill: 1; decode: 2)",
        ),
        (
            [p("p0", key_id="k"), d("d0", key_id="l")],
            "no ready prefill and decode group share a control key (prefill: k; decode: l)",
        ),
        (
            [p("p0", "a", key_id="k"), p("p1", "b", key_id="l"), d("d0", "a", key_id="l")],
            "no ready prefill and decode group share a KV fingerprint, protocol and control key "
            "(prefill: a/1/k, b/1/l; decode: a/1/l)",
        ),
    ],
)
def test_shortage_names_what_is_missing(fleet, expected):
    assert shortage(fleet) == expected


candidates = st.lists(
    st.builds(
        Candidate,
        st.text("abcdef", min_size=1, max_size=4),
        st.sampled_from(["prefill", "decode", "unified"]),
        st.sampled_from(["x", "y", "z"]),
        st.integers(0, 10_000),
        st.integers(1, 2),
        st.sampled_from(["k", "l"]),
    ),
    max_size=12,
    unique_by=lambda c: c.key,
)
asks = st.builds(
    Ask,
    st.sampled_from(["leastTokens", "roundRobin", "powerOfTwo", "prefixAware", "session"]),
    st.integers(0, 2**40),
    st.integers(0, 9),
    st.binary(max_size=8),
)


@given(candidates, asks, st.randoms())
def test_a_pick_is_always_a_pair_on_equal_terms(fleet, ask, shuffle):
    chosen = pick(fleet, ask)
    mixed = list(fleet)
    shuffle.shuffle(mixed)
    assert pick(mixed, ask) == chosen  # whatever the order they are named in
    by_key = {c.key: c for c in fleet}
    if chosen is None:
        kvs = {terms(c) for c in fleet if c.role == "prefill"}
        assert not any(c.role == "unified" for c in fleet)
        assert not any(c.role == "decode" and terms(c) in kvs for c in fleet)
    elif chosen.decode is None:
        assert by_key[chosen.prefill].role == "unified"
    else:
        head, partner = by_key[chosen.prefill], by_key[chosen.decode]
        assert (head.role, partner.role) == ("prefill", "decode")
        assert (head.kv, head.protocol, head.key_id) == (
            partner.kv,
            partner.protocol,
            partner.key_id,
        )
