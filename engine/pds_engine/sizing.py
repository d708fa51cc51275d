"""How much memory a rank needs: the bytes of its weights, and the KV pages that its memory holds.

`pds-engine check` prints it, launch refuses by it what cannot work, and workers make their pools by
it. Pure: no torch.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

from pds_engine.config import Dtype, EngineConfig
from pds_engine.errors import ConfigError
from pds_engine.kv.layout import ITEM_BYTES, KvFormat, KvShard, shard
from pds_engine.models.names import HEAD, Names
from pds_engine.models.shapes import shapes
from pds_engine.parallel.balance import balanced
from pds_engine.parallel.layout import ModelPart, Numbering, RankPlace, part
from pds_engine.parallel.share import Held, elements, layer_tensors
from pds_engine.scheduler.settings import Settings
from pds_engine.spec import DecoderSpec

_WIDE = ITEM_BYTES["float32"]


@dataclass(frozen=True, slots=True)
class RankSizes:
    """What one rank holds, in bytes."""

    name: str
    part: ModelPart
    weights: int
    page_size: int
    """Tokens of a KV page."""
    page_bytes: int
    pages: int
    """That requests may have: one more is the runner's. Where memory_fraction decides, as many as
    could be of use (`usable`), until it is known what memory holds."""

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token, in this rank's layers and heads."""
        return self.page_bytes // self.page_size

    @property
    def tokens(self) -> int:
        """That its pages hold."""
        return self.pages * self.page_size

    @property
    def pool(self) -> int:
        """Bytes of all its pages."""
        return (self.pages + 1) * self.page_bytes


def kv_format(config: EngineConfig, spec: DecoderSpec, digest: str = "") -> KvFormat:
    """What pages hold; `digest`: of the model's content, where its fingerprint is asked for."""
    return KvFormat(
        digest=digest,
        dtype=config.kv.dtype or config.model.dtype,
        page_size=config.kv.page_size,
        layers=len(spec.layers),
        kv_heads=spec.kv.heads,
        head_dim=spec.kv.head_dim,
        latent=spec.kv.latent,
    )


def kv_shard(kv: KvFormat, mine: ModelPart) -> KvShard:
    """The part of every page that the rank with this part of the model holds."""
    return shard(
        kv,
        layers=(mine.layers.start, mine.layers.stop),
        pp_rank=mine.pp_rank,
        tp_rank=mine.tp_rank,
        tp=mine.tp,
        dp_rank=mine.dp_rank,
    )


Weigh = Callable[[ModelPart], int]
"""Bytes of the layers of a rank with this part."""


def sizes(
    config: EngineConfig,
    spec: DecoderSpec,
    kept: Dtype | None = None,
    weigh: Weigh | None = None,
) -> tuple[RankSizes, ...]:
    """Of every rank of the group; `registry.check` has shown that the layout is possible.

    `kept` is what weights are kept in, where that is not model.dtype: a CPU that cannot multiply in
    model.dtype keeps float32 (models.loader.compute_dtype). `weigh` counts layers where some
    weights stay as they are stored: on a GPU that has FP8 (models.meta.layer_bytes).
    """
    split = config.parallelism
    layers = split.layers or balanced(spec, split.pp, config.role)
    fixed = split.model_copy(update={"layers": layers})
    parts = [part(spec, fixed, rank, config.role) for rank in range(split.ranks)]
    found = (of_part(config, spec, mine, kept) for mine in parts)
    if weigh is None:
        return tuple(found)
    width = ITEM_BYTES[kept or config.model.dtype]
    return tuple(
        replace(each, weights=weigh(each.part) + _bytes(_vocabulary(spec, each.part), width))
        for each in found
    )


def of_part(
    config: EngineConfig, spec: DecoderSpec, mine: ModelPart, kept: Dtype | None = None
) -> RankSizes:
    """Of the rank with this part of the model."""
    kv, numbering = kv_format(config, spec), Numbering(mine.tp, mine.dp)
    page_bytes = kv_shard(kv, mine).page_bytes(kv)
    rank = numbering.rank(RankPlace(mine.pp_rank, mine.dp_rank, mine.tp_rank))
    return RankSizes(
        name=numbering.name(rank) if mine.pp * mine.dp > 1 else f"rank {rank}",
        part=mine,
        weights=weight_bytes(spec, mine, kept or config.model.dtype),
        page_size=kv.page_size,
        page_bytes=page_bytes,
        pages=_pages(config, spec, page_bytes),
    )


