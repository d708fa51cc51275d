"""Last tokens by position: what the first stage may read, and which outputs were of no use."""

import pytest
from pds_engine.errors import ProtocolError
from pds_engine.messages import Admit, Row, Sampling, StepPlan
from pds_engine.parallel.reads import Reads


def admitted(*slots: int, prompt: int = 4, output: int = 0, gen: int = 1) -> Reads:
    reads = Reads()
    for slot in slots:
        admit(reads, slot, prompt=prompt, output=output, gen=gen)
    return reads


def admit(reads: Reads, slot: int, *, prompt: int = 4, output: int = 0, gen: int = 1) -> None:
    reads.admit(
        Admit(
            slot=slot,
            gen=gen,
            prompt_ids=tuple(range(prompt)),
            output_ids=tuple(range(output)),
            sampling=Sampling(max_tokens=8),
            seed=0,
            pages=(),
        )
    )


def chunk(slot: int, start: int, length: int, samples: bool = False, gen: int = 1) -> Row:
    return Row(slot=slot, gen=gen, start=start, length=length, samples=samples)


def decode(slot: int, start: int, gen: int = 1) -> Row:
    return chunk(slot, start, 1, samples=True, gen=gen)


def step(number: int, *rows: Row, on: int = -1) -> StepPlan:
    return StepPlan(
        step_id=number,
        rows=rows,
        expects_output=True,
        depends_on=on,
        padded_tokens=0,
    )


def test_chunks_and_the_last_of_what_was_given_read_no_token() -> None:
    reads = admitted(0, prompt=4, output=1)
    reads.check(step(0, chunk(0, 0, 3), chunk(0, 3, 1), decode(0, 4)))


def test_a_token_is_read_once_its_output_has_come() -> None:
    reads, first = admitted(0), step(0, chunk(0, 0, 4, samples=True))
    reads.check(first)
    with pytest.raises(ProtocolError) as raised:
        reads.check(step(1, decode(0, 4)))
    assert raised.value.message == (
        "step 1, which depends on step -1, reads the token of slot 0 at position 4, and the first "
        "stage does not know it: its last one is that of position 3, as the output of step 0 has "
        "not been received"
    )
    reads.accept(first)
    reads.check(step(1, decode(0, 4), on=0))


@pytest.mark.parametrize("start", [4, 6])
def test_a_token_of_another_position_is_not_read(start: int) -> None:
    reads = admitted(0, prompt=4)
    for number, row in enumerate((chunk(0, 0, 4, samples=True), decode(0, 4))):
        reads.check(step(number, row))
        reads.accept(step(number, row))
    with pytest.raises(ProtocolError, match="does not know it: its last one is that of position 5"):
        reads.check(step(2, decode(0, start)))


def test_several_positions_beyond_what_is_known_are_not_read() -> None:
    with pytest.raises(ProtocolError, match="slot 0 at position 4"):
        admitted(0).check(step(0, chunk(0, 3, 2)))


def test_an_output_of_another_generation_tells_nothing() -> None:
    reads = admitted(0)
    reads.release(0)
    admit(reads, 0, gen=2)
    reads.accept(step(0, chunk(0, 0, 4, samples=True, gen=1)))
    with pytest.raises(ProtocolError):
        reads.check(step(1, decode(0, 4, gen=2)))


def test_one_stage_reads_what_it_sampled() -> None:
    reads = admitted(0)
    for number, row in enumerate((chunk(0, 0, 4, samples=True), decode(0, 4), decode(0, 5))):
        reads.check(step(number, row))
        reads.sampled(step(number, row))
    assert reads.unneeded == 0


def test_an_output_is_needed_when_one_of_its_tokens_is_read() -> None:
    reads, both = admitted(0, 1), (chunk(0, 0, 4, samples=True), chunk(1, 0, 4, samples=True))
    reads.accept(step(0, *both))
    reads.check(step(1, decode(0, 4)))
    reads.release(0)
    reads.release(1)
    assert reads.unneeded == 0


def test_an_output_is_not_needed_when_all_its_tokens_go_unread() -> None:
    reads, both = admitted(0, 1), (chunk(0, 0, 4, samples=True), chunk(1, 0, 4, samples=True))
    reads.accept(step(0, *both))
    reads.release(0)
    assert reads.unneeded == 0  # the other may yet be read
    reads.release(1)
    assert reads.unneeded == 1


def test_an_output_without_a_token_for_anybody_is_not_needed() -> None:
    reads = admitted(0)
    reads.accept(step(0, chunk(0, 0, 2)))
    reads.accept(step(1, decode(0, 4, gen=7)))
    assert reads.unneeded == 2
