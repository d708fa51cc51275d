"""Whether a model is served in a layout, by its config.json alone: what `pds-engine check` prints.

No weight is read, and no torch is imported: it runs wherever the file is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any, ClassVar

from pds_engine import budget, sizing
from pds_engine.budget import Claim
from pds_engine.config import EngineConfig
from pds_engine.errors import ConfigError
from pds_engine.models import quantized, registry
from pds_engine.models.config_json import read_config
from pds_engine.parallel.balance import work
from pds_engine.sizing import RankSizes, Weigh
from pds_engine.spec import DecoderSpec, DenseSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is known of a model in a layout; what a refusal left unknown is None, or nothing."""

    config: EngineConfig
    refusal: ConfigError | None
    spec: DecoderSpec | None = None
    quantised: str | None = None
    """The method by which the checkpoint's weights are."""
    ranks: tuple[RankSizes, ...] = ()
    longest: int | None = None
    """Tokens of the longest request that the group could hold."""
    memory: int | None = None
    """Bytes of each rank's device, if it was asked whether it holds a rank."""

    COLUMNS: ClassVar = (
        "stage", "ranks", "layers", "work", "weights", "kv/token", "page", "pages", "tokens"
    )  # fmt: skip

    def lines(self) -> Iterator[str]:
        """For people, before the table of ranks."""
        spec, dtype = self.spec, self.config.model.dtype
        if spec is not None:
            mixed = sum(not isinstance(layer.feed, DenseSpec) for layer in spec.layers)
            experts = f", {mixed} of them with experts" if mixed else ""
            yield f"model       {spec.architecture}: {len(spec.layers)} layers{experts}"
            names = registry.family_of(spec).names
            every, passed = sizing.parameters(spec, names), sizing.passed(spec, names)
            of_a_token = f", a token passes {_count(passed)}" if passed < every else ""
            yield f"parameters  {_count(every)}{of_a_token}"
            stored = f"stored as {self.quantised}, " if self.quantised else ""
            kept = ", FP8 where that stays" if self.config.cache.target and self.quantised else ""
            yield f"weights     {stored}held as {dtype}{kept}"
        if spec is not None and self.longest is not None:
            kv = sizing.kv_format(self.config, spec)
            yield f"kv          {kv.token_bytes} bytes a token ({kv.dtype}) on all stages together"
            if not self.config.kv.sized:
                yield f"pages       {self._pages()}"
            yield (
                f"longest     {self.longest} tokens in a request; "
                f"the model has {spec.max_position} positions"
            )
        if self.refusal is None:
            yield f"served      yes, up to max_model_len {self.config.max_model_len}"
        else:
            yield f"served      no: {self.refusal}"

    def _pages(self) -> str:
        """What decides how many there are, where it is no setting of theirs."""
        if self.memory is None:
            return "as many as can be of use: give --memory to see how many fit"
        part = f"{_share(self.config):g} of {sizing.human(self.memory)} (kv.memory_fraction)"
        return f"what weights leave of {part}, less what a step takes, which is measured at start"

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Of COLUMNS; ranks side by side that hold as much share one."""
        ranks = enumerate(self.ranks)
        for figures, equal in groupby(ranks, lambda each: self._figures(each[1])):
            numbers = [number for number, _ in equal]
            stage, *others = figures
            yield (stage, _span(numbers[0], numbers[-1]), *others)

    def _figures(self, rank: RankSizes) -> tuple[str, ...]:
        layers = rank.part.layers
        return (
            str(rank.part.pp_rank),
            _span(layers[0], layers[-1]),
            f"{self._work(layers):.1%}",
            sizing.human(rank.weights),
            str(rank.token_bytes),
            sizing.human(rank.page_bytes),
            str(rank.pages),
            str(rank.tokens),
        )

    def _work(self, layers: range) -> float:
        """The part of a step's work that these layers are, by which stages are balanced."""
        if self.spec is None:
            return 0.0
        found = work(self.spec, self.config.role)
        return sum(found[at] for at in layers) / sum(found)

    def as_json(self) -> dict[str, Any]:
        """For machines; sizes are in bytes."""
        refusal, spec = self.refusal, self.spec
        found: dict[str, Any] = {"served": refusal is None}
        if refusal is not None:
            found |= {"error": refusal.message, "hint": refusal.hint}
        if spec is not None:
            names = registry.family_of(spec).names
            found |= {
                "architecture": spec.architecture,
                "layers": len(spec.layers),
                "parameters": sizing.parameters(spec, names),
                "parameters_of_a_token": sizing.passed(spec, names),
                "max_position": spec.max_position,
                "quantised": self.quantised,
            }
        if spec is not None and self.ranks:
            found |= {
                "kv_bytes_per_token": sizing.kv_format(self.config, spec).token_bytes,
                "longest": self.longest,
                "ranks": [_rank(number, each) for number, each in enumerate(self.ranks)],
            }
        return found


