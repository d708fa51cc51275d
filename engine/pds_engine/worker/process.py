"""The process of one rank: executes the scheduler's orders strictly in the order they come."""

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
import zmq
from pds_kernels.cache import Artefact, manifest_digest
from pds_kernels.graph import load as load_graph

from pds_engine.config import EngineConfig
from pds_engine.errors import ConfigError, GroupError, PdsError, ProtocolError
from pds_engine.keys import Keys
from pds_engine.kv.layout import KvFormat, fingerprint, shard
from pds_engine.kv.pool import KvPool
from pds_engine.kv.transfer import TransferThread
from pds_engine.messages import (
    Admit,
    AnyMessage,
    CloseTransfer,
    Expect,
    Fault,
    Forget,
    Hello,
    KernelsProof,
    KvEndpoint,
    OpenTransfer,
    Push,
    Ready,
    Release,
    StepPlan,
    Welcome,
)
from pds_engine.models.checkpoint import digest
from pds_engine.models.decoder import Decoder
from pds_engine.models.loader import load
from pds_engine.runner import graphs
from pds_engine.runner.runner import Runner
from pds_engine.spec import read_config
from pds_engine.warmup import open_cache
from pds_engine.wire import Link
from pds_engine.worker.mailbox import Mailbox

logger = logging.getLogger("pds.worker")


class Transfers(Protocol):
    """What the worker asks of kv.transfer.TransferThread."""

    def endpoint(self) -> KvEndpoint: ...
    def open(self, order: OpenTransfer) -> None: ...
    def push(self, push: Push) -> None: ...
    def close(self, order: CloseTransfer) -> None: ...
    def expect(self, order: Expect) -> None: ...
    def forget(self, order: Forget) -> None: ...
    def stop(self) -> None: ...


def run(config: EngineConfig, keys: Keys, scheduler: str, rank: int, incarnation: str) -> None:
    """Load this rank's part, report Ready, and execute orders until the process is ended.

    Raises:
        ConfigError: the model or the layout cannot be served; told to launch by the exit status.
        GroupError: the scheduler did not answer, or broke the protocol.
    """
    torch.set_num_threads(config.threads)
    context = zmq.Context()
    link = Link(context, scheduler, keys)
    try:
        _join(config, link, rank, incarnation)
        _serve(config, keys, link, rank)
    except ConfigError:
        # The link is left to the process's end: a scheduler that lost it earlier would end first,
        # and launch reports the status of whoever ended first.
        raise
    except Exception as error:
        logger.exception("rank %d failed", rank)
        code = error.code if isinstance(error, PdsError) else PdsError.code
        link.send(Fault(rank=rank, code=code, message=f"{type(error).__name__}: {error}"))
        link.close(linger_ms=1000)
        context.term()
        raise


def _join(config: EngineConfig, link: Link, rank: int, incarnation: str) -> None:
    link.send(Hello(peer="worker", group=config.pod.group, incarnation=incarnation, rank=rank))
    answer = link.receive(timeout=config.join_timeout)
    if answer is None:
        raise ProtocolError(f"the scheduler did not answer rank {rank} in {config.join_timeout} s")
    if not isinstance(answer, Welcome) or answer.incarnation != incarnation:
        raise ProtocolError(f"the scheduler answered Hello with {type(answer).__name__}")


def _serve(config: EngineConfig, keys: Keys, link: Link, rank: int) -> None:
    device = torch.device(_device(config))
    decoder = load(config, rank, device)
    proof = use_graphs(config, decoder, device) if config.compile else None
    kv = kv_format(config, decoder)
    pages, pool = make_pool(config, decoder, kv, device)
    runner = Runner(config, decoder, [pool.layer(i) for i in range(len(decoder.part.layers))])
    mailbox = Mailbox()
    transfers = TransferThread(pool, config.kv, rank, config.pod.ip, mailbox.put, keys)
    try:
        link.send(
            Ready(
                rank=rank,
                pages=pages,
                kv_fingerprint=fingerprint(kv),
                endpoint=transfers.endpoint(),
                kernels=proof,
            )
        )
        logger.info("rank %d is ready with %d pages", rank, pages)
        Loop(link, runner, transfers, mailbox).run()
    finally:
        transfers.stop()
        mailbox.close()


def _device(config: EngineConfig) -> str:
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise ConfigError(
            "device: cuda was asked for and there is none", hint="ask for a GPU, or device: cpu"
        )
    return "cuda" if available and config.device != "cpu" else "cpu"


