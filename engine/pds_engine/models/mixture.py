"""A mixture of experts on one rank of a stage (Shazeer et al., 2017).

Either every rank has all experts, its columns of each: all ranks see the tokens of the stage, and
what they make of these is summed, as with a dense block. Or, with expert parallelism, a rank has
some experts whole: tokens stay where they are, and a row for each choice of each token goes to its
expert and comes back (Lepikhin et al., "GShard", 2020). docs/experts.md compares the two.
"""

from collections.abc import Mapping

import torch
from pds_kernels import activation, grouped_gemm, moe_gate
from torch import Tensor

from pds_engine.layers.experts import router_logits, shared_block
from pds_engine.models.weights import ExpertWeights
from pds_engine.parallel.collectives import Collectives
from pds_engine.parallel.dispatch import to_experts, to_tokens
from pds_engine.parallel.layout import ModelPart
from pds_engine.parallel.parts import Parts
from pds_engine.spec import ExpertsSpec, GateSpec

_SCORES: Mapping[str, moe_gate.Score] = {
    "softmax": "softmax",
    "sigmoid": "sigmoid",
    "softmax_of_chosen": "softmax of chosen",
}


class Mixture:
    """The gate and the experts of layers of one spec, by the kernels that serve them. Experts in
    FP8 bring theirs."""

    def __init__(
        self,
        spec: ExpertsSpec,
        part: ModelPart,
        hidden: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.shares = spec.shared_columns > 0
        shared = len(part.expert_columns(spec.shared_columns))
        gated = activation.Geometry(shared, spec.activation, dtype, device)
        self.activate = activation.choose(gated).make(gated)
        self._held = part.experts_by_rank(spec.experts) if part.ep else ()
        rule = _rule(spec.gate, spec.experts, spec.top_k, device)
        self.gate = moe_gate.choose(rule).make(rule)
        geometry = grouped_gemm.Geometry(
            experts=len(part.experts(spec.experts)),
            hidden=hidden,
            columns=len(part.expert_columns(spec.columns)),
            activation=spec.activation,
            dtype=dtype,
            device=device,
        )
        self._feed = grouped_gemm.choose(geometry).make(geometry)

    def __call__(self, x: Tensor, w: ExpertWeights, stage: Collectives, parts: Parts) -> Tensor:
        """The block's result for this rank's part of the tokens.

        x, and the result: [parts.stage[rank], hidden]; `stage`: of all ranks that share the block.
        """
        if self._held:
            return self._dispatched(x, w, stage) + self._shared(x, w)
        whole = stage.gather_parts(x, parts.stage)
        weights, ids = self.route(whole, w)
        fed = grouped_gemm.experts(w.reading or self._feed, whole, ids, weights, kernel_weights(w))
        return stage.reduce_scatter(fed + self._shared(whole, w), parts.stage)

    def route(self, x: Tensor, w: ExpertWeights) -> tuple[Tensor, Tensor]:
        """Each token's experts, the best first: weights [T, top_k] float32 and ids [T, top_k].

        Ranks that share experts by columns must choose alike, or a token's sum would consist of
        parts of different experts. They do: tokens, router, and thus the shapes are the same on
        all, so are the kernels, and of equal scores the gate prefers the lower id. The ranks of a
        stage must therefore be of one kind of device.
        """
        logits = router_logits(x, w.router, w.router_bias)
        return self.gate(logits, w.correction if w.correction.numel() else None)

    def _dispatched(self, x: Tensor, w: ExpertWeights, ranks: Collectives) -> Tensor:
        """What experts, wherever they are, make of this rank's tokens [T, hidden]."""
        weights, ids = self.route(x, w)
        choices = grouped_gemm.permute(x, ids, sum(self._held))
        received = to_experts(choices.rows, choices.counts, self._held, ranks)
        of_layer = kernel_weights(w)
        own = grouped_gemm.permute(received.rows, received.experts.unsqueeze(1), of_layer.experts)
        made = (w.reading or self._feed)(own.rows, own.counts, of_layer)
        made = grouped_gemm.unpermute(made, own.order, 1, None)
        made = to_tokens(made, received, ranks)
        return grouped_gemm.unpermute(made, choices.order, ids.shape[1], weights)

    def _shared(self, x: Tensor, w: ExpertWeights) -> Tensor | int:
        """The block that every token passes; nothing to add where there is none."""
        if not self.shares:
            return 0
        return shared_block(self.activate, x, *w.shared, w.own_gate)


def _rule(gate: GateSpec, experts: int, top_k: int, device: torch.device) -> moe_gate.Geometry:
    return moe_gate.Geometry(
        experts=experts,
        top_k=top_k,
        device=device,
        score=_SCORES[gate.score],
        renormalise=gate.renormalise,
        scaling=gate.scaling,
        groups=gate.groups,
        top_groups=gate.top_groups,
        group_score=gate.group_score,
    )


def kernel_weights(w: ExpertWeights) -> grouped_gemm.ExpertWeights:
    """What a kernel of experts takes."""
    biased = w.gate_up_bias.numel() > 0
    return grouped_gemm.ExpertWeights(
        w.gate_up,
        w.down,
        w.gate_up_bias if biased else None,
        w.down_bias if biased else None,
    )
