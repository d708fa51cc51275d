"""Launches plans: a stage's part of a forward pass, and on the last one sampling."""

from functools import partial

import torch
from pds_kernels.building import builds
from torch import Tensor

from pds_engine.config import EngineConfig
from pds_engine.errors import ProtocolError
from pds_engine.messages import Admit, Release, StepDone, StepPlan
from pds_engine.models.decoder import Attends, Decoder, Kv
from pds_engine.parallel.launch import Launched
from pds_engine.parallel.parts import Parts, parts
from pds_engine.parallel.reads import Reads
from pds_engine.runner.attention import Attention, Repeating
from pds_engine.runner.batch import Batch, build
from pds_engine.runner.edge import Edge, Passage, edge
from pds_engine.runner.program import program
from pds_engine.runner.replay import Capture, Graphs, Inputs, size_of
from pds_engine.runner.result import Result
from pds_engine.runner.rows import together
from pds_engine.runner.sampling import kernel, logprobs, sample
from pds_engine.runner.scoring import prompt_logprobs
from pds_engine.runner.shape_plan import most_tokens
from pds_engine.runner.tables import Tables


class Runner:
    """One rank's computation: parallel.stage.StageRunner, and the slots it works with.

    Orders are executed as they come, none is ever cancelled. A step's work is queued on the device
    behind that of earlier ones, and so is what orders change in the tables: a slot's last token
    reaches the next step without the host.

    The last page of `kv` belongs to the runner: padding tokens write to it.
    """

    def __init__(
        self, config: EngineConfig, decoder: Decoder, kv: Kv, opens: Edge | None = None
    ) -> None:
        """`opens`: how results reach the host; None: as fits the device of `kv`."""
        self._decoder = decoder
        self._kv = kv
        keys = kv[0][0]
        self._tables = Tables(
            max_slots=config.scheduler.max_running,
            # One more than the longest request needs: its next token's page may come early.
            max_pages=-(-config.max_model_len // config.kv.page_size) + 1,
            page_size=config.kv.page_size,
            vocab=decoder.spec.vocab,
            null_page=len(keys) - 1,
            device=keys.device,
            samples=decoder.part.samples,
        )
        self._attention = Attention(decoder, config.kv.page_size, keys)
        self._program = program(decoder, self._attention, kv, most_tokens(config))
        self._gumbel_max = kernel(decoder.vocab, keys.device)
        self._opens = opens or edge(keys.device)
        self._graphs: Graphs | None = None
        self._reads = Reads()
        self._launched = -1
        self._warm = builds()
        self._releases: list[Release] = []

    def admit(self, order: Admit) -> None:
        self._tables.admit(order)
        self._reads.admit(order)

    def release(self, order: Release) -> None:
        """Free the slot, at once or when `order.after_step` is launched: what comes later is
        computed behind it."""
        self._releases.append(order)
        self._free()

    @property
    def attention(self) -> str:
        """The kernels that compute attention."""
        return self._attention.kernels

    @property
    def compiles(self) -> int:
        """Kernels that this process has compiled since it was ready."""
        return builds() - self._warm

    @property
    def unneeded(self) -> int:
        """On the first of several stages: outputs that came, and that no step read."""
        return self._reads.unneeded

    @torch.inference_mode()
    def launch(self, plan: StepPlan, hidden: Tensor | None) -> Launched[Tensor]:
        """Begin this stage's part of a step: at last a result, before that the hidden states of
        this rank's part of the tokens. A plan without rows is an idle batch.

        Raises:
            ProtocolError: the plan does not fit what the slots hold or how many ranks there are, or
                reads a token that has not come.
        """
        passage, part = self._opens(), self._decoder.part
        size = None if self._graphs is None else size_of(plan, self._graphs.sizes)
        batch = build(plan, self._tables, size or plan.padded_tokens)
        if part.embeds:
            self._reads.check(plan)
        hidden = self._forward(plan, batch, hidden, size)
        result = self._result(hidden, batch) if part.samples else None
        if part.embeds and part.samples:
            self._reads.sampled(plan)
        self._launched = plan.step_id
        self._free()
        if result is None:
            passage.close()
            return Launched(plan, passage, hidden=hidden)
        there = result.copied(passage.copy)
        passage.close()
        return Launched(plan, passage, read=partial(_read, plan, there, passage))

    def accept(self, plan: StepPlan, tokens: tuple[int, ...]) -> None:
        """On the first of several stages: what the last one sampled for the plan's rows."""
        self._tables.accept([row for row in plan.rows if row.samples], tokens)
        self._reads.accept(plan)

    def capture(self, capture: Capture) -> tuple[int, ...]:
        """Have decode steps replayed as graphs from now on: for which numbers of tokens.

        () where they cannot be: the stage has several ranks, whose collectives would be captured
        too, or a kernel of attention works out its launches on the host.
        """
        decoder, tables = self._decoder, self._tables
        if decoder.ranks.stage.size > 1 or not self._attention.repeats:
            return ()
        keys = self._kv[0][0]
        hidden = torch.empty(0, decoder.spec.hidden, dtype=decoder.dtype, device=keys.device)
        null_slot = tables.null_page * tables.page_size
        inputs = Inputs.made(tables.null_slot, tables.pages.shape[1], null_slot, hidden)
        with torch.inference_mode():
            self._graphs = Graphs(inputs, self._attention.repeating, self._layers, capture)
        self._warm = builds()
        return self._graphs.sizes

    def _layers(self, inputs: Inputs, attention: Repeating) -> Tensor:
        """What is captured."""
        shared = Parts((len(inputs.tokens),), (len(inputs.tokens),))
        hidden = self._embedded(inputs.tokens, inputs.hidden, shared)
        return self._run(hidden, inputs.positions, attention.attends, shared)

    def _forward(
        self, plan: StepPlan, batch: Batch, hidden: Tensor | None, size: int | None
    ) -> Tensor:
        """This stage's layers, for this rank's part of the tokens, by the graph of `size` tokens or
        launched one by one."""
        part = self._decoder.part
        if hidden is None and not part.embeds:
            raise ProtocolError(f"step {plan.step_id} came without hidden states")
        if self._graphs is not None and size is not None:
            found = self._graphs.run(size, batch, hidden)
            # The next replay must not change what is being sent.
            return found if part.samples else found[: plan.padded_tokens].clone()
        shared = parts(plan, part.tp, part.dp, part.dp_rank)
        hidden = self._embedded(batch.tokens, hidden, shared)
        if plan.rows and self._program is not None:
            return self._program.run(hidden, batch.positions, batch.attention)
        attends = self._attention.prepare(batch.attention) if plan.rows else None
        return self._run(hidden, batch.positions, attends, shared)

    def _embedded(self, tokens: Tensor, hidden: Tensor | None, shared: Parts) -> Tensor:
        """On the first stage what `tokens` are; on others what came from the stage before."""
        if hidden is None or self._decoder.part.embeds:
            return self._decoder.embed(tokens, shared)
        return hidden

    def _run(
        self, hidden: Tensor, positions: Tensor, attends: Attends | None, shared: Parts
    ) -> Tensor:
        return self._decoder.forward(hidden, positions, attends, self._kv, shared)

    def _result(self, hidden: Tensor, batch: Batch) -> Result:
        prompts = prompt_logprobs(self._decoder, hidden, batch.scored)
        if not batch.samples:
            return Result(prompts=prompts)
        if self._decoder.ranks.attention.size == 1:
            ends = hidden[batch.sampled]
        else:
            ends = together(hidden, batch.ends, self._decoder.ranks.attention)
        logits = self._decoder.logits(ends)
        tokens = sample(logits, batch, self._tables, self._decoder.vocab, self._gumbel_max)
        # Steps in flight go on from whatever token this is: their results are discarded.
        self._tables.sampled(batch.slots, tokens.clamp(min=0))
        asked, scores = logprobs(logits, tokens, batch.samples, self._decoder.vocab)
        return Result(tokens, asked, scores, prompts)

    def _free(self) -> None:
        waiting = []
        for order in self._releases:
            if order.after_step <= self._launched:
                self._tables.release(order.slot, order.gen)
                self._reads.release(order.slot)
            else:
                waiting.append(order)
        self._releases = waiting


def _read(plan: StepPlan, result: Result, passage: Passage) -> StepDone:
    return result.read(plan.step_id, passage.seconds())
