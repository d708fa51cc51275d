"""The process groups of a group's ranks: how they meet, and who talks to whom (pipeline.md).

    hidden   a rank → the same place of the next stage: all ranks; NCCL has a communicator a pair
    output   a rank of the last stage → the same place of the first: on the host, on every device
    tp       the ranks of one attention group
    stage    all ranks of one stage; at dp 1 it is tp itself
    sync     the first stage's first shard of every dp rank: what they tell each other before a pass

Outputs go by gloo on GPUs too: their tokens are on the host at both ends (StepDone and the slot
table's check need them there), and a receive that waits on the host takes no SM.
"""

import fcntl
import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store, TCPStore

from pds_engine.config import EngineConfig, ParallelConfig
from pds_engine.errors import RankLost
from pds_engine.listening import listener
from pds_engine.parallel.layout import Numbering
from pds_engine.parallel.sync import sync_mode
from pds_engine.ports import RENDEZVOUS

_LEAST_TIMEOUT = 1800.0
_STEPS = 10
"""A gloo time-out closes the pair for good, so that it comes long after the watchdog's."""
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True, slots=True)
class Meeting:
    """The store at which a group's ranks met, for what they tell each other once."""

    store: Store
    rank: int
    split: ParallelConfig
    patience: timedelta

    def exchange(self, subject: str, mine: str) -> list[bytes]:
        """What every rank says of `subject`, by rank, once all have.

        Raises:
            RankLost: a rank has not; it is named.
        """
        keys = [f"{subject}/{rank}" for rank in range(self.split.ranks)]
        self.store.set(keys[self.rank], mine)
        try:
            self.store.wait(keys, self.patience)
        except RuntimeError as error:
            absent = [rank for rank, key in enumerate(keys) if not self.store.check([key])]
            names = ", ".join(map(Numbering.of(self.split).name, absent))
            raise RankLost(f"{names} has not told of its {subject}") from error
        found: list[bytes] = self.store.multi_get(keys)
        return found


@dataclass(frozen=True, slots=True)
class Groups:
    """This rank's process groups; None: it exchanges nothing of that kind."""

    hidden: dist.ProcessGroup | None = None
    output: dist.ProcessGroup | None = None
    tp: dist.ProcessGroup | None = None
    stage: dist.ProcessGroup | None = None
    sync: dist.ProcessGroup | None = None
    addresses: tuple[str, ...] = ()
    """Of the ranks' pods, by rank."""
    meeting: Meeting | None = None


def backend(device: torch.device) -> str:
    """What moves tensors of `device` between ranks."""
    return "nccl" if device.type == "cuda" else "gloo"


def assemble(config: EngineConfig, rank: int, device: torch.device, rendezvous: str) -> Groups:
    """Meet the other ranks at `rendezvous` (host:port, rank 0 opens it) and make all groups.

    Raises:
        RankLost: a rank has not come in join_timeout; it is named.
        PortTaken: another process has the rendezvous' port.
    """
    split = config.parallelism
    if split.ranks == 1:
        return Groups()
    _use_interface(config.pod.ip)
    store = _meet(config, rank, rendezvous)
    addresses = store.multi_get([f"here/{other}" for other in range(split.ranks)])
    seconds = max(_LEAST_TIMEOUT, _STEPS * config.scheduler.step_timeout)
    timeout = timedelta(seconds=seconds)
    dist.init_process_group(
        backend(device), store=store, rank=rank, world_size=split.ranks, timeout=timeout
    )
    groups = make(config, rank, device, timeout)
    _greet(groups, rank, split, device)
    return replace(
        groups,
        addresses=tuple(each.decode() for each in addresses),
        meeting=Meeting(store, rank, split, timeout),
    )


