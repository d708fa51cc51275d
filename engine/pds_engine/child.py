"""What a child process of `launch` runs: `python -m pds_engine.child KIND FOLDER LAUNCH`.

FOLDER is private to the group on this pod. config.json, launch.json and the keys lie there. A child
that a wrong setting stops leaves error.json, which launch reports. One that ends for any other
reason that it knows leaves ended-KIND.json. LAUNCH is the process id of launch.
"""

import ctypes
import faulthandler
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from pds_engine import log
from pds_engine.config import EngineConfig
from pds_engine.ending import LastWords
from pds_engine.errors import EXIT_CONFIG, ConfigError, PdsError
from pds_engine.keys import Keys

_PR_SET_PDEATHSIG = 1
logger = logging.getLogger("pds.child")


def main() -> None:
    faulthandler.enable()  # a crash in native code says on stderr where each thread was
    kind, folder, parent = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    _die_with(parent)
    config = EngineConfig.model_validate_json((folder / "config.json").read_text())
    log.configure(config.log_level)
    try:
        _run(kind, folder, config)
    except ConfigError as error:
        note = {"error": error.message, "hint": error.hint}
        (folder / "error.json").write_text(json.dumps(note))
        _end(EXIT_CONFIG)
    except PdsError as error:
        LastWords.now(str(error)).write(folder, kind)
        logger.error("%s ends: %s", kind, error, extra={"code": error.code})
        _end(1)


def _end(status: int) -> None:
    """Without the interpreter's own end: a thread may wait in a collective for a rank that is gone,
    and Python cannot stop it there but by aborting (status -6)."""
    logging.shutdown()
    sys.stderr.flush()
    os._exit(status)


def _run(kind: str, folder: Path, config: EngineConfig) -> None:
    """Each kind imports only its own part: the server never loads torch."""
    keys = Keys.read(folder)
    launch = json.loads((folder / "launch.json").read_text())
    incarnation: str = launch["incarnation"]
    schedulers: list[str] = launch["schedulers"]
    if kind.startswith("scheduler"):
        _run_scheduler(int(kind.partition("-")[2] or 0), config, keys, launch)
    elif kind == "server":
        if config.pod.index:
            from pds_engine.server import rank_pod

            rank_pod.run(config, keys, schedulers)
        else:
            from pds_engine.server import app

            app.run(config, keys, schedulers, incarnation)
    else:
        from pds_engine.worker import process as worker_process

        rank = int(kind.removeprefix("worker-"))
        worker_process.run(config, keys, schedulers, rank, incarnation)


def _run_scheduler(dp_rank: int, config: EngineConfig, keys: Keys, launch: dict[str, Any]) -> None:
    """Its own modules import no torch; above dp 1 on the host the port that gathers rows does."""
    from pds_engine.models.registry import read_spec
    from pds_engine.parallel.sync import sync_mode
    from pds_engine.scheduler import process as scheduler_process
    from pds_engine.scheduler.replicas import DpPlace

    port = None
    if sync_mode(config) == "host":
        from pds_engine.parallel.gather import GatherThread, among_schedulers

        split, http = config.parallelism, config.http
        meeting = f"{config.pod.ip}:{http.rendezvous_port}"
        patience = 2 * config.join_timeout  # its ranks may take one, and then the store opens
        port = GatherThread(lambda: among_schedulers(dp_rank, split.dp, meeting, patience))
    place = DpPlace(dp_rank, launch["schedulers"][0], port)
    bind, incarnation = launch["binds"][dp_rank], launch["incarnation"]
    window = read_spec(config.model.path).window
    scheduler_process.run(config, keys, bind, incarnation, place, window)


def _die_with(parent: int) -> None:
    """A kill -9 of launch must not leave its children behind (Linux: prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before prctl could watch it
        sys.exit(1)


if __name__ == "__main__":
    main()
