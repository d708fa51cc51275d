"""Triton's launcher, compiled where no CUDA driver is, and found by Triton."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pds_kernels.builders.launcher import Launcher
from pds_kernels.builders.triton import install
from pds_kernels.targets import gpu

LOOK_UP = """
import os
import sys
from pathlib import Path
import triton
from triton.backends.nvidia import driver
from triton.runtime.build import compile_module_from_src

sys.setdlopenflags(os.RTLD_LAZY)  # the library in the driver's place defines nothing
triton.knobs.cache.dir = sys.argv[1]
source = (Path(driver.dirname) / "driver.c").read_text()
module = compile_module_from_src(source, "cuda_utils", [], driver.include_dirs, driver.libraries)
print(module.__file__, callable(module.launch))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artefact")
    Launcher(gpu("sm_90")).build(folder)
    return folder


def test_triton_loads_it_and_runs_no_compiler(built: Path, tmp_path: Path) -> None:
    """A library without content stands where the CUDA driver would be: it is not called."""
    cache, place = tmp_path / "cache", tmp_path / "driver"
    place.mkdir()
    empty = ["gcc", "-shared", "-Wl,-soname,libcuda.so.1", "-x", "c", os.devnull, "-o"]
    subprocess.run([*empty, str(place / "libcuda.so.1")], check=True)
    install(built, cache)
    surroundings = {**os.environ, "LD_LIBRARY_PATH": str(place), "CC": "/bin/false"}
    words = [sys.executable, "-c", LOOK_UP, str(cache)]
    done = subprocess.run(words, env=surroundings, capture_output=True, text=True, check=True)
    path, launches = done.stdout.split()
    assert launches == "True"
    assert Path(path).parent.parent == cache
    assert not list(cache.rglob("__grp__*"))


def test_its_key_holds_the_platform_and_no_path() -> None:
    inputs = Launcher(gpu("sm_90")).key_inputs()
    assert inputs == Launcher(gpu("sm_90", sms=78)).key_inputs()
    assert "x86_64" in inputs["platform"] or "aarch64" in inputs["platform"]
    assert not any(sys.prefix in value for value in inputs.values())


def test_a_compiler_that_refuses_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/bin/false")
    with pytest.raises(RuntimeError, match="refuses Triton's launcher"):
        Launcher(gpu("sm_90")).build(tmp_path)
