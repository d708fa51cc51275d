"""What a compiled library is found by."""

from dataclasses import replace
from pathlib import Path

import pytest
from pds_kernels.cpu import Library, here, isa


def test_a_headers_text_counts_as_the_sources_does(tmp_path: Path) -> None:
    source, header = tmp_path / "cpu.cpp", tmp_path / "block.h"
    source.write_text("one")
    header.write_text("two")
    library = Library("room", source, here())
    before = library.key_inputs()
    assert replace(library).key_inputs() == before
    header.write_text("three")
    assert library.key_inputs() != before


def test_a_better_instruction_set_may_be_left_unused() -> None:
    has = frozenset().union(*(each.needs for each in isa.ISAS))
    assert isa.best("x86_64", has).name == "avx512_bf16"
    assert isa.best("x86_64", has, "avx2").name == "avx2"
    assert isa.best("x86_64", frozenset(), "avx512").name == "baseline"
    with pytest.raises(ValueError, match="PDS_CPU_ISA is avx9: it may be avx512_bf16, avx512, "):
        isa.best("x86_64", has, "avx9")
