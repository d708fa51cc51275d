"""Random123's known answers (kat_vectors, philox4x32 10), and what the noise depends on."""

import pytest
import torch
from pds_engine.runner.philox import gumbel, philox

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
    return gumbel([seed], [choice], [index], vocab, torch.device("cpu"))[0]


def test_a_token_s_noise_does_not_depend_on_the_vocabulary_or_the_batch():
    assert torch.equal(noise(vocab=7), noise(vocab=1000)[:7])
    batch = gumbel([9, 5, 5], [0, 0, 1], [3, 0, 0], 10, torch.device("cpu"))
    assert torch.equal(batch[1], noise())
    assert torch.equal(batch[2], noise(choice=1))


def test_each_part_of_the_key_matters():
    keys = [{}, {"seed": 6}, {"seed": 5 + (1 << 32)}, {"choice": 1}, {"index": 1}]
    seen = {tuple(noise(**key).tolist()) for key in keys}
    assert len(seen) == len(keys)


def test_the_noise_is_gumbel():
    values = noise(vocab=200_000)
    assert values.isfinite().all()
    assert values.mean() == pytest.approx(0.5772, abs=0.01)
    assert values.std() == pytest.approx(1.2825, abs=0.01)
