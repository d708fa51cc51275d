"""The largest step that a rank may be given, made up: what memory a step takes is measured by it.

Pages are two, whatever the context: all that a request reads are the same one.
"""

from collections.abc import Sequence

import torch

from pds_engine.config import EngineConfig
from pds_engine.kv.pool import KvPool
from pds_engine.messages import Admit, Row, Sampling, StepPlan
from pds_engine.models.decoder import Decoder
from pds_engine.parallel.parts import parts
from pds_engine.runner.runner import Runner
from pds_engine.scheduler.settings import Settings
from pds_engine.sizing import kv_format, kv_shard

SAMPLING = Sampling(max_tokens=1, temperature=1.0, top_p=0.95, repetition_penalty=1.1, logprobs=20)
"""What makes all that sampling may make."""


def lengths(config: EngineConfig) -> list[int]:
    """Tokens of each row: all that a step may have, in as many rows as there are slots.

    Chunks come first. Rows of one token are requests that run.
    """
    settings, rows = Settings.of(config), config.scheduler.max_running
    left = rows if config.dp.gather == "none" else max(settings.step_tokens, rows)
    found = []
    for others in range(rows - 1, -1, -1):
        length = min(left - others, config.max_model_len)
        found.append(length)
        left -= length
    return found


def contexts(config: EngineConfig, of: Sequence[int], held: int) -> list[int]:
    """Up to which position each row of `of` tokens reads: the first to max_model_len, the others
    as far as `held` tokens, which all pages together may hold, reach."""
    others = of[1:]
    each = max(0, held - config.max_model_len) // max(1, len(others))
    return [config.max_model_len, *(max(n, min(each, config.max_model_len)) for n in others)]


def orders(
    config: EngineConfig, vocab: int, page_size: int, held: int
) -> tuple[list[Admit], StepPlan]:
    """The requests, and the step that computes a row of each of them."""
    split, of = config.parallelism, lengths(config)
    ends = contexts(config, of, held)
    ids = {end: tuple(at % vocab for at in range(end)) for end in set(ends)}
    admits = [
        Admit(
            slot=slot,
            gen=0,
            prompt_ids=ids[end],
            output_ids=(),
            sampling=SAMPLING,
            seed=slot,
            pages=(0,) * -(-end // page_size),
        )
        for slot, end in enumerate(ends)
    ]
    rows = tuple(
        Row(slot=slot, gen=0, start=end - length, length=length, samples=True)
        for slot, (length, end) in enumerate(zip(of, ends, strict=True))
    )
    padded = -(-sum(of) // split.tp) * split.tp
    plan = StepPlan(
        step_id=0,
        rows=rows,
        expects_output=False,
        depends_on=-1,
        padded_tokens=padded,
        dp_tokens=(padded,) * split.dp if split.dp > 1 else (),
    )
    return admits, plan


def run(config: EngineConfig, decoder: Decoder, device: torch.device, held: int) -> None:
    """Compute that step with one layer of each kind: what a layer takes, the next one takes again.

    All ranks of a stage come here together. `held`: tokens that all pages may hold.
    """
    alike = decoder.of_each_kind()
    part, kv = alike.part, kv_format(config, alike.spec)
    pool = KvPool(kv, kv_shard(kv, part), 2, str(device))
    runner = Runner(config, alike, [pool.layer(at) for at in range(len(part.layers))])
    admits, plan = orders(config, alike.spec.vocab, config.kv.page_size, held)
    for admit in admits:
        runner.admit(admit)
    hidden = None
    if not part.embeds:
        mine = parts(plan, part.tp, part.dp, part.dp_rank).batch[part.tp_rank]
        hidden = torch.zeros(mine, alike.spec.hidden, dtype=alike.dtype, device=device)
    runner.launch(plan, hidden).collect()
