"""Which kernels a rank launches: the model is run on meta tensors, and they are noted.

So the list follows from the code that serves. It is short, as numbers that vary are arguments
(pds_kernels.launching). A kernel that has one form for few tokens and another for many launches all
of them on the meta device.
"""

from dataclasses import dataclass

import torch
from pds_kernels import fp8_gemm
from pds_kernels.fp8_gemm import Gemm
from pds_kernels.launching import Launch, recording
from pds_kernels.plan import AttentionPlan
from pds_kernels.sampler import GumbelMax
from pds_kernels.targets import Gpu

from pds_engine.config import EngineConfig
from pds_engine.kv.pool import KvPool
from pds_engine.messages import Sampling
from pds_engine.models import meta
from pds_engine.models.decoder import Decoder
from pds_engine.models.meta import META
from pds_engine.parallel.layout import ModelPart
from pds_engine.parallel.parts import Parts
from pds_engine.runner.attention import Attention
from pds_engine.runner.sampling import choose, kernel
from pds_engine.runner.shape_plan import WarmStep, steps, token_counts
from pds_engine.runner.tables import HostSlot
from pds_engine.sizing import kv_format, kv_shard
from pds_engine.spec import DecoderSpec

_PAGES = 16
"""Of a pool that nobody fills."""
_SAMPLINGS = (Sampling(max_tokens=1), Sampling(max_tokens=1, min_p=0.5))
"""Whether a row has min_p decides what is compiled; temperatures do not."""


@dataclass(frozen=True, slots=True)
class Launched:
    """Each once, in the order in which a step launches them."""

    triton: tuple[Launch, ...]
    """Every variant of every kernel of ours."""
    deep_gemm: tuple[Gemm, ...]
    """Products by DeepGEMM, for the numbers of tokens that were run."""


def launches(
    config: EngineConfig, spec: DecoderSpec, mine: ModelPart, target: Gpu
) -> tuple[Launch, ...]:
    """Of Triton's kernels; see `launched`."""
    return launched(config, spec, mine, target).triton


def launched(config: EngineConfig, spec: DecoderSpec, mine: ModelPart, target: Gpu) -> Launched:
    """What the rank with this part launches on `target`."""
    decoder = meta.decoder(config, spec, mine, target)
    kv = kv_format(config, decoder.spec)
    pool = KvPool(kv, kv_shard(kv, decoder.part), _PAGES, "meta")
    pages = [pool.layer(index) for index in range(len(decoder.layers))]
    attention = Attention(decoder, config.kv.page_size, pages[0][0])
    gumbel_max = kernel(decoder.vocab, META)
    counts = token_counts(target.sms, mine.tp)
    with recording() as found, fp8_gemm.recording() as gemms, torch.inference_mode():
        for step in steps(config.role, counts):
            hidden = _run(decoder, attention, pages, step, config)
            if mine.samples:
                _sample(decoder, gumbel_max, hidden)
    return Launched(tuple(dict.fromkeys(found)), tuple(dict.fromkeys(gemms)))


def _run(
    decoder: Decoder,
    attention: Attention,
    pages: list[tuple[torch.Tensor, ...]],
    step: WarmStep,
    config: EngineConfig,
) -> torch.Tensor:
    """The hidden states of a pass of this rank; what the stage before it would send is made up."""
    mine, tokens = decoder.part, step.tokens
    own = (tokens // mine.tp,) * mine.tp
    parts = Parts(own, own * mine.dp)
    ids = torch.empty(tokens, dtype=torch.int64, device=META)
    hidden = torch.empty(own[0], decoder.spec.hidden, dtype=decoder.dtype, device=META)
    if mine.embeds:
        hidden = decoder.embed(ids, parts)
    attends = attention.prepare(_plan(step, config))
    return decoder.forward(hidden, ids, attends, pages, parts)


def _sample(decoder: Decoder, gumbel_max: GumbelMax, hidden: torch.Tensor) -> None:
    """A token after each of `hidden`, in the ways in which kernels choose them."""
    logits = decoder.logits(hidden)
    for sampling in _SAMPLINGS:
        slot = HostSlot(gen=0, prompt_len=1, known=(0,), sampling=sampling, seed=0)
        choose(logits, [(slot, 0)] * len(logits), decoder.vocab, gumbel_max)


def _plan(step: WarmStep, config: EngineConfig) -> AttentionPlan:
    """Requests with as much context as their tokens have, or as the model takes."""
    requests = step.tokens if step.kind == "decode" else 1
    length = step.tokens // requests
    context = max(length, config.max_model_len)
    width = -(-context // config.kv.page_size)
    return AttentionPlan(
        page_table=torch.empty(requests, width, dtype=torch.int32, device=META),
        seq_lens=torch.empty(requests, dtype=torch.int32, device=META),
        cu_seqlens_q=torch.empty(requests + 1, dtype=torch.int32, device=META),
        write_slots=torch.empty(step.tokens, dtype=torch.int64, device=META),
        seq_lens_host=(context,) * requests,
        cu_seqlens_q_host=tuple(range(0, step.tokens + 1, length)),
    )
