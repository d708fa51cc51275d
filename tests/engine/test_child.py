"""How a child process ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

from pds_engine.config import EngineConfig

WAITING = """
import sys, threading, time
from torch.distributed import HashStore, ProcessGroupGloo
import torch
from pds_engine import child
from pds_engine.errors import RankLost

store, groups = HashStore(), {}

def make(rank):
    groups[rank] = ProcessGroupGloo(store, rank, 2)

makers = [threading.Thread(target=make, args=(rank,)) for rank in range(2)]
for each in makers:
    each.start()
for each in makers:
    each.join()

def gather(rank):
    while True:
        groups[rank]._allgather_base(torch.zeros(2), torch.zeros(1)).wait()

def run(kind, folder, config):
    for rank in range(2):
        threading.Thread(target=gather, args=(rank,), daemon=True).start()
    time.sleep(0.2)
    raise RankLost("rank 1 has ended")

child._run = run
child.main()
"""


def test_a_thread_amid_a_collective_aborts_nothing(tmp_path: Path) -> None:
    """Python's own end would: of three runs, three ended with status -6."""
    (tmp_path / "config.json").write_text(EngineConfig().model_dump_json())
    words = [sys.executable, "-c", WAITING, "scheduler-0", str(tmp_path), str(os.getpid())]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    assert "scheduler-0 ends: rank 1 has ended" in done.stderr
    assert json.loads((tmp_path / "ended-scheduler-0.json").read_text())["error"]
