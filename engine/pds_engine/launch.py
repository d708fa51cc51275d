"""Starts a pod's processes, which live and die as one (processes.md, operator.md).

The leader pod runs an API server and a scheduler for each dp rank. Every pod runs one worker per
rank, and a server: in a pod other than the leader it shows health and metrics alone
(server/rank_pod.py). When one process ends, so do all, within a second, and so does the container:
the operator then replaces the whole group. SIGTERM drains: the server says when nothing is left.
"""

import json
import logging
import os
import random
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from pds_engine import log, ports, sizing
from pds_engine.config import EngineConfig
from pds_engine.ending import LastWords, cause
from pds_engine.errors import EXIT_CONFIG, ConfigError, PdsError, PortTaken
from pds_engine.keys import Keys
from pds_engine.models import ahead, registry, tensors
from pds_engine.models.ahead import Ahead
from pds_engine.models.headers import Stored
from pds_engine.parallel.layout import Numbering, part
from pds_engine.spec import DecoderSpec
from pds_engine.warming import memory

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""Ports of outgoing connections: one that is free here may be taken a second later."""
TERMINATION_LOG = Path("/dev/termination-log")
_GRACE_SECONDS = 0.8
_NOTE_BYTES = 4096
logger = logging.getLogger("pds.launch")


def serve(config: EngineConfig) -> int:
    """Run this pod's part of a group until it ends; the exit status for the container.

    Raises:
        ConfigError: the configuration cannot work; nothing was started.
        PortTaken: no port is free.
    """
    log.configure(config.log_level)
    found = check(config)
    folder = Path(tempfile.mkdtemp(prefix="pds-"))
    reading = Ahead(_ahead(config, found))
    try:
        _prepare(config, folder)
        return _PodProcesses(config, folder).run()
    finally:
        reading.stop()
        shutil.rmtree(folder, ignore_errors=True)


class Checked(NamedTuple):
    """A model that can be served, and its tensors by name."""

    spec: DecoderSpec
    contents: Mapping[str, Stored]


def check(config: EngineConfig) -> Checked:
    """Refuse what is known to fail before anything starts.

    Raises:
        ConfigError: names the field and the cure.
    """
    spec = registry.check(config)
    sizing.check_pages(config, spec, sizing.sizes(config, spec))
    contents = tensors.contents(config.model.path, spec)
    ports.plan(config)
    return Checked(spec, contents)


def _ahead(config: EngineConfig, found: Checked) -> Iterator[tuple[Path, int, int]]:
    """What this pod's ranks will read of weight files, up to half of the memory there is: what is
    read ahead of its use must not drive out what is not used yet."""
    split = config.parallelism
    first = config.pod.index * split.ranks_per_pod
    ranks = range(first, first + split.ranks_per_pod)
    parts = [part(found.spec, split, rank, config.role) for rank in ranks]
    return ahead.spans(ahead.wanted(found.contents, found.spec, parts), memory.ceiling().bytes // 2)


def report(error: PdsError) -> None:
    """Say why this container ends: to the operator, and in the log."""
    note = {"error": error.message, "hint": error.hint}
    print(f"error: {error}", file=sys.stderr)
    _write_termination_log(note)


def _write_termination_log(note: dict[str, str]) -> None:
    """The container's termination message: what Kubernetes keeps of its end."""
    if TERMINATION_LOG.exists():
        TERMINATION_LOG.write_text(json.dumps(note)[:_NOTE_BYTES])


def _prepare(config: EngineConfig, folder: Path) -> None:
    """Lay out what the children read: configuration, keys, and where the scheduler is."""
    keys = Keys.read(config.http.keys_dir) if config.http.keys_dir else Keys.make()
    keys.write(folder)
    free = _free_ports(config)
    rendezvous = config.http.rendezvous_port or next(free)
    control = [
        config.http.control_port + dp_rank if config.http.control_port else next(free)
        for dp_rank in range(config.parallelism.dp)
    ]
    ports = {"control_port": control[0], "rendezvous_port": rendezvous}
    http = config.http.model_copy(update=ports)
    (folder / "config.json").write_text(config.model_copy(update={"http": http}).model_dump_json())
    leader = config.pod.leader if config.pod.index else "127.0.0.1"
    launch = {
        # The leader's is the group's; the other pods learn it from the scheduler.
        "incarnation": "" if config.pod.index else config.pod.incarnation or uuid.uuid4().hex,
        # By dp rank, each with a scheduler of its own:
        "binds": [f"tcp://{config.http.host}:{port}" for port in control],
        "schedulers": [f"tcp://{leader}:{port}" for port in control],
    }
    (folder / "launch.json").write_text(json.dumps(launch))