def _meet(config: EngineConfig, rank: int, rendezvous: str) -> Store:
    """The store, once every rank has been there, and has left its pod's address."""
    split, seconds = config.parallelism, config.join_timeout
    host, _, port = rendezvous.rpartition(":")
    named = Numbering.of(split).name
    patience = timedelta(seconds=seconds)
    # By itself the store listens on all addresses.
    ours = listener(host, int(port), RENDEZVOUS).detach() if rank == 0 else None
    try:
        store = TCPStore(
            host,
            int(port),
            is_master=rank == 0,
            wait_for_workers=False,
            timeout=patience,
            master_listen_fd=ours,
        )
    except (OSError, RuntimeError) as error:
        raise RankLost(
            f"{named(0)} has not opened the rendezvous at {rendezvous} in {seconds:g} s: {error}"
        ) from error
    store.set(f"here/{rank}", config.pod.ip)
    try:
        store.wait([f"here/{other}" for other in range(split.ranks)], patience)
    except RuntimeError as error:
        absent = [r for r in range(split.ranks) if not store.check([f"here/{r}"])]
        names = ", ".join(named(r) for r in absent)
        raise RankLost(f"{names} did not come to the rendezvous in {seconds:g} s") from error
    return store


def make(config: EngineConfig, rank: int, device: torch.device, timeout: timedelta) -> Groups:
    """All groups, once every rank is there.

    Every rank makes every group, in one order: making one is a collective of all.
    """
    split, numbering = config.parallelism, Numbering.of(config.parallelism)
    made: dict[tuple[int, ...], dist.ProcessGroup] = {}

    def group(ranks: Iterable[int], kind: str) -> dist.ProcessGroup | None:
        members = tuple(ranks)
        if len(members) == 1:
            return None
        if members not in made:
            made[members] = dist.new_group(list(members), timeout=timeout, backend=kind)
        return made[members] if rank in members else None

    output = sync = None
    if split.pp > 1:
        output = group((*numbering.stage(0), *numbering.stage(split.pp - 1)), "gloo")
    if sync_mode(config) == "device":
        # It has a communicator of its own, also where it holds the same ranks as a stage does.
        firsts = [numbering.attention(0, d)[0] for d in range(split.dp)]
        own = dist.new_group(firsts, timeout=timeout, backend=backend(device))
        sync = own if rank in firsts else None
    tp = stage = None
    for at in range(split.pp):
        for d in range(split.dp):
            tp = group(numbering.attention(at, d), backend(device)) or tp
        stage = group(numbering.stage(at), backend(device)) or stage
    return Groups(
        hidden=dist.group.WORLD if split.pp > 1 else None,
        output=output,
        tp=tp,
        stage=stage,
        sync=sync,
    )


def _greet(groups: Groups, rank: int, split: ParallelConfig, device: torch.device) -> None:
    """Use every connection once, so that no step pays for making it (NCCL makes them late)."""
    if groups.hidden is None:
        return
    greeting, last = torch.zeros(1, device=device), split.ranks - split.width
    if rank >= split.width:
        dist.recv(greeting, rank - split.width, groups.hidden)
    if rank < last:
        dist.send(greeting, rank + split.width, groups.hidden)
    if groups.output is not None:
        _greet_output(groups.output, rank, last)


def _greet_output(group: dist.ProcessGroup, rank: int, last: int) -> None:
    greeting: Tensor = torch.zeros(1, dtype=torch.int64)
    if rank >= last:
        dist.send(greeting, rank - last, group)
    else:
        dist.recv(greeting, rank + last, group)


def _use_interface(address: str) -> None:
    """Have gloo and NCCL listen where peers reach this pod, not where its host name points to."""
    packed = socket.inet_pton(socket.AF_INET, address) if "." in address else b""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            if packed and _address_of(probe, name) == packed:
                os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = name
                return


def _address_of(probe: socket.socket, interface: str) -> bytes:
    """The first IPv4 address of an interface, 4 bytes; none when it has none (netdevice(7))."""
    request = struct.pack("256s", interface.encode())
    try:
        return fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24]
    except OSError:
        return b""