def kv_format(config: EngineConfig, decoder: Decoder) -> KvFormat:
    """What this group's pages hold; its fingerprint says which groups it can be paired with."""
    spec = decoder.spec
    return KvFormat(
        digest=digest(config.model.path, read_config(config.model.path)),
        dtype=config.kv.dtype or config.model.dtype,
        page_size=config.kv.page_size,
        layers=spec.layers,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
    )


def use_graphs(config: EngineConfig, decoder: Decoder, device: torch.device) -> KernelsProof:
    """Run `decoder`'s pieces compiled, and prove by what. Warm-up has left every graph in the
    cache; if one was pruned since, it is compiled here, before Ready.

    Raises:
        ConfigError: there is no cache to take them from.
    """
    cache, begun = open_cache(config), time.monotonic()
    loaded: dict[str, Callable[..., Any]] = {}
    found: dict[str, Artefact] = {}
    for graph in graphs.plan(config, decoder.spec, decoder.part, device):
        artefact = graphs.fetch(graph, cache, config.cache.timeout_seconds)
        if artefact.built:
            logger.warning("%s was not warm: compiled in %.1f s", graph.name, artefact.seconds)
        found[graph.name] = artefact
        loaded[graph.name] = load_graph(artefact.folder)
    decoder.pieces = graphs.CompiledPieces(decoder.pieces.shape, loaded)
    compiled = sum(artefact.built for artefact in found.values())
    return KernelsProof(
        manifest=manifest_digest({name: artefact.key for name, artefact in found.items()}),
        compiled=compiled,
        reused=len(found) - compiled,
        seconds=round(time.monotonic() - begun, 3),
    )


def make_pool(
    config: EngineConfig, decoder: Decoder, kv: KvFormat, device: torch.device
) -> tuple[int, KvPool]:
    """The pages that the scheduler may give out, and the pool, which has the runner's one more.

    Raises:
        ConfigError: kv.memory_bytes holds less than one request of max_model_len.
    """
    part = decoder.part
    held = shard(
        kv,
        layers=(part.layers.start, part.layers.stop),
        pp_rank=part.pp_rank,
        tp_rank=part.tp_rank,
        tp=part.tp,
    )
    pages = config.kv.pages or config.kv.memory_bytes // held.page_bytes(kv) - 1
    needed = -(-config.max_model_len // config.kv.page_size)
    if pages < needed:
        raise ConfigError(
            f"kv: {pages} pages hold {pages * config.kv.page_size} tokens, "
            f"max_model_len is {config.max_model_len}",
            hint=f"raise kv.memory_bytes to {(needed + 1) * held.page_bytes(kv)}, "
            "or lower max_model_len",
        )
    shared = "shm" in config.kv.backends
    return pages, KvPool(kv, held, pages + 1, str(device), shared=shared)


class Loop:
    """Takes orders from the link and reports from the mailbox as they come."""

    def __init__(self, link: Link, runner: Runner, transfers: Transfers, mailbox: Mailbox) -> None:
        self._link = link
        self._runner = runner
        self._transfers = transfers
        self._mailbox = mailbox

    def run(self) -> None:
        """Never returns.

        Raises:
            GroupError: the scheduler or the transfer thread is gone, or an order was wrong.
        """
        poller = zmq.Poller()
        poller.register(self._link.socket, zmq.POLLIN)
        poller.register(self._link.monitor, zmq.POLLIN)
        poller.register(self._mailbox.descriptor, zmq.POLLIN)
        while True:
            poller.poll()
            self.turn()
            if self._link.lost:
                raise GroupError("the scheduler has closed its connection")

    def turn(self) -> None:
        """Handle all that is waiting; a transfer's report never waits for more than one order."""
        while True:
            for report in self._mailbox.take():
                self._link.send(report)
                if isinstance(report, Fault):
                    raise GroupError(report.message)
            order = self._link.receive()
            if order is None:
                return
            self.handle(order)

    def handle(self, order: AnyMessage) -> None:
        """Execute one order.

        Raises:
            ProtocolError: it is none that a worker takes, or does not fit what the slots hold.
        """
        match order:
            case StepPlan():
                done = self._runner.execute(order)
                for push in order.pushes:
                    self._transfers.push(push)
                self._link.send(done)
            case Admit():
                self._runner.admit(order)
            case Release():
                self._runner.release(order)
            case OpenTransfer():
                self._transfers.open(order)
            case CloseTransfer():
                self._transfers.close(order)
            case Expect():
                self._transfers.expect(order)
            case Forget():
                self._transfers.forget(order)
            case _:
                raise ProtocolError(f"a worker does not take {type(order).__name__}")
