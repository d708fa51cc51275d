"""Sliding windows in random schedules: mistakes in giving pages back show, by what is then read."""

import re
from collections.abc import Callable, Sequence

import pytest
from pds_engine.messages import Row, Sampling, Submit
from pds_engine.scheduler.allocation import Allocator
from pds_engine.scheduler.lifecycle import Ledger
from pds_engine.scheduler.prefill import Chunk
from pds_engine.scheduler.request import Request
from pds_engine.scheduler.settings import Settings
from pds_simulation import dp_schedules, model, schedules

Mutate = Callable[[pytest.MonkeyPatch], None]


def one_token_too_few(patch: pytest.MonkeyPatch) -> None:
    right = Settings.behind
    patch.setattr(Settings, "behind", lambda self, position: right(self, position + 1))


def steps_in_flight_do_not_count(patch: pytest.MonkeyPatch) -> None:
    chunks, decodes = Ledger.schedule_chunk, Ledger.schedule_decodes

    def chunk_gives_back(self: Ledger, request: Request, chunk: Chunk, step_id: int) -> Row:
        row = chunks(self, request, chunk, step_id)
        self.allocator.drop(request, request.computed)
        return row

    def decodes_give_back(self: Ledger, requests: Sequence[Request], step_id: int) -> list[Row]:
        rows = decodes(self, requests, step_id)
        for request in requests:
            self.allocator.drop(request, request.computed)
        return rows

    patch.setattr(Ledger, "schedule_chunk", chunk_gives_back)
    patch.setattr(Ledger, "schedule_decodes", decodes_give_back)


def nothing_is_promised_anew(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Allocator, "_again", lambda self, request, gone: 0)


def nothing_is_given_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Allocator, "drop", lambda self, request, position: None)


@pytest.mark.parametrize("make", [schedules.schedule, dp_schedules.schedule])
@pytest.mark.parametrize(
    ("mutate", "says"),
    [
        (one_token_too_few, "was given back"),
        (steps_in_flight_do_not_count, "was given back"),
        (nothing_is_promised_anew, "promised"),
        (nothing_is_given_back, "is the most|promised"),
    ],
)
def test_a_mistake_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
    mutate: Mutate,
    says: str,
    make: Callable[[int], schedules.Runs],
):
    mutate(monkeypatch)
    found = [str(error) for _, error in schedules.explore(0, 8, make)]
    assert any(re.search(says, error) for error in found)


def test_a_token_sees_its_window_alone():
    """Of two prompts that end alike, the last layer's answer differs while the window reaches
    what differs: with two layers, as far as two windows."""

    def first_token(prompt: tuple[int, ...], window: int | None) -> int:
        asked = Submit(request_id="r", prompt_ids=prompt, sampling=Sampling(max_tokens=1), seed=0)
        return model.answer(asked, 2, window).tokens[0]

    end = tuple(range(20))
    for window, alike in ((None, False), (20, False), (12, False), (11, False), (10, True)):
        said = {first_token((before, *end), window) for before in (1, 2)}
        assert (len(said) == 1) == alike
