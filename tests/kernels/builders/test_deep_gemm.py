"""DeepGEMM's kernels for sm_90, planned and compiled without a GPU.

In place of the GPU stands ours; DeepGEMM, its keys and nvcc are the real ones.
"""

import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import triton
from pds_kernels.builders.deep_gemm import (
    DeepGemmKernel,
    Gemm,
    Planned,
    Toolchain,
    arguments,
    covering,
    environment,
    find,
    install,
    kernels,
    plan,
    planning,
    refusing,
    usage,
)
from pds_kernels.building import builds
from pds_kernels.targets import SHARED_LIMIT, gpu

HOPPER = gpu("sm_90")
SMALL = gpu("sm_90", sms=78)
"""H20."""
EVERY = [Gemm(m, 2112, 7168) for m in range(1, 64 * HOPPER.sms + 1)]
"""One weight, and all numbers of tokens up to the largest of upstream's five (sglang #26567)."""
UPSTREAM = [EVERY[m - 1] for m in (1, 128, 1024, 2112, 8448)]
DENSE = [EVERY[m - 1] for m in (1, 16, 17, 64, 128)]
CONTIGUOUS = Gemm(1024, 4096, 7168, "contiguous", groups=8)
MASKED = Gemm(128, 4096, 7168, "masked", groups=8, expected=16)


@pytest.fixture(scope="module")
def planned() -> dict[Gemm, Planned]:
    return {each.gemm: each for each in plan([*EVERY, CONTIGUOUS, MASKED], HOPPER)}


@pytest.fixture(scope="module")
def built(
    planned: dict[Gemm, Planned], tmp_path_factory: pytest.TempPathFactory
) -> tuple[DeepGemmKernel, Path]:
    kernel, folder = planned[DENSE[0]].kernel, tmp_path_factory.mktemp("artefact")
    before = builds()
    seconds = time.monotonic()
    kernel.build(folder)
    print(f"nvcc: {time.monotonic() - seconds:.1f} s")
    assert builds() == before + 1
    return kernel, folder


def counting(tmp_path: Path) -> tuple[Path, Path]:
    """An nvcc that writes down every call of it, and the file it writes to."""
    program, calls = tmp_path / "nvcc", tmp_path / "calls"
    calls.touch()
    real = shlex.quote(str(find().nvcc))
    program.write_text(f'#!/bin/sh\necho "$*" >> {shlex.quote(str(calls))}\nexec {real} "$@"\n')
    program.chmod(0o755)
    return program, calls


def launched(gemms: list[Gemm], cache: Path, nvcc: Path, scratch: Path) -> list[Path]:
    """The files that a fresh process's DeepGEMM launches for `gemms`."""
    scratch.mkdir()
    answers = planning.ask(gemms, HOPPER, scratch, environment(cache, nvcc, find()))
    return [Path(answer["cubin"]) for answer in answers]


def test_deep_gemm_names_the_kernels(planned: dict[Gemm, Planned]) -> None:
    names = {gemm: each.kernel.function for gemm, each in planned.items()}
    assert names == {
        **dict.fromkeys(EVERY, "sm90_fp8_gemm_1d2d"),
        CONTIGUOUS: "sm90_m_grouped_fp8_gemm_contiguous_1d2d",
        MASKED: "sm90_fp8_m_grouped_gemm_masked_1d2d",
    }
    for kernel in kernels(planned.values()):
        shared = max(each.shared for each in planned.values() if each.kernel == kernel)
        print(f"{kernel.name}: {shared} bytes shared")
        assert shared <= SHARED_LIMIT


def test_five_numbers_of_tokens_do_not_find_all_kernels(planned: dict[Gemm, Planned]) -> None:
    """Hence all are planned: the rest would be compiled while serving."""
    found = kernels(planned[gemm] for gemm in UPSTREAM)
    served = [gemm for gemm in EVERY if planned[gemm].kernel in found]
    assert (len(found), len(kernels(planned[gemm] for gemm in EVERY))) == (5, 24)
    assert (len(served), len(EVERY)) == (2512, 8448)


