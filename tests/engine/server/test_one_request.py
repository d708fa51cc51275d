"""What goes wrong with one request ends that request, and nobody else's."""

import pytest
from msgspec.structs import replace
from pds_engine.errors import InvalidRequest
from pds_engine.messages import Cancel, Sampling, Submit, Token
from pds_engine.server.completion import CompletionFormat

C = "/v1/completions"
GOOD = Submit(request_id="good", prompt_ids=(1,), sampling=Sampling(max_tokens=9), seed=0)


@pytest.mark.parametrize(
    "change", [{"seed": 2**64}, {"priority": -(2**70)}, {"prompt_ids": (2**64,)}]
)
async def test_a_request_that_no_message_can_carry(served, script, taken, change):
    async with served(script([300])) as s:
        bad = s.scheduler_client.open([replace(GOOD, request_id="bad", **change)])
        good = s.scheduler_client.open([GOOD])
        with pytest.raises(InvalidRequest, match="Submit"):
            await taken(bad)
        ((_, token),) = await taken(good)
        assert token.token == 300
        assert s.scheduler_client.error is None
        assert s.scheduler.of(Submit) == [GOOD]
        assert s.scheduler_client.in_flight == 1


async def test_one_choice_of_several_takes_the_others_along(served, silent, taken):
    async with served(silent) as s:
        one = replace(GOOD, request_id="x#0")
        inbox = s.scheduler_client.open([one, replace(GOOD, request_id="x#1", seed=2**64)])
        with pytest.raises(InvalidRequest):
            await taken(inbox)
        s.scheduler_client.close("x#0", cancel=True)
        assert await s.scheduler.until(Cancel) == [Cancel(request_id="x#0")]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fails", ["chunk", "body", "usage"])
async def test_a_fault_of_ours_ends_one_answer(served, script, monkeypatch, fails, stream, caplog):
    real = getattr(CompletionFormat, fails)

    def broken(self, *given):
        if self._job.id == "cmpl-bad":
            raise KeyError("a fault of ours")
        return real(self, *given)

    monkeypatch.setattr(CompletionFormat, fails, broken)
    monkeypatch.setattr("secrets.token_hex", lambda _: names.pop(0))
    names = ["bad", "good"]
    body = {"prompt": "a", "stream": stream, "n": 2, "stream_options": {"include_usage": True}}
    body |= {"stream_options": None} if not stream else {}
    async with served(script([300, 301], end="length")) as s:
        bad = await s.client.post(C, json=body)
        good = await s.client.post(C, json=body)
        assert s.scheduler_client.error is None
        assert not s.scheduler_client._open
    assert good.status_code == 200 and "internal_error" not in good.text
    hit = stream == (fails != "body")
    assert ("internal_error" in bad.text) == hit
    if hit:
        assert bad.status_code == (200 if stream else 500)
        assert "[DONE]" not in bad.text
        assert "a fault of ours" in caplog.text  # the log has what the client does not learn
        assert "a fault of ours" not in bad.text


async def test_choices_of_a_stream_that_fails_of_us_are_cancelled(served, monkeypatch):
    def first_token(submit: Submit):
        yield Token(request_id=submit.request_id, index=0, token=300)

    def broken(self, event):
        raise ZeroDivisionError

    monkeypatch.setattr(CompletionFormat, "chunk", broken)
    async with served(first_token) as s:
        answer = await s.client.post(C, json={"prompt": "a", "stream": True, "n": 3})
        assert "internal_error" in answer.text
        cancelled = await s.scheduler.until(Cancel, 3)
        assert {m.request_id for m in cancelled} == {m.request_id for m in s.scheduler.of(Submit)}