def _pages(config: EngineConfig, spec: DecoderSpec, page_bytes: int) -> int:
    kv = config.kv
    if kv.pages is not None:
        return kv.pages
    if kv.memory_bytes is not None:
        return max(kv.memory_bytes // page_bytes - 1, 0)
    return usable(config, spec)


def usable(config: EngineConfig, spec: DecoderSpec) -> int:
    """The most pages that requests hold at once: max_running of max_model_len tokens.

    Raises:
        ConfigError: the scheduler could not work with this configuration.
    """
    return config.scheduler.max_running * needed(config, spec)


def needed(config: EngineConfig, spec: DecoderSpec) -> int:
    """The pages that one request of max_model_len holds at once.

    Raises:
        ConfigError: the scheduler could not work with this configuration.
    """
    settings = _settings(config, spec, config.max_model_len)
    return settings.at_once(settings.pages_for(config.max_model_len))


def weight_bytes(spec: DecoderSpec, mine: ModelPart, kept: Dtype) -> int:
    """Bytes of the tensors that the loader makes for this part: quantized ones as plain ones.

    Embedding and head count once where they are one tensor on this rank: config.json says so.
    """
    held = [
        tensor
        for at in mine.layers
        for tensor in layer_tensors(spec, spec.layers[at], mine.share(spec.layers[at]))
    ]
    return _bytes([*held, *_vocabulary(spec, mine)], ITEM_BYTES[kept])


def _vocabulary(spec: DecoderSpec, mine: ModelPart) -> list[Held]:
    """Embedding, last norm and head, as far as this rank has them."""
    rows = Held((mine.vocab_rows, spec.hidden))
    held = [rows] if mine.embeds else []
    if mine.samples:
        held.append(Held((spec.hidden,), spec.norm_wide))
        if not (spec.tied and mine.embeds):
            held.append(rows)
    return held


def _bytes(held: Iterable[Held], width: int) -> int:
    return sum(each.elements * (_WIDE if each.wide else width) for each in held)


def parameters(spec: DecoderSpec, names: Names) -> int:
    """Of the whole model, each one once."""
    found = shapes(spec, names)
    if spec.tied:
        del found[HEAD]
    return sum(map(prod, found.values()))


def passed(spec: DecoderSpec, names: Names) -> int:
    """As `parameters`, without those of experts that a token does not pass."""
    idle = [elements(spec, each) - elements(spec, each, passed=True) for each in spec.layers]
    return parameters(spec, names) - sum(idle)


def longest(config: EngineConfig, spec: DecoderSpec, ranks: Sequence[RankSizes]) -> int:
    """Tokens of the longest request that a group of these ranks can hold.

    Raises:
        ConfigError: the scheduler could not work with this configuration.
    """
    settings = _settings(config, spec, spec.max_position)
    pages = min(each.pages for each in ranks)
    if settings.at_once(settings.pages_for(spec.max_position)) <= pages:
        return spec.max_position
    return pages * config.kv.page_size


def check_pages(config: EngineConfig, spec: DecoderSpec, ranks: Sequence[RankSizes]) -> None:
    """Whether each rank's pages hold what a request of max_model_len holds at once.

    Raises:
        ConfigError: they do not; names the bytes that the largest rank needs.
    """
    settings, pages = _settings(config, spec, config.max_model_len), min(e.pages for e in ranks)
    least = needed(config, spec)
    if pages >= least:
        return
    wanted = f"max_model_len is {config.max_model_len}"
    if settings.window is not None:
        wanted = f"a request holds those of {least * config.kv.page_size} at once"
    cure = f"kv.memory_bytes to {(least + 1) * max(each.page_bytes for each in ranks)}"
    if config.kv.pages:
        cure = f"kv.pages to {least}"
    raise ConfigError(
        f"kv: {pages} pages hold {pages * config.kv.page_size} tokens, {wanted}",
        hint=f"raise {cure}, or lower max_model_len",
    )


def check_memory(ranks: Sequence[RankSizes], memory: int, whose: str) -> None:
    """Whether weights and KV pages of these ranks, together, fit into `memory` bytes.

    Raises:
        ConfigError: they do not; `whose` names the memory.
    """
    weights, pages = sum(each.weights for each in ranks), sum(each.pool for each in ranks)
    if weights + pages <= memory:
        return
    names = ranks[0].name if len(ranks) == 1 else f"{ranks[0].name} and {len(ranks) - 1} more"
    raise ConfigError(
        f"memory: {names} would hold {human(weights)} of weights and {human(pages)} of KV pages, "
        f"{whose} has {human(memory)}",
        hint="choose a larger parallelism.tp, dp or pp, or a smaller kv.memory_bytes (kv.pages)",
    )


def _settings(config: EngineConfig, spec: DecoderSpec, length: int) -> Settings:
    """As the scheduler reads them, if requests had up to `length` tokens."""
    return Settings.of(config.model_copy(update={"max_model_len": length}), spec.window)


def human(count: int) -> str:
    """Bytes for people to read."""
    for power, unit in ((3, "GiB"), (2, "MiB")):
        if count >= 1024**power:
            return f"{count / 1024**power:.2f} {unit}"
    return f"{count / 1024:.2f} KiB"