def _free_ports(config: EngineConfig) -> Iterator[int]:
    """Ports that nobody listens on, that no outgoing connection can take before we listen, and that
    the pod has no other use for.

    Raises:
        PortTaken: there is none.
    """
    planned = {port for block in ports.plan(config).blocks for port in block.ports}
    lowest, _ = map(int, EPHEMERAL.read_text().split())
    for port in random.sample(range(10_000, lowest), 100):
        if port in planned:
            continue
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            yield port
    raise PortTaken("no port is free", hint="set http.control_port and http.rendezvous_port")


class _PodProcesses:
    """The processes of this pod."""

    def __init__(self, config: EngineConfig, folder: Path) -> None:
        split = config.parallelism
        self._numbering = Numbering.of(split) if split.pp * split.dp > 1 else None
        first = config.pod.index * config.parallelism.ranks_per_pod
        workers = [f"worker-{first + i}" for i in range(config.parallelism.ranks_per_pod)]
        dp = config.parallelism.dp
        schedulers = [f"scheduler-{rank}" for rank in range(dp)] if dp > 1 else ["scheduler"]
        self._kinds = [*([] if config.pod.index else schedulers), *workers, "server"]
        self._folder = folder
        self._children: dict[int, tuple[str, subprocess.Popen[bytes]]] = {}

    def run(self) -> int:
        """Start all, wait for the first to end, end the others."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        with selectors.DefaultSelector() as selector:
            for kind in self._kinds:
                words = ("pds_engine.child", kind, str(self._folder), str(os.getpid()))
                child = subprocess.Popen([sys.executable, "-m", *words], start_new_session=True)
                descriptor = os.pidfd_open(child.pid)
                self._children[descriptor] = (kind, child)
                selector.register(descriptor, selectors.EVENT_READ)
            over = [self._children[key.fd] for key, _ in selector.select()]
        first = {kind: child.wait() for kind, child in over}
        self._end_all()
        return self._exit_status(first)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """The server drains the group and then ends."""
        for kind, child in self._children.values():
            if kind == "server":
                child.send_signal(signal.SIGTERM)

    def _end_all(self) -> None:
        for _, child in self._children.values():
            if child.poll() is None:
                child.terminate()
        deadline = time.monotonic() + _GRACE_SECONDS
        for descriptor, (_, child) in self._children.items():
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
            if child.poll() is None:
                child.kill()
                child.wait()
            os.close(descriptor)

    def _exit_status(self, first: dict[str, int]) -> int:
        if first.get("server") == 0:
            return 0
        note = self._folder / "error.json"
        # The child that left it may not be the first to end: others notice, and end too.
        if note.exists():
            said = json.loads(note.read_text())
            report(ConfigError(said["error"], hint=said["hint"]))
            return EXIT_CONFIG
        left = ((kind, LastWords.read(self._folder, kind)) for kind in self._kinds)
        end = cause(first, {kind: words for kind, words in left if words is not None})
        text = f"{self._name(end.kind)} ended with status {end.status}, and its group with it"
        if end.status == -signal.SIGKILL:
            text += "; a kill is mostly the kernel's: raise resources.limits.memory"
        logger.error("%s", text)
        _write_termination_log({"error": f"{text}: {end.error}" if end.error else text})
        return 1

    def _name(self, kind: str) -> str:
        rank = kind.removeprefix("worker-")
        if self._numbering is None or not rank.isdigit():
            return kind
        return self._numbering.name(int(rank))