def judge(config: EngineConfig, memory: int | None = None) -> Verdict:
    """`memory`: bytes of each rank's device, for weights and KV pages together; None: not asked.

    With `cache.target` weights count as they are kept on that GPU, and torch is imported.
    """
    known: dict[str, Any] = {}
    refusal = None
    try:
        known["spec"] = spec = registry.read_spec(config.model.path)
        stored = quantized.read(config.model.path, read_config(config.model.path))
        known["quantised"] = stored and stored.method
        registry.check_layout(config, spec)
        known["ranks"] = ranks = sizing.sizes(config, spec, weigh=_weigh(config, spec))
        known["longest"] = sizing.longest(config, spec, ranks)
        sizing.check_pages(config, spec, ranks)
        if memory is not None and config.kv.sized:
            for each in ranks:
                sizing.check_memory([each], memory, "its device")
        elif memory is not None:
            known["ranks"] = ranks = _filled(config, spec, ranks, memory)
            known["longest"] = sizing.longest(config, spec, ranks)
    except ConfigError as error:
        refusal = error
    return Verdict(config=config, refusal=refusal, memory=memory, **known)


def _weigh(config: EngineConfig, spec: DecoderSpec) -> Weigh | None:
    """What counts the layers on the GPU that is planned for; None: they are as model.dtype says."""
    if not config.cache.target:
        return None
    from pds_engine.artefacts.plan import target
    from pds_engine.models import meta

    gpu = target(config)
    return None if gpu is None else partial(meta.layer_bytes, config, spec, gpu=gpu)


def _filled(
    config: EngineConfig, spec: DecoderSpec, ranks: Sequence[RankSizes], memory: int
) -> tuple[RankSizes, ...]:
    """With the pages that each one's device of `memory` bytes holds, if steps took nothing.

    Raises:
        ConfigError: they would not hold one request of max_model_len.
    """
    claims = [
        Claim(
            rank=each.name,
            holder=each.name,
            total=memory,
            source="--memory",
            weights=each.weights,
            tables=budget.penalties(config, spec, each.part),
            page_bytes=each.page_bytes,
        )
        for each in ranks
    ]
    found = budget.pages(config, spec, claims, _share(config))
    return tuple(replace(each, pages=found) for each in ranks)


def _share(config: EngineConfig) -> float:
    return budget.share(config, gpu=config.device == "cuda" or bool(config.cache.target))


def _rank(number: int, rank: RankSizes) -> dict[str, Any]:
    place, layers = rank.part, rank.part.layers
    return {
        "rank": number,
        "stage": place.pp_rank,
        "dp": place.dp_rank,
        "tp": place.tp_rank,
        "layers": [layers.start, layers.stop],
        "weights": rank.weights,
        "kv_bytes_per_token": rank.token_bytes,
        "page_bytes": rank.page_bytes,
        "pages": rank.pages,
        "tokens": rank.tokens,
    }


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _count(parameters: int) -> str:
    for unit, name in ((10**9, "billion"), (10**6, "million")):
        if parameters >= unit:
            return f"{parameters / unit:.2f} {name}"
    return str(parameters)
