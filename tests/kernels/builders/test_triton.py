"""Triton kernels compiled ahead, in processes of their own: here Triton interprets."""

import sys
from pathlib import Path

import pytest
import torch
from ahead import build_one, elsewhere, keys, look_up
from pds_kernels.launching import Launch, recording
from pds_kernels.rms_norm import Geometry, choose
from pds_kernels.targets import gpu

META = torch.device("meta")


def norm_of(hidden: int, rows: int = 3) -> Launch:
    geometry = Geometry(hidden, torch.bfloat16, torch.bfloat16, 1e-6, META)
    x = torch.empty(rows, hidden, dtype=torch.bfloat16, device=META)
    with recording() as launches:
        choose(geometry).make(geometry)(x, x[0])
    (launch,) = launches
    return launch


def test_the_number_of_tokens_makes_no_variant() -> None:
    assert len({norm_of(64, rows) for rows in (1, 2, 16, 17, 4096)}) == 1


def test_a_pointer_that_is_not_aligned_is_another_variant() -> None:
    x = torch.empty(3, 65, dtype=torch.bfloat16, device=META)
    geometry = Geometry(64, torch.bfloat16, torch.bfloat16, 1e-6, META)
    with recording() as launches:
        for first in (0, 1):
            choose(geometry).make(geometry)(x[:, first : first + 64], x[0, :64])
    assert len(set(launches)) == 2


def test_a_process_on_the_gpu_finds_what_another_has_built(tmp_path: Path) -> None:
    """In place of the GPU's driver stands ours; it names the same target."""
    launch, built = norm_of(64), tmp_path / "artefact"
    built.mkdir()
    elsewhere(build_one, launch, built)
    assert elsewhere(look_up, launch, built, tmp_path / "cache") == [True]
    assert elsewhere(look_up, norm_of(128), built, tmp_path / "cache") == [False]


def test_the_key_holds_target_and_variant_and_no_path() -> None:
    wide, narrow, other = keys([norm_of(128), norm_of(64)])
    assert wide != narrow != other
    assert narrow["target"] == "sm_90" and other["target"] == "sm_100"
    places = (str(Path(__file__).parents[3]), sys.prefix)
    assert not any(place in str((wide, narrow, other)) for place in places)


@pytest.mark.parametrize("target", ["sm_9", "hopper", "cuda:90", "sm_42", ""])
def test_an_unknown_target_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="give one of sm_80"):
        gpu(target)
