"""Which ports a pod listens on: one plan of all, made from its ranks (processes.md).

    8000         HTTP
    8001 + d     control: the scheduler of dp rank d, in the leader pod
    8090         the rendezvous of a group of several ranks, in the leader pod
    8100 + i     KV channel of the pod's i-th rank
    8200 + 8·i   UCX (NIXL) of the pod's i-th rank: one of this port and the seven above it
    9090         metrics

All are exact but UCX's, which is any free port of a range; each rank has a range of its own.
(One exact port would not do: UCX refuses a port whose old connections have not timed out.)

Ranks are counted within their pod, so that the numbers depend on no group's width; where pods share
a node's network (hostNetwork), HTTP's port keeps two of them apart as it is. Peers learn ports from
messages (KvEndpoint, State's `control`), and assume none. gloo and NCCL take ephemeral ports.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Final

from pds_engine.config import EngineConfig, KvBackend
from pds_engine.errors import ConfigError

ROOM: Final = 64
"""A group has ports for so many dp ranks, a pod for so many ranks. The CRD has this bound."""
UCX_OFFSET: Final = 100
"""From the first KV channel to the first UCX port: one setting, kv.port_base, moves both."""
UCX_PORTS: Final = 8
HIGHEST: Final = 65535


@dataclass(frozen=True, slots=True)
class Use:
    """What a port is for, and which setting moves it."""

    purpose: str
    key: str
    backend: KvBackend | None = None
    """The KV backend that listens there, if it is offered; None: not a backend's."""


HTTP: Final = Use("HTTP", "http.port")
METRICS: Final = Use("metrics", "http.metrics_port")
CONTROL: Final = Use("control (the scheduler)", "http.control_port")
RENDEZVOUS: Final = Use("the rendezvous of the ranks", "http.rendezvous_port")
KV: Final = Use("KV channels", "kv.port_base")
UCX: Final = Use("UCX (NIXL)", "kv.port_base", backend="nixl")


@dataclass(frozen=True, slots=True)
class PortBlock:
    """The consecutive ports of one use's `count` listeners, each of which may have `each` of them.
    `first` 0: any that are free."""

    use: Use
    first: int
    count: int = 1
    each: int = 1

    @property
    def ports(self) -> range:
        """The ports of all listeners; empty where any port will do."""
        return self._range(0, self.count)

    def of(self, index: int) -> range:
        """Those that the `index`-th listener may have; empty: any."""
        return self._range(index, 1)

    def port(self, index: int = 0) -> int:
        """The exact port of the `index`-th listener; 0: any."""
        return self.first and self.first + index * self.each

    def _range(self, index: int, count: int) -> range:
        first = self.port(index)
        return range(first, first + count * self.each) if self.first else range(0)


@dataclass(frozen=True, slots=True)
class KvAddress:
    """Where one rank listens for pages."""

    host: str
    channel: int = 0
    """0: any port."""
    ucx: range = range(0)
    """UCX takes one of them; empty: any port."""


@dataclass(frozen=True, slots=True)
class PodPorts:
    """All ports of one pod."""

    http: PortBlock
    metrics: PortBlock
    control: PortBlock
    rendezvous: PortBlock
    kv: PortBlock
    ucx: PortBlock

    @property
    def blocks(self) -> tuple[PortBlock, ...]:
        return (self.http, self.metrics, self.control, self.rendezvous, self.kv, self.ucx)


def plan(config: EngineConfig) -> PodPorts:
    """The ports of pod `config.pod.index` of a group.

    Raises:
        ConfigError: the group is wider than there are ports for, or two uses have a port in common.
    """
    split, http, base = config.parallelism, config.http, config.kv.port_base
    for key, width in (("dp", split.dp), ("ranks_per_pod", split.ranks_per_pod)):
        if width > ROOM:
            raise ConfigError(
                f"parallelism.{key}: a pod has ports for {ROOM}, got {width}",
                hint="spread the ranks over more pods" if key == "ranks_per_pod" else "lower dp",
            )
    leads, writes = config.pod.index == 0, UCX.backend in config.kv.backends
    made = PodPorts(
        http=PortBlock(HTTP, http.port),
        metrics=PortBlock(METRICS, http.metrics_port),
        control=PortBlock(CONTROL, http.control_port, split.dp if leads else 0),
        rendezvous=PortBlock(RENDEZVOUS, http.rendezvous_port, int(leads and split.ranks > 1)),
        kv=PortBlock(KV, base, split.ranks_per_pod),
        ucx=PortBlock(
            UCX, base and base + UCX_OFFSET, split.ranks_per_pod if writes else 0, UCX_PORTS
        ),
    )
    _check(made)
    return made


def kv_address(config: EngineConfig, rank: int) -> KvAddress:
    """Where `rank` of the group, one of this pod's, listens for pages."""
    ports, own = plan(config), rank - config.pod.index * config.parallelism.ranks_per_pod
    return KvAddress(config.pod.ip, ports.kv.port(own), ports.ucx.of(own))


def _check(made: PodPorts) -> None:
    for block in made.blocks:
        if block.ports and block.ports[-1] > HIGHEST:
            raise ConfigError(
                f"{block.use.key}: from {block.first} on there is no room for "
                f"{len(block.ports)} ports of {block.use.purpose}",
                hint=f"lower it by {block.ports[-1] - HIGHEST}",
            )
    for one, other in combinations(made.blocks, 2):
        common = sorted({*one.ports} & {*other.ports})
        if common:
            raise ConfigError(
                f"{one.use.key} and {other.use.key}: port {common[0]} is both for "
                f"{one.use.purpose} and for {other.use.purpose}",
                hint="set one of the two to another port, or to 0 for any that is free",
            )
