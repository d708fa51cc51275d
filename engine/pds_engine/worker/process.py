"""The process of one rank: joins its group, loads its part of the model, and serves."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import zmq
from msgspec.structs import replace

from pds_engine import sizing
from pds_engine.config import EngineConfig
from pds_engine.errors import ConfigError, PdsError, RankLost
from pds_engine.keys import Keys
from pds_engine.kv.layout import KvFormat, fingerprint
from pds_engine.kv.pool import KvPool
from pds_engine.kv.transfer import TransferThread, shared_pool
from pds_engine.messages import Fault, Hello, Ready
from pds_engine.models.checkpoint import digest
from pds_engine.models.config_json import read_config
from pds_engine.models.decoder import Decoder
from pds_engine.models.loader import load
from pds_engine.models.positions import kv_digest
from pds_engine.parallel import lost
from pds_engine.parallel.collectives import ALONE, Collectives
from pds_engine.parallel.exchange import DistributedExchange
from pds_engine.parallel.groups import Groups, assemble, backend
from pds_engine.parallel.layout import Numbering
from pds_engine.parallel.stage import Stage, StagePlace
from pds_engine.ports import kv_address
from pds_engine.runner.runner import Runner
from pds_engine.wire import Link
from pds_engine.worker.capturing import capture
from pds_engine.worker.firing import Firing
from pds_engine.worker.foretelling import foretell
from pds_engine.worker.joining import join
from pds_engine.worker.kernels import Kernels, prepare
from pds_engine.worker.loop import Loop
from pds_engine.worker.mailbox import Mailbox
from pds_engine.worker.measuring import Measuring
from pds_engine.worker.meter import meter
from pds_engine.worker.side import SideThread
from pds_engine.worker.startup import Startup
from pds_engine.worker.sync import SyncThread, gathers
from pds_engine.worker.watchdog import Activity, Watchdog

logger = logging.getLogger("pds.worker")
FASTER = "compiled kernels are several times as fast (compile: true, and a folder as cache.path)"


def run(
    config: EngineConfig, keys: Keys, schedulers: Sequence[str], rank: int, incarnation: str
) -> None:
    """Join the group, load this rank's part, report Ready, and execute orders until the process is
    ended.

    Args:
        schedulers: ZMQ addresses, by dp rank.

    Raises:
        ConfigError: the model or the layout cannot be served; launch learns it by the exit status.
        GroupError: the scheduler or another rank is gone, or broke the protocol.
    """
    startup = Startup()
    torch.set_num_threads(config.threads)
    context = zmq.Context()
    own = schedulers[Numbering.of(config.parallelism).place(rank).dp]
    link = Link(context, own, keys)
    activity = Activity(rank)
    threads: list[SideThread] = []
    try:
        device, kernels = _device(config, rank), prepare(config)
        startup.reached("kernels")
        if kernels is None and device.type == "cpu":
            logger.warning("rank %d computes by plain torch: %s", rank, FASTER)
        manifest = kernels.proof.manifest if kernels else ""
        assembly, group = join(config, link, rank, incarnation, manifest)
        hello = Hello(peer="watch", group=config.pod.group, incarnation=group, rank=rank)
        for address in dict.fromkeys((own, schedulers[0])):  # dp rank 0's names who is at fault
            threads.append(Watchdog(context, address, keys, hello, activity))
            threads[-1].start()
        groups = assemble(config, rank, device, assembly.rendezvous)
        startup.reached("join")
        if gathers(config, rank):
            joins = replace(hello, peer="sync")
            threads.append(SyncThread(context, own, keys, joins, groups.sync, device))
            threads[-1].start()
        loaded = _load(config, rank, device, groups, kernels, startup)
        _serve(config, keys, link, activity, groups, loaded)
    except ConfigError:
        # The link is left to the process's end: whoever loses it ends too, and what is wrong is
        # written down before that.
        raise
    except Exception as error:
        logger.exception("rank %d failed", rank)
        code = error.code if isinstance(error, PdsError) else PdsError.code
        link.send(Fault(rank=rank, code=code, message=f"{type(error).__name__}: {error}"))
        link.close(linger_ms=1000)
        if all(thread.stop() for thread in threads):
            context.term()
        raise


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A rank's part of the model, as it computes."""

    device: torch.device
    decoder: Decoder
    kernels: Kernels | None
    pages: int | None
    """That memory holds; None: the configuration says how many there are."""
    startup: Startup


