import pytest
from pds_engine.messages import Sampling, Submit
from pds_engine.scheduler.party import Party
from pds_engine.scheduler.prefill import Chunk, ChunkPolicy, next_chunk
from pds_engine.scheduler.request import Request


@pytest.mark.parametrize(
    ("computed", "budget", "expected"),
    [
        (0, 512, Chunk(slot=3, start=0, length=512, samples=False)),
        (0, 500, Chunk(slot=3, start=0, length=496, samples=False)),  # cut to pages of 16
        (0, 9999, Chunk(slot=3, start=0, length=512, samples=False)),  # the policy's bound
        (512, 512, Chunk(slot=3, start=512, length=512, samples=False)),
        (1024, 512, Chunk(slot=3, start=1024, length=10, samples=True)),  # keeps its odd length
        (1024, 10, Chunk(slot=3, start=1024, length=10, samples=True)),
        (1024, 9, None),  # less than a page, and not the end: wait
        (0, 15, None),
        (0, 0, None),
    ],
)
def test_next_chunk(computed: int, budget: int, expected: Chunk | None) -> None:
    submit = Submit(
        request_id="r",
        prompt_ids=(0,) * 1030,
        output_ids=(1,) * 4,  # given tokens are computed like the prompt's
        sampling=Sampling(max_tokens=9),
        seed=0,
    )
    request = Request(submit, Party("server"), 0, 0.0, computed=computed, slot=3)
    assert next_chunk(request, budget, ChunkPolicy(512, 16)) == expected
