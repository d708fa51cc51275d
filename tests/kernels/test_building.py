"""Telling a compiler that was killed for memory from one that refuses, by what builders raise."""

import subprocess
from pathlib import Path

import pytest
from pds_kernels.building import was_killed


def raised(*words: str, text: bool) -> Exception:
    """What a builder raises of a compiler's end: its output, or the error of `subprocess`."""
    try:
        subprocess.run(words, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        return RuntimeError(f"C++ compile error\n{error.stderr}") if text else error
    raise AssertionError("it compiles")


@pytest.mark.parametrize("text", [False, True])
def test_gcc_whose_compiler_proper_is_killed(tmp_path: Path, text: bool) -> None:
    """gcc's driver itself ends with 1: only its words tell."""
    source, proper = tmp_path / "a.cpp", tmp_path / "cc1plus"
    source.write_text("int main() {}\n")
    proper.write_text("#!/bin/sh\nkill -9 $$\n")
    proper.chmod(0o755)
    error = raised("g++", "-B", str(tmp_path), "-c", str(source), "-o", "/dev/null", text=text)
    assert was_killed(error) == text
    source.write_text("int main() {\n")
    assert not was_killed(raised("g++", "-c", str(source), "-o", "/dev/null", text=text))


def test_signals_and_memory_errors() -> None:
    killed = raised("sh", "-c", "kill -9 $$", text=False)
    assert was_killed(killed)
    with pytest.raises(RuntimeError) as caught:
        raise RuntimeError("nvcc failed") from killed
    assert was_killed(caught.value)
    assert was_killed(raised("sh", "-c", "exit 137", text=False))
    assert was_killed(MemoryError())
    assert not was_killed(raised("sh", "-c", "kill -11 $$", text=False))
    assert not was_killed(None)
