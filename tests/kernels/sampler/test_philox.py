"""Random123's known answers (kat_vectors, philox4x32 10), and what the noise depends on."""

import pytest
import torch
from pds_kernels.sampler.philox import Draws, philox

CPU = torch.device("cpu")

KNOWN = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter, key, expected):
    words = philox([torch.tensor([c]) for c in counter], [torch.tensor([k]) for k in key])
    assert tuple(int(word) for word in words) == expected


def noise(seed: int = 5, choice: int = 0, index: int = 0, vocab: int = 10) -> torch.Tensor:
    return Draws.of([seed], [choice], [index], CPU).gumbel(range(vocab))[0]


def test_a_token_s_noise_does_not_depend_on_the_vocabulary_or_the_batch():
    assert torch.equal(noise(vocab=7), noise(vocab=1000)[:7])
    batch = Draws.of([9, 5, 5], [0, 0, 1], [3, 0, 0], CPU).gumbel(range(10))
    assert torch.equal(batch[1], noise())
    assert torch.equal(batch[2], noise(choice=1))


@pytest.mark.parametrize("ids", [range(50), range(3, 50), range(17, 18), range(36, 41)])
def test_a_shard_s_noise_is_its_part_of_the_whole(ids):
    draws = Draws.of([5, 8], [0, 2], [1, 1 << 20], CPU)
    whole = draws.gumbel(range(60))
    assert torch.equal(draws.gumbel(ids), whole[:, ids.start : ids.stop])
    assert draws.gumbel(range(4, 4)).shape == (2, 0)


def test_noise_of_chosen_ids():
    draws = Draws.of([5, 8], [0, 2], [1, 1 << 20], CPU)
    ids = torch.tensor([[7, 0, 59], [59, 58, 3]])
    assert torch.equal(draws.gumbel_of(ids), draws.gumbel(range(60)).gather(1, ids))


def test_each_part_of_the_key_matters():
    keys = [{}, {"seed": 6}, {"seed": 5 + (1 << 32)}, {"choice": 1}, {"index": 1}]
    seen = {tuple(noise(**key).tolist()) for key in keys}
    assert len(seen) == len(keys)


def test_the_noise_is_gumbel():
    values = noise(vocab=200_000)
    assert values.isfinite().all()
    assert values.mean() == pytest.approx(0.5772, abs=0.01)
    assert values.std() == pytest.approx(1.2825, abs=0.01)