def _load(
    config: EngineConfig,
    rank: int,
    device: torch.device,
    groups: Groups,
    kernels: Kernels | None,
    startup: Startup,
) -> _Loaded:
    split = config.parallelism
    place = Numbering.of(split).place(rank)
    attention = _collectives(groups.tp, place.tp, split.tp)
    stage_ranks = _collectives(groups.stage, place.dp * split.tp + place.tp, split.width)
    measuring = None if config.kv.sized else Measuring(config, rank, device, meter(device))
    foretell(config, rank, device)
    decoder = load(config, rank, device, attention, stage_ranks)
    startup.reached("weights")
    pages = None
    if measuring is not None:
        pages = measuring.pages(decoder, groups)
        startup.reached("step")
    return _Loaded(device, decoder, kernels, pages, startup)


def _serve(
    config: EngineConfig,
    keys: Keys,
    link: Link,
    activity: Activity,
    groups: Groups,
    loaded: _Loaded,
) -> None:
    rank, split = activity.rank, config.parallelism
    place = Numbering.of(split).place(rank)
    device, decoder, kernels = loaded.device, loaded.decoder, loaded.kernels
    kv = kv_format(config, decoder)
    pages, pool = make_pool(config, decoder, kv, device, loaded.pages)
    runner = Runner(config, decoder, [pool.layer(i) for i in range(len(decoder.part.layers))])
    capture(config, runner, device)
    exchange = make_exchange(config, decoder, groups, rank, device)
    activity.counts, activity.compiles = exchange.counts, lambda: runner.compiles
    activity.unneeded = lambda: runner.unneeded
    at_stage = StagePlace(place.stage, split.pp)
    stage = Stage(at_stage, runner, exchange, ahead=backend(device) == "gloo")
    mailbox, at = Mailbox(), kv_address(config, rank)
    transfers = TransferThread(pool, config.kv, rank, at, mailbox.put, keys)
    try:
        endpoint = transfers.endpoint()
        loaded.startup.reached("pages")
        link.send(
            Ready(
                rank=rank,
                pages=pages,
                kv_fingerprint=fingerprint(kv),
                endpoint=endpoint,
                kernels=kernels.proof if kernels else None,
                model_digest=kv.digest,
                startup=loaded.startup.seconds,
            )
        )
        logger.info("rank %d is ready with %d pages after %s", rank, pages, loaded.startup)
        logger.info("rank %d computes attention by the kernel %s", rank, runner.attention)
        reports = at_stage.last and place.tp == 0
        watch = Firing(mailbox.wake).watch
        loop = Loop(link, stage, runner, transfers, mailbox, activity, watch=watch, reports=reports)
        loop.run(link)
    except RankLost as error:
        words = lost.named(error.message, groups.addresses, rank, Numbering.of(split))
        raise RankLost(words) from error
    finally:
        transfers.stop()
        mailbox.close()


def _collectives(group: dist.ProcessGroup | None, rank: int, size: int) -> Collectives:
    return ALONE if group is None else Collectives(group, rank, size)


def make_exchange(
    config: EngineConfig, decoder: Decoder, groups: Groups, rank: int, device: torch.device
) -> DistributedExchange:
    """What carries this rank's hidden states and outputs."""
    split = config.parallelism
    bounds = config.scheduler
    tokens = bounds.max_step_tokens or bounds.chunk_size + bounds.max_running
    return DistributedExchange(
        groups,
        split,
        rank,
        rows=tokens // split.tp + 1,
        width=decoder.spec.hidden,
        dtype=decoder.dtype,
        device=device,
    )


def _device(config: EngineConfig, rank: int) -> torch.device:
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise ConfigError(
            "device: cuda was asked for and there is none", hint="ask for a GPU, or device: cpu"
        )
    if not available or config.device == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", rank % config.parallelism.ranks_per_pod)
    torch.cuda.set_device(device)
    return device


def kv_format(config: EngineConfig, decoder: Decoder) -> KvFormat:
    """What this group's pages hold; its fingerprint says which groups it can be paired with."""
    spec, content = decoder.spec, digest(config.model.path, read_config(config.model.path))
    ropes = [layer.attention.rope for layer in spec.layers]
    return sizing.kv_format(config, spec, kv_digest(content, ropes, config.max_model_len))


def make_pool(
    config: EngineConfig,
    decoder: Decoder,
    kv: KvFormat,
    device: torch.device,
    pages: int | None = None,
) -> tuple[int, KvPool]:
    """The pages that the scheduler may give out, and the pool, which has the runner's one more.

    `pages`: what memory holds; None: what the configuration says.

    Raises:
        ConfigError: kv.memory_bytes holds less than a request of max_model_len holds at once.
    """
    if pages is None:
        found = sizing.of_part(config, decoder.spec, decoder.part)
        sizing.check_pages(config, decoder.spec, [found])
        pages = found.pages
    held = sizing.kv_shard(kv, decoder.part)
    shared = shared_pool(config.kv.backends)
    return pages, KvPool(kv, held, pages + 1, str(device), shared=shared)
