"""benchmarks/warming: what stages want, and how long warm-ups take in virtual time."""

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from pds_kernels.builders.deep_gemm import Gemm
from warming.building import Built, Ran
from warming.figures import Begin, Group, by_compiler, figures, paths, per_key
from warming.replay import makespan, replay
from warming.shapes import DEEPSEEK, QWEN, Stage, five, gemms, weights

FIRST, LATER = Stage(dense=True, decodes=False), Stage(dense=False, decodes=True)
HALF = Fraction(1, 2)


def test_a_stage_multiplies_by_the_weights_of_its_layers() -> None:
    attention = ((2112, 7168), (24576, 1536), (32768, 512), (7168, 16384))
    shared = ((4096, 7168), (7168, 2048))
    assert weights(DEEPSEEK, LATER) == attention + shared
    assert weights(DEEPSEEK, FIRST) == (*attention, *shared, (36864, 7168), (7168, 18432))
    assert weights(QWEN, FIRST) == ()  # in bfloat16


def test_experts_have_padded_rows_and_in_decode_groups_masked_ones() -> None:
    found = [gemm for gemm in gemms(DEEPSEEK, LATER, (1, 300)) if gemm.layout != "dense"]
    assert found == [
        Gemm(128, 4096, 7168, "contiguous", 256),
        Gemm(384, 4096, 7168, "contiguous", 256),
        Gemm(256, 4096, 7168, "masked", 256, 1),
        Gemm(256, 4096, 7168, "masked", 256, 256),
        Gemm(128, 7168, 2048, "contiguous", 256),
        Gemm(384, 7168, 2048, "contiguous", 256),
        Gemm(256, 7168, 2048, "masked", 256, 1),
        Gemm(256, 7168, 2048, "masked", 256, 256),
    ]
    assert {gemm.layout for gemm in gemms(DEEPSEEK, FIRST, (1,))} == {"dense", "contiguous"}
    assert not list(gemms(QWEN, LATER, five(78)))


def test_stages_one_after_another_find_what_those_before_them_built() -> None:
    wants, costs = ["ab", "bc"], {"a": 5.0, "b": 7.0, "c": 11.0}
    one = replay(wants, [Fraction(0)] * 2, costs, workers=1, stages=2)
    assert (one.builds, one.seconds) == (3, pytest.approx(5 + 7 + 11, abs=0.2))
    both = replay(wants, [Fraction(0), HALF], costs, workers=1)
    assert (both.builds, both.seconds) == (3, pytest.approx(5 + 7, abs=0.4))


GROUP = Group(
    wants={"all": ["abcd"] * 2, "step": ["abc"] * 2, "ours": ["ab"] * 2},
    begins=[Fraction(0), HALF],
    stages=2,
    workers=1,
)
"""Two stages of one group."""


def test_each_ratio_differs_in_one_thing() -> None:
    found = paths(GROUP, dict.fromkeys("abcd", 100.0))
    rounded = {name: (each.builds, round(each.seconds, -1)) for name, each in found.items()}
    assert rounded == {
        "one stage after another, all counts": (4, 400),
        "one stage after another, every step": (3, 300),
        "one stage after another, our counts": (2, 200),
        "all stages at once, all counts": (4, 200),
        "all stages at once, every step": (3, 200),
        "all stages at once, our counts": (2, 100),
        "the same, and nothing shared": (4, 200),
    }
    told = figures(found, Begin(plan=60, compilers=40, find=40))
    ratios = {name: round(number, 1) for name, number in told.items() if name.endswith("ratio")}
    assert ratios == {
        "ratio": 4,
        "shapes_ratio": 2,
        "stages_ratio": 2,
        "dedup_ratio": 2,
        "warm_ratio": 10,
        "complete_ratio": 2,
        "whole_ratio": 2.5,
        "whole_warm_ratio": 5,
    }


def test_builds_are_counted_by_key_and_by_compiler() -> None:
    builds = (
        Built("launcher", "1", "triton", 1.0),
        Built("norm", "2", "triton", 2.0),
        Built("norm", "2", "triton", 4.0),
    )
    ran = Ran(builds, wall=1.0, cpu=(1.0,))
    assert per_key(ran) == {"keys": 2, "builds": 3, "most": 2, "least": 1}
    assert by_compiler(builds) == {
        "g++": {"builds": 1, "mean_s": 1.0, "most_s": 1.0},
        "triton": {"builds": 2, "mean_s": 3.0, "most_s": 4.0},
    }


@pytest.mark.parametrize("count", [1, 16, 17, 62])
def test_eight_pods_of_two_compilers_lose_one_build_at_most(count: int) -> None:
    took, bound = makespan(8, 2, count)
    assert took <= bound == -(-count // 16) + 1


def test_processes_that_begin_together_build_each_key_once_and_then_none(tmp_path: Path) -> None:
    words = [sys.executable, Path(__file__).with_name("warming_pods.py"), tmp_path]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    cold, warm = json.loads(done.stdout)
    assert cold == {"keys": 5, "builds": 5, "most": 1, "least": 1}
    assert warm == {"keys": 0, "builds": 0, "most": 0, "least": 0}