def test_multiples_of_the_smallest_tile_find_all_kernels(planned: dict[Gemm, Planned]) -> None:
    """A number of tokens between two has the kernel of the greater one."""
    found = covering(UPSTREAM, len(EVERY))
    assert {(each.n, each.k) for each in found} == {(2112, 7168)}
    tiles = {each.m: planned[each].kernel for each in found}
    assert list(tiles) == list(range(16, len(EVERY) + 1, 16))
    assert all(planned[gemm].kernel == tiles[-(-gemm.m // 16) * 16] for gemm in EVERY)


@pytest.mark.soak
@pytest.mark.parametrize(("n", "k"), [(576, 7168), (24576, 1536), (7168, 16384), (64, 128)])
def test_so_they_do_of_other_weights(n: int, k: int) -> None:
    every = [Gemm(m, n, k) for m in range(1, 4097)]
    found = {each.gemm.m: each.kernel for each in plan(every, HOPPER)}
    assert all(kernel == found[-(-m // 16) * 16] for m, kernel in found.items())


def test_calls_share_kernels(planned: dict[Gemm, Planned]) -> None:
    one, sixteen, seventeen, *_ = (planned[gemm].kernel for gemm in DENSE)
    assert one == sixteen != seventeen


@pytest.mark.soak
def test_another_number_of_multiprocessors_is_another_kernel(planned: dict[Gemm, Planned]) -> None:
    (other,) = plan(DENSE[:1], SMALL)
    ours = planned[DENSE[0]].kernel
    assert other.kernel.entry != ours.entry
    assert other.kernel.key_inputs() != ours.key_inputs()


def test_the_key_holds_no_path(planned: dict[Gemm, Planned]) -> None:
    kernel = planned[DENSE[0]].kernel
    inputs = kernel.key_inputs()
    assert not any(place in str(inputs) for place in (sys.prefix, "site-packages"))
    elsewhere = replace(
        kernel,
        flags=tuple(word.replace(sys.prefix, "/other") for word in kernel.flags),
        entry="kernel.other",
        toolchain=replace(kernel.toolchain, home=Path("/other"), nvcc=Path("/other/bin/nvcc")),
    )
    assert elsewhere.flags != kernel.flags and elsewhere.key_inputs() == inputs
    newer = replace(kernel.toolchain, version="Cuda compilation tools, release 13.2, V13.2.51")
    for other in (
        replace(kernel, source=kernel.source + "\n"),
        replace(kernel, flags=(*kernel.flags, "-lineinfo")),
        replace(kernel, library="0.2.0"),
        replace(kernel, toolchain=newer),
    ):
        assert other.key_inputs() != inputs


@pytest.mark.slow
def test_a_process_on_the_gpu_finds_what_another_has_built(
    built: tuple[DeepGemmKernel, Path], tmp_path: Path
) -> None:
    """Its nvcc refuses to compile: of two kernels, the one that is not there is missed."""
    kernel, folder = built
    cache, nvcc, refused = tmp_path / "cache", tmp_path / "nvcc", tmp_path / "nvcc.refused"
    install(kernel, folder, cache)
    refusing(nvcc, find())
    with pytest.raises(RuntimeError, match=r"DeepGEMM refuses dense 17x2112x7168"):
        launched([DENSE[0], DENSE[1], DENSE[2]], cache, nvcc, tmp_path / "scratch")
    assert len(refused.read_text().splitlines()) == 1


@pytest.mark.soak
def test_nvcc_makes_what_deep_gemm_would_have_made(
    built: tuple[DeepGemmKernel, Path], tmp_path: Path
) -> None:
    """DeepGEMM compiles for itself here, under the same name; then the code is compared."""
    kernel, folder = built
    cache = tmp_path / "cache"
    nvcc, calls = counting(tmp_path)
    theirs = cache / "cache" / kernel.entry / "kernel.cubin"
    assert launched(DENSE[:2], cache, nvcc, tmp_path / "scratch") == [theirs, theirs]
    assert [line != "--version" for line in calls.read_text().splitlines()] == [False, True]
    assert theirs.with_name("kernel.cu").read_text() == (folder / "kernel.cu").read_text()
    assert instructions(theirs) == instructions(folder / "kernel.cubin")


def instructions(cubin: Path) -> str:
    return shown("--dump-sass", cubin)


def shown(what: str, cubin: Path) -> str:
    words = [triton.knobs.nvidia.cuobjdump.path, what, str(cubin)]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def test_a_kernel_fits_hopper(
    planned: dict[Gemm, Planned], built: tuple[DeepGemmKernel, Path]
) -> None:
    kernel, folder = built
    took = usage(folder, planned[DENSE[0]].shared)
    print(f"{kernel.name}: {took}")
    assert took.stack == 0
    assert took.shared <= SHARED_LIMIT
    assert shown("--list-elf", folder / "kernel.cubin").split()[-1] == "kernel.sm_90a.cubin"
    assert instructions(folder / "kernel.cubin").count("Function : ") == 1


def test_an_artefact_of_another_kernel_is_not_installed(
    planned: dict[Gemm, Planned], built: tuple[DeepGemmKernel, Path], tmp_path: Path
) -> None:
    _, folder = built
    with pytest.raises(ValueError, match="is not sm90_fp8_gemm_1d2d"):
        install(planned[DENSE[2]].kernel, folder, tmp_path)
    assert not (tmp_path / "cache").exists()


def test_an_entry_is_installed_once(built: tuple[DeepGemmKernel, Path], tmp_path: Path) -> None:
    kernel, folder = built
    for _ in range(2):
        install(kernel, folder, tmp_path)
    assert [each.name for each in (tmp_path / "cache").iterdir()] == [kernel.entry]


def test_nvcc_says_what_it_refuses(planned: dict[Gemm, Planned], tmp_path: Path) -> None:
    broken = replace(planned[DENSE[0]].kernel, source="#error this is no kernel\n")
    with pytest.raises(RuntimeError, match="this is no kernel"):
        broken.build(tmp_path)


def test_kernels_for_blackwell_are_not_planned() -> None:
    with pytest.raises(ValueError, match="sm_90, not for sm_100"):
        plan(DENSE, gpu("sm_100"))


def test_nvcc_that_does_not_run_is_named(tmp_path: Path) -> None:
    broken = Toolchain(tmp_path, tmp_path / "nvcc", "release 13.0, V13.0.88", "3000001")
    with pytest.raises(RuntimeError, match=r"stand_in.cpp"):  # it has no CUDA headers
        plan(DENSE, HOPPER, broken)


@pytest.mark.parametrize(
    ("gemm", "scales", "strides"),
    [
        (Gemm(5, 256, 384), (5, 3), (1, 8)),
        (Gemm(128, 256, 384, "contiguous", 2), (128, 3), (1, 128)),
        (Gemm(5, 256, 384, "masked", 2), (2, 5, 3), (24, 1, 8)),
    ],
)
def test_scales_lie_by_columns_of_whole_sixteen_bytes(
    gemm: Gemm, scales: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    spec = arguments(gemm)[1]
    assert (spec.shape, spec.strides) == (scales, strides)
