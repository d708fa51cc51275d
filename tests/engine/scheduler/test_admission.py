"""What is wrong with one Submit ends that request alone."""

import pytest
from pds_engine.errors import RequestError
from pds_engine.messages import Submit
from pds_engine.scheduler.admission import reject_reason
from pds_engine.scheduler.settings import Settings
from scheduling.bench import MakeBench


def test_what_goes_wrong_with_one_submit_ends_that_request(
    bench: MakeBench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(message: Submit, settings: Settings, pages: int) -> RequestError | None:
        if message.request_id == "bad":
            raise ZeroDivisionError("a fault of ours")
        return reject_reason(message, settings, pages)

    monkeypatch.setattr("pds_engine.scheduler.scheduler.reject_reason", broken)
    b = bench()
    b.submit("before", 5, max_tokens=9)
    assert b.submit("bad", 5, max_tokens=9) == ["s failed bad 500 internal_error"]
    assert "a fault of ours" in caplog.text
    assert b.cancel("bad") == []
    assert b.submit("after", 5, max_tokens=9) == []
    assert b.plan()[:3] == [
        "workers admit 0/1 [0]",
        "workers admit 1/1 [1]",
        "workers step 0: 0:0+5* 1:0+5* <- -1",
    ]
