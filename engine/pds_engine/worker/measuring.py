"""How many KV pages a rank makes where memory decides: measured, and agreed on by the group."""

import logging

import msgspec
import torch

from pds_engine import budget, sizing
from pds_engine.budget import Claim
from pds_engine.config import EngineConfig
from pds_engine.models.decoder import Decoder
from pds_engine.parallel.groups import Groups
from pds_engine.worker import largest
from pds_engine.worker.meter import Meter

logger = logging.getLogger("pds.worker")


class Measuring:
    """Of one rank, from before its weights are loaded."""

    def __init__(self, config: EngineConfig, rank: int, device: torch.device, meter: Meter) -> None:
        self._config = config
        self._rank = rank
        self._device = device
        self._meter = meter
        self._before, self._base = meter.used(), meter.base()

    def pages(self, decoder: Decoder, groups: Groups) -> int:
        """The pages that requests may have, the same on all ranks of the group.

        Raises:
            ConfigError: they would not hold what one request of max_model_len holds at once.
            RankLost: a rank has not said what it takes.
        """
        config, spec = self._config, decoder.spec
        part = budget.share(config, gpu=self._device.type == "cuda")
        mine = self._claim(decoder, part)
        claims = self._all(mine, groups)
        found = budget.pages(config, spec, claims, part)
        logger.info("%s", mine.line(part, found))
        return found

    def _claim(self, decoder: Decoder, part: float) -> Claim:
        config, meter = self._config, self._meter
        weights = max(meter.used() - self._before, 0)
        size = sizing.of_part(config, decoder.spec, decoder.part)
        held = int(part * meter.total) // size.token_bytes
        before = meter.used()
        meter.reset()
        largest.run(config, decoder, self._device, held)
        peak, tables = meter.peak(), budget.penalties(config, decoder.spec, decoder.part)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return Claim(
            rank=size.name,
            holder=holder(config, self._rank, self._device),
            total=meter.total,
            source=meter.source,
            others=max(0, meter.others()),
            base=self._base,
            weights=weights,
            step=max(0, peak - before - tables),
            tables=tables,
            page_bytes=size.page_bytes,
        )

    def _all(self, mine: Claim, groups: Groups) -> list[Claim]:
        """By rank. They come by the store at which the ranks met."""
        if groups.meeting is None:
            return [mine]
        encoded = groups.meeting.exchange("memory", msgspec.json.encode(mine).decode())
        return [msgspec.json.decode(each, type=Claim) for each in encoded]


def holder(config: EngineConfig, rank: int, device: torch.device) -> str:
    """Whose memory rank `rank` takes: its GPU's, or its container's."""
    if device.type == "cuda":
        return f"the GPU of rank {rank}"
    return f"the container of pod {rank // config.parallelism.ranks_per_pod}"
