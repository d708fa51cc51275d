"""The pages that a request is admitted with: what the API server binds it by above dp 1."""

import pytest
from pds_engine.messages import Sampling, Submit
from pds_engine.scheduler.request import wanted
from scheduling.bench import MakeBench


@pytest.mark.parametrize(
    ("role", "resumable", "pages"),
    [("unified", False, 1), ("prefill", False, 1), ("decode", True, 2), ("decode", False, 5)],
)
def test_pages_by_role(bench: MakeBench, role: str, resumable: bool, pages: int) -> None:
    """16 tokens fill a page; with 64 more there are 80, the last without keys."""
    submit = Submit(
        request_id="r",
        prompt_ids=tuple(range(16)),
        sampling=Sampling(max_tokens=64),
        seed=0,
        resumable=resumable,
    )
    assert wanted(submit, bench(role=role).settings) == pages


def test_room_is_what_is_left_besides_the_queue(bench: MakeBench) -> None:
    b = bench(ranks=(8,), dp=2)

    def room() -> tuple[int, ...]:
        said = b.core.room()
        return said.seen, said.slots, said.pages, said.waiting

    assert room() == (0, 4, 8, 0)
    b.submit("a", 40, max_tokens=4)
    assert room() == (1, 3, 5, 0)  # admitted after the pass under way
    b.submit("b", 100, max_tokens=4)
    assert room() == (2, 2, 0, 2)  # not both can be
