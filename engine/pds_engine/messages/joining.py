"""How a process joins its group, and how a rank says what it has."""

from msgspec import Struct

from pds_engine.messages.base import PROTOCOL, Message, Peer


class Hello(Message, frozen=True, kw_only=True):
    """The first message on every connection. A group's incarnation is fixed when it starts; it is
    empty in the first Hello of a pod other than the leader's, which learns it by Welcome."""

    peer: Peer
    group: str
    incarnation: str
    rank: int
    protocol: int = PROTOCOL
    manifest: str = ""
    """Of a worker: the digest of the cache keys of its kernels, which it holds. Empty: they are not
    compiled ahead."""


class Welcome(Message, frozen=True, kw_only=True):
    """The scheduler's answer to Hello: its own incarnation, which every later Hello must carry."""

    incarnation: str


class Assemble(Message, frozen=True, kw_only=True):
    """Scheduler → workers, once every rank has said Hello: set up the group's collectives.

    A rank says Hello once it holds its kernels, so that no collective begins before all stages are
    warm.
    """

    rendezvous: str
    """host:port at which rank 0 opens the store where the ranks meet."""


class KvEndpoint(Struct, frozen=True, array_like=True, kw_only=True):
    """Where one rank's pages can be written. `shard` is kv.layout.KvShard encoded by msgspec."""

    rank: int
    shard: bytes
    pages: int
    backends: dict[str, bytes]
    """By the backend's name (config.KvBackend): what a peer needs to connect, opaque to others."""


class KernelsProof(Struct, frozen=True, array_like=True, kw_only=True):
    """What the kernels of a rank are, and who compiled them."""

    manifest: str
    """Digest of the cache keys that it loaded; equal to the warm-up's when nothing was missing."""
    compiled: int
    """By this process before Ready: 0 when the warm-up had left everything in the cache."""
    reused: int
    seconds: float
    compiles_after_ready: int = 0


class Ready(Message, frozen=True, kw_only=True):
    """A worker has loaded weights and allocated pages; its KV can be written at `endpoint`."""

    rank: int
    pages: int
    kv_fingerprint: str
    endpoint: KvEndpoint
    kernels: KernelsProof | None = None
    """None: nothing is compiled ahead."""
    model_digest: str = ""
    """Digest of what the model computes. Groups of equal ones go on with each other's streams."""
    startup: tuple[tuple[str, float], ...] = ()
    """Seconds of each phase of its start."""


class Fault(Message, frozen=True, kw_only=True):
    """A worker failed; the group follows."""

    rank: int
    code: str
    message: str
