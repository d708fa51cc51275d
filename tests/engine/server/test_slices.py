"""A request with a full inbox gives others their turn."""

import asyncio

from pds_engine.messages import Sampling, Submit, Token
from pds_engine.server.inbox import SLICE, Inbox
from pds_engine.server.scheduler_client import INBOX_BOUND


def test_a_full_inbox_is_worked_off_in_slices():
    inbox = Inbox(INBOX_BOUND)
    for index in range(SLICE * 20 + 1):
        assert inbox.put(0, Token(request_id="a", index=index, token=1)) == (index == 0)
    slices: list[list[int]] = []
    while inbox.waiting:
        slices.append([message.index for _, message in inbox.take()])
    assert [len(each) for each in slices] == [SLICE] * 20 + [1]
    assert [index for each in slices for index in each] == list(range(SLICE * 20 + 1))


async def test_messages_of_the_scheduler_are_taken_in_slices(served, turns):
    def flood(submit: Submit) -> list[Token]:
        return [Token(request_id=submit.request_id, index=at, token=5) for at in range(8000)]

    async with served(flood) as s, turns() as counted:
        inbox = s.scheduler_client.open(
            [Submit(request_id="a", prompt_ids=(1,), sampling=Sampling(max_tokens=9), seed=0)]
        )
        begun, came = counted.loop, 0
        while came < 8000:
            await asyncio.sleep(0)
            came += len(inbox.take())
        assert counted.loop - begun >= 8000 // SLICE


async def test_a_stream_of_many_choices_leaves_turns(served, tokenizer, turns):
    """48 choices whose tokens all come at once: a turn for others at each slice."""
    ids = tokenizer.encode("one two three") * 20

    def burst(submit: Submit) -> list[Token]:
        last = len(ids) - 1
        return [
            Token(
                request_id=submit.request_id,
                index=at,
                token=id,
                finish_reason="length" if at == last else None,
            )
            for at, id in enumerate(ids)
        ]

    async with served(burst, capacity=64) as s, turns() as counted:
        begun = counted.loop
        body = {"prompt": "a", "n": 48, "max_tokens": 999, "stream": True}
        answer = await s.client.post("/v1/completions", json=body)
        assert answer.text.endswith("data: [DONE]\n\n")
        assert counted.loop - begun >= 48 * len(ids) // SLICE
