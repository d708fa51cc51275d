"""The witness sees every program, by whichever way it is started; and moves clocks of processes."""

import subprocess
import sys
from pathlib import Path

import pytest
from witness import Start, Witness

WAYS = {
    "by subprocess": "subprocess.run(WORDS)",
    "by its bare name": "subprocess.run(['g++', '--version'])",
    "without our environment": "subprocess.run(WORDS, env={})",
    "by a shell": "os.system('g++ --version')",
    "by popen": "os.popen('g++ --version').read()",
    "by posix_spawn": "os.waitpid(os.posix_spawn(WORDS[0], WORDS, os.environ), 0)",
    "by a fork": "os.fork() or os.execv(WORDS[0], WORDS); os.wait()",
    "by a child": "multiprocessing.Process(target=subprocess.run, args=[WORDS]).start()",
    "by C itself": "ctypes.CDLL(None).system(b'/usr/bin/g++ --version')",
}
HEAD = """
import ctypes, multiprocessing, os, shutil, subprocess
WORDS = [shutil.which("g++"), "--version"]
"""


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    return Witness(tmp_path)


def run(witness: Witness, code: str) -> str:
    words = [sys.executable, "-c", HEAD + code]
    return subprocess.run(
        words, env=witness.environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_a_compiler_is_seen(witness: Witness, way: str) -> None:
    run(witness, way)
    assert any(start.is_compiler for start in witness.starts())


def test_what_a_compiler_starts_is_seen_too(witness: Witness) -> None:
    run(witness, "subprocess.run(['g++', '-x', 'c++', '-c', '-', '-o', os.devnull], input=b'')")
    names = {Path(start.path).name for start in witness.starts() if start.how == "started"}
    assert "cc1plus" in names
    assert any(name.endswith("-as") or name == "as" for name in names)


def test_other_programs_are_no_compilers(witness: Witness) -> None:
    run(witness, "subprocess.run(['true'])")
    found = witness.starts()
    assert any(Path(start.path).name == "true" for start in found)
    assert not any(start.is_compiler for start in found)


@pytest.mark.parametrize(
    ("path", "is_one"),
    [
        ("/usr/bin/x86_64-linux-gnu-g++-12", True),
        ("/usr/lib/gcc/x86_64-linux-gnu/12/cc1plus", True),
        ("/usr/bin/x86_64-linux-gnu-ld.bfd", True),
        ("/venv/triton/backends/nvidia/bin/ptxas-blackwell", True),
        ("nvcc", True),
        ("/usr/bin/python3.11", False),
        ("/sbin/ldconfig", False),
    ],
)
def test_compilers_are_known_by_their_names(path: str, is_one: bool) -> None:
    assert Start(2, 1, "asked", path).is_compiler is is_one


CLOCKS = """
import sys, threading, time
def all_():
    return time.time(), time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)
before = all_()
print(flush=True)
sys.stdin.readline()
print(*(b - a for a, b in zip(before, all_())))
begun = time.monotonic()
time.sleep(0.05)
threading.Event().wait(0.05)
print(time.monotonic() - begun, time.process_time())
"""


def jumped(witness: Witness, code: str) -> str:
    """What a program prints after its first line, at which its clocks jump by an hour."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=witness.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    process.stdout.readline()
    witness.move_clocks(3600)
    return process.communicate("\n", timeout=60)[0]


def test_clocks_jump_and_waits_stay_as_long(witness: Witness) -> None:
    jumps, waited = jumped(witness, CLOCKS).splitlines()
    assert all(3600 < float(jump) < 3660 for jump in jumps.split())
    length, cpu = map(float, waited.split())
    assert 0.1 <= length < 60 and cpu < 60


HEARTBEATS = """
import os, signal, sys, zmq
from pathlib import Path

def move(seconds):
    with Path(os.environ["PDS_WITNESS_CLOCK"]).open("r+b") as clock:
        clock.write((seconds * 10**9).to_bytes(8, "little"))

said, says = os.pipe()
peer = os.fork()
if not peer:  # it accepts, and is stopped: it answers no ping
    bound = zmq.Context().socket(zmq.PAIR)
    os.write(says, str(bound.bind_to_random_port("tcp://127.0.0.1")).encode())
    bound.recv()
    os.kill(os.getpid(), signal.SIGSTOP)
socket = zmq.Context().socket(zmq.PAIR)
socket.setsockopt(zmq.HEARTBEAT_IVL, 50)
socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 60_000)
events = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
socket.connect(f"tcp://127.0.0.1:{os.read(said, 9).decode()}")
socket.send(b"")
os.waitpid(peer, os.WUNTRACED)
move(3600)
lost = events.poll(500)  # and a ping is under way
move(7200)
print(lost, events.poll(500))
os.kill(peer, signal.SIGKILL)
os._exit(sys.stdout.flush() or 0)
"""


def test_no_peer_is_lost_by_a_jump(witness: Witness) -> None:
    """libzmq gives a peer up that has not answered for a minute: by a clock that does not jump."""
    assert run(witness, HEARTBEATS) == "0 0\n"
