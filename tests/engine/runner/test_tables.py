"""Plans that do not fit what the slots hold are refused by name; slots come and go cleanly."""

import pytest
import torch
from msgspec import structs
from pds_engine.errors import ProtocolError
from pds_engine.messages import Admit, Release, Row, Sampling
from pds_engine.runner.tables import Tables

GREEDY = Sampling(max_tokens=4, temperature=0.0)


def admit(slot: int = 0, pages: tuple[int, ...] = (1, 2), prompt: int = 20) -> Admit:
    return Admit(
        slot=slot,
        gen=1,
        prompt_ids=tuple(range(prompt)),
        output_ids=(),
        sampling=GREEDY,
        seed=0,
        pages=pages,
    )


def test_pages_of_a_slot():
    tables = Tables(2, 4, 16, 50, 99, torch.device("cpu"))
    tables.admit(admit())
    tables.take([Row(slot=0, gen=1, start=20, length=1, new_pages=(7,))])
    assert tables.pages.tolist() == [[1, 2, 7, 99], [99] * 4, [99] * 4]
    tables.release(0, 1)
    assert tables.pages.unique().tolist() == [99]


def test_pages_from_behind_a_window_on():
    """Entries before the first page stay the null page; later pages follow by number."""
    tables = Tables(2, 5, 16, 50, 99, torch.device("cpu"))
    tables.admit(structs.replace(admit(prompt=50), pages=(5, 6), first_page=2))
    (slot,) = tables.take([Row(slot=0, gen=1, start=64, length=1, new_pages=(7,))])
    assert tables.pages[0].tolist() == [99, 99, 5, 6, 7]
    assert len(slot.pages) == 5
    tables.release(0, 1)
    assert tables.pages.unique().tolist() == [99]


def test_what_another_stage_sampled_reaches_the_slots_that_still_hold_the_request():
    tables = Tables(3, 4, 16, 50, 99, torch.device("cpu"), samples=False)
    for slot in (0, 1, 2):
        tables.admit(admit(slot))
    tables.release(1, 1)
    rows = [
        Row(slot=s, gen=g, start=20, length=1, samples=True) for s, g in ((2, 1), (1, 1), (0, 2))
    ]
    tables.accept(rows, (7, 8, 9))
    assert tables.last_token.tolist() == [0, 0, 7, 0]
    tables.accept(rows[1:], (5, 6))
    assert tables.last_token.tolist() == [0, 0, 7, 0]


@pytest.mark.parametrize(
    ("order", "says"),
    [
        (admit(), "slot 0, which is taken"),
        (admit(slot=2), "slot 2, which is taken or does not exist"),
        (admit(slot=1, pages=(1, 2, 3, 4, 5)), "has 5 pages, 4 is the most"),
    ],
)
def test_admissions_that_cannot_be(order, says):
    tables = Tables(2, 4, 16, 50, 99, torch.device("cpu"))
    tables.admit(admit())
    with pytest.raises(ProtocolError, match=says):
        tables.admit(order)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (Row(slot=0, gen=2, start=0, length=4), "generation 2, which holds 1"),
        (Row(slot=1, gen=1, start=0, length=4), "which holds none"),
        (Row(slot=0, gen=1, start=16, length=17), "position 33 with pages for 32"),
        (Row(slot=0, gen=1, start=16, length=5), "position 21 of 20 known tokens"),
    ],
)
def test_rows_that_cannot_be(row, says, driver, qwen3):
    runner = driver(qwen3)
    runner.runner.admit(admit())
    with pytest.raises(ProtocolError, match=says):
        runner.step([row])


def test_a_slot_is_free_only_after_its_last_step(driver, qwen3):
    runner = driver(qwen3)
    runner.runner.admit(admit())
    runner.runner.release(Release(slot=0, gen=1, after_step=0))
    with pytest.raises(ProtocolError, match="taken"):
        runner.runner.admit(admit())
    runner.step([Row(slot=0, gen=1, start=0, length=20, samples=True)])
    runner.runner.admit(admit())


def test_a_resumed_request_goes_on_as_one_that_never_moved(driver, qwen3):
    """Seeded sampling with penalties: the same tokens, whether or not some came with Admit."""
    sampling = Sampling(max_tokens=12, temperature=0.8, top_p=0.9, frequency_penalty=0.5)
    prompt = tuple(range(30, 50))
    (whole,) = driver(qwen3).run([prompt], sampling, seeds=[77])
    runner = driver(qwen3)
    tokens = list(whole.output[:5])
    runner.runner.admit(
        Admit(
            slot=3,
            gen=9,
            prompt_ids=prompt,
            output_ids=tuple(tokens),
            sampling=sampling,
            seed=77,
            pages=(5, 6, 7),
        )
    )
    row = Row(slot=3, gen=9, start=0, length=25, samples=True)
    tokens += runner.step([row]).tokens
    while len(tokens) < 12:
        start = len(prompt) + len(tokens) - 1
        row = Row(slot=3, gen=9, start=start, length=1, samples=True)
        tokens += runner.step([row]).tokens
    assert tokens == whole.output
