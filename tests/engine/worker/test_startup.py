"""The budget of a start: phases are all of the time from a process's beginning to Ready."""

import subprocess
import sys
import time

import pytest
from pds_engine.worker.startup import STAT, Startup, age


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_phases_are_all_of_the_time():
    clock = Clock()
    startup = Startup(2.5, clock)
    for phase, seconds in (("kernels", 0.25), ("join", 1), ("weights", 3), ("kernels", 0.5)):
        clock.now += seconds
        startup.reached(phase)
    assert startup.seconds == (("import", 2.5), ("kernels", 0.75), ("join", 1), ("weights", 3))
    assert str(startup) == "7.25 s: import 2.50, kernels 0.75, join 1.00, weights 3.00"


@pytest.mark.parametrize("name", ["python", "a) (b 1 2"])
def test_the_age_of_a_process_is_read_whatever_it_is_called(name):
    fields = ["S", *["0"] * 18, "1250", "0", "0"]
    assert age(f"7 ({name}) {' '.join(fields)}", 20.0, 100) == 7.5
    assert age(f"7 ({name}) {' '.join(fields)}", 12.0, 100) == 0.0


def test_a_process_knows_when_it_began():
    """What it did before it asked is in its first phase."""
    code = (
        "import time; time.sleep(0.3)\n"
        "from pds_engine.worker.startup import Startup\n"
        "print(dict(Startup().seconds)['import'])"
    )
    begun = time.monotonic()
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.3 <= float(said.stdout) <= time.monotonic() - begun + 0.02
    assert STAT.exists()
