from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pds_engine.messages import TokenLogprobs
from pds_engine.text.emit import Event, Logprob, Rules, TextState, emit, finish
from pds_engine.text.stops import Stops
from pds_engine.text.tokenizer import Tokenizer

TINY = Tokenizer(Path(__file__).parents[3] / "examples" / "models" / "tiny")
EOS = 1


def rules(**more: object) -> Rules:
    return Rules(TINY, stop_ids=frozenset({EOS}), **more)  # type: ignore[arg-type]


def emitted(state: TextState, ids: list[int]) -> tuple[TextState, list[Event]]:
    events = []
    for id in ids:
        state, more = emit(state, id)
        events += more
    return state, events


def test_one_event_a_token_and_one_for_the_end():
    ids = [*TINY.encode("1 2"), EOS]
    state, events = emitted(TextState(rules()), ids)
    assert events == [
        Event("1", 1, (ids[0],), first=True),
        Event(" ", 2, (ids[1],)),
        Event("2", 3, (ids[2],)),
    ]
    assert finish(state, "stop", (EOS,)) == Event("", 4, (EOS,), finish_reason="stop")


def test_held_back_tokens_are_in_the_next_event_s_journal():
    ids = TINY.encode("😀")
    assert len(ids) > 2
    _, events = emitted(TextState(rules()), ids)
    assert [event.text for event in events] == ["", "😀"]  # the first token always shows
    assert events[1].ids == tuple(ids[1:])


def test_a_token_that_shows_nothing_copies_none_before_it():
    """Else hidden tokens, or a stop string that holds all back, cost their number squared."""
    state, _ = emitted(TextState(rules()), TINY.encode("a"))
    for _ in range(2000):
        before = state
        state, events = emit(state, 3)
        assert events == [] and state.pending is not None
        assert state.pending[0] is before.pending
    assert finish(state, "length").ids == (3,) * 2000


def test_text_that_may_begin_a_stop_string_is_held():
    ids = TINY.encode("a\n\nQ")
    state, events = emitted(TextState(rules(stops=Stops(("\n\nQ:",)))), ids)
    assert "".join(event.text for event in events) == "a"
    assert finish(state, "length").text == "\n\nQ"


def test_nothing_follows_a_stop_string():
    ids = TINY.encode("one two three")
    state, events = emitted(TextState(rules(stops=Stops(("two",)))), ids)
    assert "".join(event.text for event in events) == "one "
    assert state.stopped == "two"
    last = finish(state, "stop", (EOS,))
    assert (last.text, last.stop_reason) == ("", "two")
    assert state.count < len(ids)


def test_a_stop_string_can_be_kept():
    _, events = emitted(
        TextState(rules(stops=Stops(("two",)), include_stop=True)), TINY.encode("one two 3")
    )
    assert "".join(event.text for event in events) == "one two"


def test_stop_strings_wait_for_min_tokens():
    ids = TINY.encode("1 1 1")
    _, events = emitted(TextState(rules(stops=Stops(("1",)), min_tokens=3)), ids)
    assert "".join(event.text for event in events) == "1 "


def test_a_stop_token_of_the_client_s_shows_no_text_and_is_named():
    seven = TINY.encode("7")[0]
    state, events = emitted(
        TextState(Rules(TINY, stop_ids=frozenset({EOS, seven}))), [*TINY.encode("1"), seven]
    )
    assert [event.text for event in events] == ["1"]
    assert finish(state, "stop", (EOS,)).stop_reason == seven


def test_scores_come_with_their_token_and_its_place():
    state = TextState(rules())
    scores = TokenLogprobs(-0.5, ((9, -0.5),))
    one, two = TINY.encode("é")
    state, first = emit(state, one, scores)
    state, second = emit(state, two, scores)
    assert first[0].logprobs == (Logprob(one, 0, scores),)
    assert second[0].logprobs == (Logprob(two, 0, scores),)
    assert second[0].text == "é"


@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens(skip: bool):
    _, events = emitted(TextState(rules(skip_special=skip)), [3, *TINY.encode("x")])
    assert "".join(event.text for event in events) == ("x" if skip else "<|user|>x")


ids_ = st.one_of(
    st.lists(st.integers(0, 1535), min_size=1, max_size=16),
    st.text("ab\n😀é", min_size=1, max_size=8).map(TINY.encode),
)
stops_ = st.lists(st.text("ab\n😀é", min_size=1, max_size=3), max_size=2)


@settings(max_examples=100)
@given(ids_, stops_, st.integers(0, 16))
def test_prefill_s_and_decode_s_events_are_the_unified_stream(
    ids: list[int], stops: list[str], cut: int
):
    """D replays what P emitted, drops it and goes on: nothing is lost or doubled, at any cut."""
    start = TextState(rules(stops=Stops(stops)))
    whole, unified = emitted(start, ids)
    _, prefill = emitted(start, ids[:cut])
    replayed, _ = emitted(start, ids[:cut])
    state, decode = emitted(replayed, ids[cut:])
    assert prefill + decode == unified
    assert finish(state, "length") == finish(whole, "length")


@settings(max_examples=60)
@given(ids_)
def test_all_text_is_emitted(ids: list[int]):
    state, events = emitted(TextState(Rules(TINY, skip_special=False)), ids)
    text = "".join(event.text for event in [*events, finish(state, "length")])
    assert text == TINY.decode(ids, skip_special=False)
    journal = [id for event in [*events, finish(state, "length")] for id in event.ids]
    assert journal == ids
