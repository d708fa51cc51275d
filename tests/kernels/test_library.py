"""What a compiled library is found by."""

from dataclasses import replace
from pathlib import Path

from pds_kernels.cpu import Library, here


def test_a_headers_text_counts_as_the_sources_does(tmp_path: Path) -> None:
    source, header = tmp_path / "cpu.cpp", tmp_path / "block.h"
    source.write_text("one")
    header.write_text("two")
    library = Library("room", source, here())
    before = library.key_inputs()
    assert replace(library).key_inputs() == before
    header.write_text("three")
    assert library.key_inputs() != before
