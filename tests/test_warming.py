"""benchmarks/warming: how long warm-ups take in virtual time, and pods that are real processes."""

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from warming.building import Built, Ran
from warming.figures import EVERY, FIVE, OURS, Begin, Group, by_compiler, chains, figures, per_key
from warming.replay import makespan, replay

HALF = Fraction(1, 2)


def test_stages_one_after_another_find_what_those_before_them_built() -> None:
    wants, costs = ["ab", "bc"], {"a": 5.0, "b": 7.0, "c": 11.0}
    one = replay(wants, [Fraction(0)] * 2, costs, workers=1, stages=2)
    assert (one.builds, one.seconds) == (3, pytest.approx(5 + 7 + 11, abs=0.2))
    both = replay(wants, [Fraction(0), HALF], costs, workers=1)
    assert (both.builds, both.seconds) == (3, pytest.approx(5 + 7, abs=0.4))


GROUP = Group(
    wants={EVERY: ["abcd"] * 2, OURS: ["abc"] * 2, FIVE: ["ab"] * 2},
    begins=[Fraction(0), HALF],
    stages=2,
    workers=1,
)
"""Two stages of one group."""


def test_each_ratio_differs_in_one_thing() -> None:
    found = chains(GROUP, dict.fromkeys("abcd", 100.0))
    rounded = {name: (each.builds, round(each.seconds, -1)) for name, each in found.items()}
    assert rounded == {
        "one stage after another, 1 to 16,384 tokens": (4, 400),
        "one stage after another, the engine's plan": (3, 300),
        "one stage after another, five numbers of tokens": (2, 200),
        "all stages at once, 1 to 16,384 tokens": (4, 200),
        "all stages at once, the engine's plan": (3, 200),
        "all stages at once, five numbers of tokens": (2, 100),
        "at once, nothing shared, the engine's plan": (6, 300),
    }
    told = figures(found, Begin(plan=60, compilers=40, find=40))
    ratios = {name: round(number, 1) for name, number in told.items() if name.endswith("ratio")}
    assert ratios == {
        "ratio": 2,
        "shapes_ratio": 1.3,
        "stages_ratio": 1.5,
        "dedup_ratio": 2,
        "warm_ratio": 10,
        "five_ratio": 4,
        "whole_ratio": 1.7,
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
